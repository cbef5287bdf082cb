import * as zlib from "node:zlib";
import { describe, expect, it } from "vitest";
import { compressChunk, compressor, decompressChunk, frameRoom } from "../../src/repository/chunk-codec.ts";
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
