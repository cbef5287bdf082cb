import { createHash } from "node:crypto";
import { zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { compressChunk } from "../../src/repository/compress-chunk.ts";

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
