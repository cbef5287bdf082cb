import { closeSync, openSync, readSync } from "node:fs";
import * as zlib from "node:zlib";
import { describe, expect, it, vi } from "vitest";
import { frameRoom } from "../../src/repository/chunk-codec.ts";
import { type CompressOnPool, poolCompressor } from "../../src/repository/compress-pool.ts";
import { noiseOf } from "./support.ts";

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
    const compress = poolCompressor({ ...zlib, createZstdCompress: inside as unknown as typeof zlib.createZstdCompress });
    const frames = await Promise.all(chunks.map((chunk) => compressed(compress, chunk)));
    expect(chunks.filter((chunk, i) => !plain(chunk).equals(frames[i] as Buffer))).toEqual([]);
  });
});
