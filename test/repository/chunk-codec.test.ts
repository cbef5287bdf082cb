import { createHash } from "node:crypto";
import * as zlib from "node:zlib";
import { describe, expect, it, vi } from "vitest";
import { type Compress, compressChunk, compressor, decompressChunk, frameRoom } from "../../src/repository/chunk-codec.ts";

/** Bytes that do not shrink, always the same ones. */
function noiseOf(bytes: number, seed: number): Buffer {
  const blocks = Array.from({ length: Math.ceil(bytes / 64) }, (_, i) => createHash("sha512").update(`${seed} ${i}`).digest());
  return Buffer.concat(blocks).subarray(0, bytes);
}

describe("a chunk that is compressed", () => {
  const chunks = Array.from({ length: 200 }, (_, i) => Buffer.concat([noiseOf(1 + ((i * 977) % 60_000), i), Buffer.alloc((i * 331) % 70_000, i)]));

  const plain = (chunk: Buffer): Buffer => zlib.zstdCompressSync(chunk, { params: { [zlib.constants.ZSTD_c_compressionLevel]: 1 } });
  const room = (): Buffer => Buffer.alloc(frameRoom(131_072), 0xee);
  const compressed = async (compress: Compress, chunk: Buffer): Promise<Buffer> => {
    const into = room();
    return into.subarray(0, await compress(chunk, into));
  };

  it("is the frame that zstd makes of it, many at once and one after the other", async () => {
    const compress = compressor();
    const all = [...chunks, noiseOf(131_072, 1), Buffer.alloc(131_072), Buffer.from("a")];
    const frames = await Promise.all(all.map((chunk) => compressed(compress, chunk)));
    expect(all.filter((chunk, i) => !plain(chunk).equals(frames[i] as Buffer))).toEqual([]);
    for (const chunk of all) expect((await compressed(compress, chunk)).equals(plain(chunk))).toBe(true);
  });

  it("is made on the pool, in contexts that are kept", async () => {
    const createZstdCompress = vi.fn(zlib.createZstdCompress);
    const zstdCompressSync = vi.fn((chunk) => plain(chunk as Buffer)) as typeof zlib.zstdCompressSync;
    const compress = compressor({ createZstdCompress, zstdCompressSync });
    await Promise.all(chunks.map((chunk) => compressed(compress, chunk)));
    expect(createZstdCompress).toHaveBeenCalledTimes(16);
    // the first are compared; where the inside of this Node is not what was seen, all would be made that way
    expect(vi.mocked(zstdCompressSync).mock.calls.length).toBeLessThan(20);
  });

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
    const compress = compressor({ ...zlib, createZstdCompress: inside as unknown as typeof zlib.createZstdCompress });
    const frames = await Promise.all(chunks.map((chunk) => compressed(compress, chunk)));
    expect(chunks.filter((chunk, i) => !plain(chunk).equals(frames[i] as Buffer))).toEqual([]);
  });

  it("is left as it is where it does not get shorter", () => {
    expect(compressChunk(noiseOf(131_072, 1))).toBe(null);
    expect(zlib.zstdDecompressSync(compressChunk(Buffer.alloc(131_072, 3)) as Buffer).equals(Buffer.alloc(131_072, 3))).toBe(true);
  });
});

describe("a frame that is unpacked", () => {
  const data = Buffer.concat([noiseOf(40_000, 2), Buffer.alloc(91_072, 7)]);
  const frame = zlib.zstdCompressSync(data);
  const unpacked = (bytes: Buffer, rawBytes = data.length): Promise<Buffer | undefined> =>
    decompressChunk(bytes, rawBytes, async (raw) => raw.equals(data.subarray(0, rawBytes)));
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
    ["of which one byte is another", Buffer.from(frame).fill((frame[20_000] as number) ^ 1, 20_000, 20_001)],
  ])("%s is refused, and harms none of those beside it or after it", async (_, bytes, rawBytes) => {
    const all = await Promise.all(
      [frame, bytes, frame, bytes, frame, bytes, frame, bytes, frame].map((each) => unpacked(each, each === bytes ? rawBytes : undefined)),
    );
    expect(all.map((each) => each !== undefined)).toEqual([true, false, true, false, true, false, true, false, true]);
    for (let i = 0; i < 8; i++) expect((await unpacked(frame))?.equals(data)).toBe(true);
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
