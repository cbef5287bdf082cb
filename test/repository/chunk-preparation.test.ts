import { hash, randomFillSync } from "node:crypto";
import { describe, expect, it } from "vitest";
import { ChunkIndex } from "../../src/repository/chunk-index.ts";
import { type Prepared, prepareChunks } from "../../src/repository/chunk-preparation.ts";
import { encodeEntry, methods } from "../../src/repository/layout.ts";
import { checkRun, piecesOf, runOf } from "./support.ts";

const MiB = 2 ** 20;
const KiB = 1024;
const nothing = new ChunkIndex().filter;
const compresses = true;

describe("chunks that are prepared on the pool", () => {
  it("are hashed and compressed, in runs of every length, several at once, with memory that is used again", { timeout: 60_000 }, async () => {
    const waiting: Promise<void>[] = [];
    for (let i = 0; i < 400; i++) {
      const [data, chunkBytes] = [runOf(i), (i % 2 === 0 ? 128 : 64) * KiB];
      waiting.push(checkRun(data, chunkBytes, prepareChunks(data, { chunkBytes, compresses, known: nothing })));
      if (waiting.length > 6) await waiting.shift();
    }
    await Promise.all(waiting);
  });

  it("are not compressed where they may be there, nor where nothing is compressed", async () => {
    const chunkBytes = 64 * KiB;
    for (let i = 0; i < 20; i++) {
      const data = randomFillSync(Buffer.alloc(MiB, 1), 0, MiB - 100 * KiB);
      const pieces = piecesOf(data, chunkBytes);
      const index = new ChunkIndex();
      const entryOf = (chunk: Buffer): Buffer =>
        encodeEntry({ id: hash("sha256", chunk, "buffer"), offset: 0, storedBytes: 1, rawBytes: chunk.length, method: methods.zstd });
      index.add({ name: "pack", directory: Buffer.concat(pieces.filter((_, at) => at % 3 === 0).map(entryOf)) });
      const some = prepareChunks(data, { chunkBytes, compresses, known: index.filter });
      const none = prepareChunks(data, { chunkBytes, compresses: false, known: nothing });
      for (let at = 0; at < pieces.length; at++) {
        const { id, frame } = (await some.prepared(at)) as Prepared;
        expect(frame === undefined).toBe(at % 3 === 0);
        expect(await none.prepared(at)).toEqual({ id, frame: null });
      }
      some.release();
      none.release();
    }
  });
});
