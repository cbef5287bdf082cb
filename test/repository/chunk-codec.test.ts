import * as zlib from "node:zlib";
import { describe, expect, it } from "vitest";
import { compressChunk, compressor, frameRoom } from "../../src/repository/chunk-codec.ts";
import { noiseOf } from "./support.ts";

describe("a chunk that is compressed", () => {
  const chunks = Array.from({ length: 200 }, (_, i) => Buffer.concat([noiseOf(1 + ((i * 977) % 60_000), i), Buffer.alloc((i * 331) % 70_000, i)]));

  it("is the frame that zstd makes of it, one after the other from one context", () => {
    const compress = compressor(zlib);
    const into = Buffer.alloc(frameRoom(131_072));
    for (const chunk of [...chunks, noiseOf(131_072, 1), Buffer.alloc(131_072), Buffer.from("a")]) {
      const frame = into.subarray(0, compress(chunk, into.fill(0xee)));
      expect(frame.equals(zlib.zstdCompressSync(chunk, { params: { [zlib.constants.ZSTD_c_compressionLevel]: 1 } }))).toBe(true);
      expect(zlib.zstdDecompressSync(frame).equals(chunk)).toBe(true);
    }
  });

  it.each([
    ["has nothing inside", () => ({})],
    ["leaves something over", () => ({ _handle: { writeSync: () => {} }, _writeState: Uint32Array.of(5, 5) })],
    ["writes something else", () => ({ _handle: { writeSync: () => {} }, _writeState: Uint32Array.of(5, 0) })],
  ])("is made by the public call where a stream %s", (_, inside) => {
    const compress = compressor({ ...zlib, createZstdCompress: inside as unknown as typeof zlib.createZstdCompress });
    const into = Buffer.alloc(frameRoom(131_072));
    for (const chunk of chunks) expect(zlib.zstdDecompressSync(into.subarray(0, compress(chunk, into))).equals(chunk)).toBe(true);
  });

  it("is left as it is where it does not get shorter", () => {
    expect(compressChunk(noiseOf(131_072, 1))).toBe(null);
    expect(zlib.zstdDecompressSync(compressChunk(Buffer.alloc(131_072, 3)) as Buffer).equals(Buffer.alloc(131_072, 3))).toBe(true);
  });
});
