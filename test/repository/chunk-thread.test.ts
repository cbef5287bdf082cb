import { hash, randomFillSync } from "node:crypto";
import { availableParallelism } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { MessageChannel, Worker } from "node:worker_threads";
import { describe, expect, it, vi } from "vitest";
import { ChunkIndex } from "../../src/repository/chunk-index.ts";
import { type Prepared, prepareChunks } from "../../src/repository/chunk-preparation.ts";
import { useChunkThreads } from "../../src/repository/chunk-thread.ts";
import { encodeEntry, methods } from "../../src/repository/layout.ts";
import { checkRun, piecesOf, runOf } from "./support.ts";

const MiB = 2 ** 20;
const KiB = 1024;
const nothing = new ChunkIndex().filter;

/** One processor has none: all is done on this thread then, and comes to the same. */
const hasThreads = availableParallelism() > 1;

describe("the threads that prepare chunks", () => {
  const compresses = true;

  /** Prepares and checks runs, some of them at once. @returns how many went to a thread */
  async function prepareAll(prepare: typeof prepareChunks, runs: number): Promise<number> {
    const asked = vi.spyOn(Atomics, "notify");
    const waiting: Promise<void>[] = [];
    for (let i = 0; i < runs; i++) {
      const [data, chunkBytes] = [runOf(i), (i % 2 === 0 ? 128 : 64) * KiB];
      waiting.push(checkRun(data, chunkBytes, prepare(data, { chunkBytes, compresses, known: nothing })));
      if (waiting.length > 6) await waiting.shift();
      // whatever threads say of themselves arrives
      await new Promise((resolve) => setImmediate(resolve));
    }
    await Promise.all(waiting);
    const { length } = asked.mock.calls;
    asked.mockRestore();
    return length;
  }

  it("give what this one does, of runs of every length, several at once, with memory that is used again", { timeout: 60_000 }, async () => {
    expect(await prepareAll(prepareChunks, 50)).toBe(0);
    const leave = useChunkThreads(1024 * MiB);
    await sleep(300);
    expect((await prepareAll(prepareChunks, 600)) > 100).toBe(hasThreads);
    leave();
  });

  it("compress nothing that may be there, and nothing where nothing is compressed", { timeout: 60_000 }, async () => {
    const chunkBytes = 64 * KiB;
    const leave = useChunkThreads(1024 * MiB);
    await sleep(300);
    for (let i = 0; i < 100; i++) {
      const data = randomFillSync(Buffer.alloc(MiB, 1), 0, MiB - 100 * KiB);
      const index = new ChunkIndex();
      const there = piecesOf(data, chunkBytes).filter((_, at) => at % 2 === 0);
      const entries = there.map((chunk) =>
        encodeEntry({ id: hash("sha256", chunk, "buffer"), offset: 0, storedBytes: 1, rawBytes: chunk.length, method: methods.zstd }),
      );
      index.add({ name: "pack", directory: Buffer.concat(entries) });
      const some = prepareChunks(data, { chunkBytes, compresses, known: index.filter });
      const none = prepareChunks(data, { chunkBytes, compresses: false, known: nothing });
      for (let at = 0; at * chunkBytes < MiB; at++) {
        const { id, frame } = (await some.prepared(at)) as Prepared;
        expect(frame === undefined).toBe(at % 2 === 0);
        expect(await none.prepared(at)).toEqual({ id, frame: null });
      }
      some.release();
    }
    leave();
  });

  it("lose nothing where one of them ends in the middle", { timeout: 60_000 }, async () => {
    vi.resetModules();
    const ended: Worker[] = [];
    class Mortal extends Worker {
      constructor(...args: ConstructorParameters<typeof Worker>) {
        super(...args);
        this.on("online", () => setTimeout(() => void this.terminate().then(() => ended.push(this)), 100));
      }
    }
    const builtin = vi
      .spyOn(process, "getBuiltinModule")
      .mockReturnValue({ MessageChannel, Worker: Mortal } as object as ReturnType<typeof process.getBuiltinModule>);
    const fresh = { ...(await import("../../src/repository/chunk-thread.ts")), ...(await import("../../src/repository/chunk-preparation.ts")) };
    const leave = fresh.useChunkThreads(1024 * MiB);
    for (let tries = 0; tries < (hasThreads ? 20 : 1) && ended.length === 0; tries++) await prepareAll(fresh.prepareChunks, 100);
    leave();
    builtin.mockRestore();
    expect(ended.length > 0).toBe(hasThreads);
  });

  it("begin for what is expected, stay where it comes, and end where it does not", async () => {
    vi.resetModules();
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const { expectBytes, hasChunkThreads, useChunkThreads: use } = await import("../../src/repository/chunk-thread.ts");
    expectBytes(255 * MiB);
    expect(hasChunkThreads()).toBe(false);
    expectBytes(256 * MiB);
    expect(hasChunkThreads()).toBe(hasThreads);
    const leave = use(1);
    vi.advanceTimersByTime(60_000);
    expect(hasChunkThreads()).toBe(hasThreads);
    leave();
    vi.advanceTimersByTime(60_000);
    expect(hasChunkThreads()).toBe(false);
    vi.useRealTimers();
  });
});
