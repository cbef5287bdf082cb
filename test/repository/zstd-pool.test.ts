import { closeSync, openSync, readSync } from "node:fs";
import * as zlib from "node:zlib";
import { describe, expect, it, vi } from "vitest";
import { frameRoom } from "../../src/repository/chunk-codec.ts";
import { type CompressOnPool, decompressChunk, poolCompressor, poolDecompressor } from "../../src/repository/zstd-pool.ts";
import { noiseOf } from "./support.ts";

const withInside = (write: (handle: { cb(): void }, state: Uint32Array) => void): object => {
  const state = Uint32Array.of(0, 0);
  const handle = { cb: (): void => {}, write: () => write(handle, state) };
  return { _handle: handle, _writeState: state, on: () => {} };
};
const later = (left: readonly [room: number, rest: number]): object =>
  withInside((handle, state) =>
    setImmediate(() => {
      state.set(left);
      handle.cb();
    }),
  );

describe("a chunk that is compressed on the pool", () => {
  const chunks = Array.from({ length: 200 }, (_, i) => Buffer.concat([noiseOf(1 + ((i * 977) % 60_000), i), Buffer.alloc((i * 331) % 70_000, i)]));

  const plain = (chunk: Buffer): Buffer => zlib.zstdCompressSync(chunk, { params: { [zlib.constants.ZSTD_c_compressionLevel]: 1 } });
  const room = (): Buffer => Buffer.alloc(frameRoom(131_072), 0xee);
  const compressed = async (compress: CompressOnPool, chunk: Buffer): Promise<Buffer> => {
    const into = room();
    return into.subarray(0, await compress(chunk, into));
  };

  it("is the frame that zstd makes of it, many at once and one after the other", async () => {
    const compress = poolCompressor();
    const all = [...chunks, noiseOf(131_072, 1), Buffer.alloc(131_072), Buffer.from("a")];
    const frames = await Promise.all(all.map((chunk) => compressed(compress, chunk)));
    expect(all.filter((chunk, i) => !plain(chunk).equals(frames[i] as Buffer))).toEqual([]);
    for (const chunk of all) expect((await compressed(compress, chunk)).equals(plain(chunk))).toBe(true);
  });

  it("is made on the pool, in contexts that are kept", async () => {
    const createZstdCompress = vi.fn(zlib.createZstdCompress);
    const zstdCompressSync = vi.fn((chunk) => plain(chunk as Buffer)) as typeof zlib.zstdCompressSync;
    const compress = poolCompressor({ createZstdCompress, zstdCompressSync });
    await Promise.all(chunks.map((chunk) => compressed(compress, chunk)));
    expect(createZstdCompress).toHaveBeenCalledTimes(4);
    // the first are compared; where the inside of this Node is not what was seen, all would be made that way
    expect(vi.mocked(zstdCompressSync).mock.calls.length).toBeLessThan(8);
  });

  it("is made on the pool also where it has 4 MiB", async () => {
    const zstdCompressSync = vi.fn(zlib.zstdCompressSync);
    const compress = poolCompressor({ createZstdCompress: zlib.createZstdCompress, zstdCompressSync });
    // code is cut into blocks otherwise where zstd has to give it out in parts
    const program = openSync(process.execPath, "r");
    for (let i = 1; i <= 4; i++) {
      const chunk = Buffer.alloc(2 ** 22);
      readSync(program, chunk, 0, chunk.length, i * 2 ** 23);
      const into = Buffer.alloc(frameRoom(chunk.length));
      expect(zlib.zstdDecompressSync(into.subarray(0, await compress(chunk, into))).equals(chunk)).toBe(true);
    }
    closeSync(program);
    expect(zstdCompressSync.mock.calls.length).toBe(2);
  });

  it.each<[string, () => object]>([
    ["has nothing inside", () => ({ on: () => {} })],
    ["cannot be made", () => expect.fail()],
    ["leaves something over", () => later([5, 5])],
    ["has no room left", () => later([0, 0])],
    ["writes something else", () => later([5, 0])],
    [
      "throws",
      () =>
        withInside(() => {
          throw new Error("no");
        }),
    ],
    [
      "fails",
      () => {
        let fail = (): void => {};
        return { ...withInside(() => setImmediate(() => fail())), on: (_: string, listener: () => void) => (fail = listener) };
      },
    ],
  ])("is made by the public call where a stream %s", async (_, inside) => {
    const compress = poolCompressor({ ...zlib, createZstdCompress: inside as unknown as typeof zlib.createZstdCompress });
    const frames = await Promise.all(chunks.map((chunk) => compressed(compress, chunk)));
    expect(chunks.filter((chunk, i) => !plain(chunk).equals(frames[i] as Buffer))).toEqual([]);
  });
});

