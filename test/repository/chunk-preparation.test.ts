import { hash, randomFillSync } from "node:crypto";
import { zstdDecompressSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { ChunkIndex } from "../../src/repository/chunk-index.ts";
import { prepareChunks } from "../../src/repository/chunk-preparation.ts";
import { encodeEntry, methods } from "../../src/repository/layout.ts";
import { piecesOf, runOf } from "./support.ts";

const MiB = 2 ** 20;
const KiB = 1024;
const nothing = new ChunkIndex().filter;
const compresses = true;

describe("chunks that are prepared on the pool", () => {
  it("are hashed and compressed, in runs of every length, several at once, with memory that is used again", { timeout: 60_000 }, async () => {
    const waiting: Promise<void>[] = [];
    for (let i = 0; i < 400; i++) {
      const [data, chunkBytes] = [runOf(i), (i % 2 === 0 ? 128 : 64) * KiB];
      const { prepared, release } = prepareChunks(data, { chunkBytes, compresses, known: nothing });
      const check = async (): Promise<void> => {
        for (const [at, chunk] of piecesOf(data, chunkBytes).entries()) {
          const { id, frame } = await prepared(at);
          expect(id.equals(hash("sha256", chunk, "buffer"))).toBe(true);
          expect(frame).not.toBe(undefined);
          if (frame) expect(zstdDecompressSync(frame).equals(chunk)).toBe(true);
          expect((frame ?? chunk).length).toBeLessThanOrEqual(chunk.length);
        }
        release();
      };
      waiting.push(check());
      if (waiting.length > 6) await waiting.shift();
    }
    await Promise.all(waiting);
  });

  it("are not compressed where they may be there, nor where nothing is compressed", async () => {
    const chunkBytes = 64 * KiB;
    for (let i = 0; i < 20; i++) {
      const data = randomFillSync(Buffer.alloc(MiB), 0, MiB - 100 * KiB);
      const pieces = piecesOf(data, chunkBytes);
      const index = new ChunkIndex();
      const entryOf = (chunk: Buffer): Buffer =>
        encodeEntry({ id: hash("sha256", chunk, "buffer"), offset: 0, storedBytes: 1, rawBytes: chunk.length, method: methods.zstd });
      index.add({ name: "pack", directory: Buffer.concat(pieces.filter((_, at) => at % 3 === 0).map(entryOf)) });
      const some = prepareChunks(data, { chunkBytes, compresses, known: index.filter });
      const none = prepareChunks(data, { chunkBytes, compresses: false, known: nothing });
      for (let at = 0; at < pieces.length; at++) {
        expect((await some.prepared(at)).frame === undefined).toBe(at % 3 === 0);
        expect(await none.prepared(at)).toEqual({ id: (await some.prepared(at)).id });
      }
      some.release();
      none.release();
    }
  });
});
