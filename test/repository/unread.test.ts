import { hash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { zstdDecompressSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import type { FileSource } from "../../src/converters/block-source.ts";
import { ChunkIndex } from "../../src/repository/chunk-index.ts";
import { type Preparation, prepareUnread, type Run } from "../../src/repository/chunk-preparation.ts";
import { useChunkThreads } from "../../src/repository/chunk-thread.ts";
import { encodeEntry, methods } from "../../src/repository/layout.ts";
import { bytes, KiB, MiB } from "../support/disks.ts";
import { fileSource, isZeros, noiseOf, piecesOf } from "./support.ts";

const folder = mkdtempSync(join(tmpdir(), "hypersdk-unread-"));
const path = join(folder, "disk.raw");
const chunkBytes = 128 * KiB;
const nothing = new ChunkIndex().filter;

/** Some of it shrinks, some does not, some is zeros, and the last chunk is a short one. */
const disk = Buffer.concat(
  Array.from({ length: 40 }, (_, i) => [bytes(MiB, i), noiseOf(MiB, i), Buffer.alloc(MiB)][i % 3] as Buffer).concat(bytes(300 * KiB + 512, 99)),
);
disk.fill(0, 5 * chunkBytes, 6 * chunkBytes);
const chunks = piecesOf(disk, chunkBytes);
afterAll(() => rmSync(folder, { recursive: true }));

/** Prepares the whole disk, a few runs at once. */
async function prepareDisk(source: FileSource, preparation: Preparation, look: (run: Run, i: number, chunk: Buffer) => Promise<void>): Promise<void> {
  const looking: Promise<void>[] = [];
  for (let offset = 0; offset < disk.length; offset += MiB) {
    const run = prepareUnread(source, { offset, length: Math.min(MiB, disk.length - offset) }, preparation);
    const all = async (): Promise<void> => {
      const first = offset / chunkBytes;
      for (const [i, chunk] of chunks.slice(first, first + MiB / chunkBytes).entries()) await look(run, i, chunk);
      await run.ended();
      run.release();
    };
    looking.push(all());
    if (looking.length > 4) await looking.shift();
    await new Promise((resolve) => setImmediate(resolve));
  }
  await Promise.all(looking);
}

describe.each([
  ["by threads of ours", 1024 * MiB],
  ["by this one", 0],
])("a file that is read %s", (_name, worthOf) => {
  const hasThreads = worthOf > 0 && availableParallelism() > 1;
  let leave = (): void => {};
  beforeAll(async () => {
    leave = useChunkThreads(worthOf);
    if (hasThreads) await sleep(500);
  });
  // threads that nobody uses end after a while
  afterAll(async () => {
    leave();
    await sleep(hasThreads ? 5500 : 0);
  });

  it.each([true, false])("is what it is: hashed, compressed, stored as it is, or zeros (compressed: %s)", { timeout: 60_000 }, async (compresses) => {
    const source = fileSource(path, disk);
    for (let round = 0; round < 5; round++)
      await prepareDisk(source, { chunkBytes, compresses, known: nothing }, async (run, i, chunk) => {
        const prepared = await run.prepared(i);
        expect(prepared === null).toBe(isZeros(chunk));
        if (!prepared) return;
        expect(prepared.id.equals(hash("sha256", chunk, "buffer"))).toBe(true);
        expect(prepared.frame).not.toBe(undefined);
        if (!compresses) expect(prepared.frame).toBe(null);
        const stored = prepared.frame ? zstdDecompressSync(prepared.frame) : await run.bytesOf(i);
        expect(stored.equals(chunk)).toBe(true);
      });
    // this thread helps out, and no more
    expect(source.reads.length < 5 * 41).toBe(hasThreads);
    await source.close();
  });

  it.skipIf(!hasThreads)("is not read by two, where word of the job before wakes whoever waits", { timeout: 60_000 }, async () => {
    const source = fileSource(path, disk);
    const early = vi.spyOn(Atomics, "waitAsync").mockImplementation(() => ({ async: true, value: new Promise((wake) => setImmediate(() => wake("ok"))) }));
    for (let offset = 0; offset < disk.length; offset += MiB) {
      const run = prepareUnread(source, { offset, length: Math.min(MiB, disk.length - offset) }, { chunkBytes, compresses: true, known: nothing });
      const first = offset / chunkBytes;
      for (const [i, chunk] of chunks.slice(first, first + MiB / chunkBytes).entries())
        expect((await run.prepared(i))?.id.equals(hash("sha256", chunk, "buffer")) ?? isZeros(chunk)).toBe(true);
      run.release();
    }
    expect(early).toHaveBeenCalled();
    early.mockRestore();
    expect(source.reads).toEqual([]);
    await source.close();
  });

  it("is read again where a chunk that may be there is not, and not believed when it is another then", { timeout: 60_000 }, async () => {
    const index = new ChunkIndex();
    const entryOf = (chunk: Buffer): Buffer =>
      encodeEntry({ id: hash("sha256", chunk, "buffer"), offset: 0, storedBytes: 1, rawBytes: chunk.length, method: methods.zstd });
    index.add({ name: "pack", directory: Buffer.concat(chunks.map(entryOf)) });
    const preparation = { chunkBytes, compresses: true, known: index.filter };
    const same = fileSource(path, disk);
    await prepareDisk(same, preparation, async (run, i, chunk) => {
      const prepared = await run.prepared(i);
      expect(prepared && "frame" in prepared).toBe(prepared && false);
      if (prepared) expect((await run.bytesOf(i)).equals(chunk)).toBe(true);
    });
    await same.close();
    if (!hasThreads) return;
    const changed = fileSource(path, disk, Buffer.alloc(disk.length, 7));
    let refused = 0;
    await prepareDisk(changed, preparation, async (run, i, chunk) => {
      const prepared = await run.prepared(i);
      if (!prepared) return;
      const isOurs = prepared.id.equals(hash("sha256", chunk, "buffer"));
      const { code } = await run.bytesOf(i).then(
        () => ({ code: "" }),
        (error: { code: string }) => error,
      );
      expect(code).toBe(isOurs ? "SourceChanged" : "");
      if (isOurs) refused++;
    });
    expect(refused).toBeGreaterThan(0);
    await changed.close();
  });

  it("gives its error where it cannot be read, and its content where only another thread cannot", { timeout: 60_000 }, async () => {
    const preparation = { chunkBytes, compresses: true, known: nothing };
    const short = disk.subarray(0, 10 * MiB + 5);
    const ends = fileSource(path, short);
    let failed = 0;
    await prepareDisk(ends, preparation, async (run, i, chunk) => {
      const prepared = await run.prepared(i).catch((error: Error) => {
        expect(error.message).toBe("the disk ends before");
        return undefined;
      });
      if (prepared === undefined) failed++;
      else expect(prepared?.id.equals(hash("sha256", chunk, "buffer")) ?? isZeros(chunk)).toBe(true);
    });
    expect(failed).toBe(chunks.length - 10 * (MiB / chunkBytes));
    await ends.close();
    const another = fileSource(path, short, disk);
    await prepareDisk(another, preparation, async (run, i, chunk) => {
      const prepared = await run.prepared(i);
      expect(prepared?.id.equals(hash("sha256", chunk, "buffer")) ?? isZeros(chunk)).toBe(true);
    });
    await another.close();
  });
});
