import { createHash } from "node:crypto";
import { zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { compressChunk, decompressChunk } from "../../src/repository/chunk-codec.ts";

/** Of the buffers that frames are cut from. */
const slabBytes = 512 * 1024;

/** Bytes that do not shrink, always the same ones. */
function noiseOf(bytes: number, seed: number): Buffer {
  const blocks = Array.from({ length: Math.ceil(bytes / 64) }, (_, i) => createHash("sha512").update(`${seed} ${i}`).digest());
  return Buffer.concat(blocks).subarray(0, bytes);
}

describe("a chunk that is compressed", () => {
  it("is one frame, also one that ends where a buffer does", async () => {
    // nothing of this shrinks, so that the lengths of frames can be chosen
    const noise = noiseOf(131_072, 1);
    const frameBytes = (length: number): number => zstdCompressSync(noise.subarray(0, length)).length;
    const lengthFor = (frame: number): number => [...Array(30).keys()].map((less) => frame - less).find((length) => frameBytes(length) === frame) as number;
    let filled = 0;
    for (const length of [131_072, 131_072, 131_072, 50_000, lengthFor(slabBytes - 3 * frameBytes(131_072) - frameBytes(50_000))]) {
      const data = noise.subarray(0, length);
      const frame = await compressChunk(data);
      expect(frame.length).toBe(frameBytes(length));
      expect(zstdDecompressSync(frame).equals(data)).toBe(true);
      filled += frame.length;
    }
    expect(filled).toBe(slabBytes);
  });

  it("is itself, however many are compressed side by side", async () => {
    const chunks = Array.from({ length: 200 }, (_, i) => Buffer.concat([noiseOf(1 + ((i * 977) % 60_000), i), Buffer.alloc((i * 331) % 70_000, i)]));
    const frames = await Promise.all(chunks.map(compressChunk));
    for (const [i, frame] of frames.entries()) {
      expect(zstdDecompressSync(frame).equals(chunks[i] as Buffer)).toBe(true);
      // nothing is held that belongs to others: a frame is no longer than one made alone
      expect(frame.length).toBeLessThanOrEqual(zstdCompressSync(chunks[i] as Buffer).length + 64 + (chunks[i] as Buffer).length / 50);
    }
  });
});

describe("a frame that is unpacked", () => {
  const data = Buffer.concat([noiseOf(40_000, 2), Buffer.alloc(91_072, 7)]);
  const frame = zstdCompressSync(data);
  const unpacked = (bytes: Buffer, rawBytes = data.length): Promise<Buffer | undefined> =>
    decompressChunk(bytes, rawBytes, async (raw) => raw.equals(data.subarray(0, rawBytes)));
  const bomb = zstdCompressSync(Buffer.alloc(256 * 2 ** 20));

  it.each<[string, Buffer, number?]>([
    ["that ends early", frame.subarray(0, -1)],
    ["that ends at its start", frame.subarray(0, 5)],
    ["of nothing", Buffer.alloc(0)],
    ["that is none", noiseOf(1000, 3)],
    ["of something else", zstdCompressSync(noiseOf(data.length, 4))],
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