describe("a frame that is unpacked", () => {
  const data = Buffer.concat([noiseOf(40_000, 2), Buffer.alloc(91_072, 7)]);
  const frame = zlib.zstdCompressSync(data);
  const unpacked = async (bytes: Buffer, rawBytes = data.length): Promise<Buffer | undefined> => {
    const memory = Buffer.alloc(rawBytes + 200, 0xee);
    const into = memory.subarray(100, 100 + rawBytes);
    const isRight = await decompressChunk(bytes, into, async (raw) => raw.equals(data.subarray(0, rawBytes)));
    expect([...memory.subarray(0, 100), ...memory.subarray(100 + rawBytes)].every((byte) => byte === 0xee)).toBe(true);
    return isRight ? into : undefined;
  };
  /** All of it as it is, in one block, its length not said before. */
  const plainFrame = (windowLog: number): Buffer => {
    const head = Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0, (windowLog - 10) << 3, 0, 0, 0]);
    head.writeUIntLE((data.length << 3) | 1, 6, 3);
    return Buffer.concat([head, data]);
  };
  const bomb = zlib.zstdCompressSync(Buffer.alloc(256 * 2 ** 20));

  it.each<[string, Buffer, number?]>([
    ["that ends early", frame.subarray(0, -1)],
    ["that ends at its start", frame.subarray(0, 5)],
    ["of nothing", Buffer.alloc(0)],
    ["that is none", noiseOf(1000, 3)],
    ["of something else", zlib.zstdCompressSync(noiseOf(data.length, 4))],
    ["that is shorter than it should be", Buffer.from(frame), data.length + 1],
    ["that is longer than it should be", Buffer.from(frame), data.length - 1],
    ["of far too much", bomb],
    ["that asks for 8 MiB of memory", plainFrame(23)],
    ["of which one byte is another", Buffer.from(frame).fill((frame[20_000] as number) ^ 1, 20_000, 20_001)],
  ])("%s is refused, and harms none of those beside it or after it", async (_, bytes, rawBytes) => {
    const all = await Promise.all(
      [frame, bytes, frame, bytes, frame, bytes, frame, bytes, frame].map((each) => unpacked(each, each === bytes ? rawBytes : undefined)),
    );
    expect(all.map((each) => each !== undefined)).toEqual([true, false, true, false, true, false, true, false, true]);
    for (let i = 0; i < 8; i++) expect((await unpacked(frame))?.equals(data)).toBe(true);
  });

  it("may ask for as much memory as a chunk is long at most", async () => {
    for (let i = 0; i < 9; i++) expect((await unpacked(plainFrame(22)))?.equals(data)).toBe(true);
  });

  it("is unpacked on the pool, in contexts that are kept, to where it is wanted", async () => {
    const createZstdDecompress = vi.fn(zlib.createZstdDecompress);
    const decompress = poolDecompressor({ createZstdDecompress });
    const chunks = Array.from({ length: 200 }, (_, i) => Buffer.concat([noiseOf(1 + ((i * 977) % 60_000), i), Buffer.alloc((i * 331) % 70_000, i)]));
    const into = chunks.map((chunk) => Buffer.alloc(chunk.length));
    const done = await Promise.all(chunks.map((chunk, i) => decompress(zlib.zstdCompressSync(chunk), into[i] as Buffer)));
    expect(done.every(Boolean)).toBe(true);
    expect(chunks.filter((chunk, i) => !chunk.equals(into[i] as Buffer))).toEqual([]);
    expect(createZstdDecompress).toHaveBeenCalledTimes(4);
    expect(await decompress(frame.subarray(0, -1), Buffer.alloc(data.length))).toBe(false);
    expect(await Promise.all(chunks.map((chunk, i) => decompress(zlib.zstdCompressSync(chunk), into[i] as Buffer)))).toEqual(done);
    expect(createZstdDecompress).toHaveBeenCalledTimes(5);
  });

  it.each<[string, () => object]>([
    ["has nothing inside", () => ({ on: () => {} })],
    ["cannot be made", () => expect.fail()],
    ["leaves something over", () => ({ ...later([0, 5]), destroy: () => {} })],
  ])("is not unpacked on the pool where a stream %s", async (_, inside) => {
    const decompress = poolDecompressor({ createZstdDecompress: inside as unknown as typeof zlib.createZstdDecompress });
    expect(await Promise.all([frame, frame, frame, frame, frame, frame].map((each) => decompress(each, Buffer.alloc(data.length))))).toEqual(
      Array(6).fill(false),
    );
  });

  it("with something behind it is what it holds or is refused, and harms none beside it or after it", async () => {
    for (const behind of [Buffer.from("behind"), frame, bomb]) {
      const [odd, ...honest] = await Promise.all([Buffer.concat([frame, behind]), frame, frame, frame, frame, frame].map((each) => unpacked(each)));
      expect(honest.map((each) => each?.equals(data))).toEqual([true, true, true, true, true]);
      // whether zlib looks behind a frame depends on how it is asked: what was stored never has anything there
      expect(odd === undefined || odd.equals(data)).toBe(true);
    }
  });
});
