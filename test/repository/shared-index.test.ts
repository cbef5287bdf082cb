import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it, vi } from "vitest";
import type { Destination } from "../../src/destinations/destination.ts";
import type { ChunkedDisk } from "../../src/exports/manifest.ts";
import { readManifest } from "../../src/exports/restore.ts";
import { HypersdkError } from "../../src/model/errors.ts";
import { checkRepository } from "../../src/repository/check.ts";
import { type CompactReport, compactRepository } from "../../src/repository/compact.ts";
import { Repository } from "../../src/repository/repository.ts";
import { memoryDestination } from "../fakes/memory-destination.ts";
import { bytes, KiB } from "../support/disks.ts";
import { clock, contentOf, exportDisk, sealing } from "./support.ts";

const size = 4 * 128 * KiB;
const emptyStore = (files?: Map<string, Buffer>): Destination => memoryDestination({ name: "d", url: "memory:" }, files);
const opened = async (destination: Destination): Promise<Repository> => (await Repository.open(destination)) as Repository;
const compactNow = async (destination: Destination, { graceMs = 0, dryRun = false } = {}): Promise<CompactReport> =>
  compactRepository(await opened(destination), { now: clock.now(), id: randomUUID(), graceMs, maxUnused: 0, dryRun });

async function newBytesOf(destination: Destination, path: string): Promise<number> {
  return ((await readManifest(destination, path)).disks[0] as ChunkedDisk).newBytes;
}

async function expectSound(destination: Destination, points: ReadonlyMap<string, Buffer>): Promise<void> {
  expect(await checkRepository(await opened(destination), { readData: 1 })).toMatchObject({ problems: [], points: points.size });
  for (const [path, disk] of points) expect((await contentOf(destination, path)).equals(disk)).toBe(true);
}

describe("the index that exports to one destination share", () => {
  it.each([false, true])("is read object by object once, and again by who opens the destination anew; sealed: %s", async (isSealed) => {
    const memory = emptyStore();
    const store = isSealed ? sealing(memory) : memory;
    const read: string[] = [];
    const counting = (): Destination => ({
      ...store,
      async get(path, maxBytes) {
        if (path.startsWith("index/")) read.push(path);
        return store.get(path, maxBytes);
      },
    });
    const points = new Map<string, Buffer>();
    const [one, other] = [counting(), counting()];
    for (let i = 0; i < 12; i++) {
      const disk = bytes(size, i);
      points.set(await exportDisk(one, disk, "repository", { vm: `vm${i}` }), disk);
    }
    expect(read.length).toBe(11);
    expect(new Set(read).size).toBe(11);
    // nothing of it is new
    points.set(await exportDisk(other, bytes(size, 3), "repository", { vm: "vm3", runId: randomUUID() }), bytes(size, 3));
    expect(read.length).toBe(11 + 12);
    expect((await store.list("packs")).length).toBe(12);
    await expectSound(store, points);
  });

  it("holds nothing that another export has sent and not indexed: that one may fail", async () => {
    const store = emptyStore();
    let [isSent, mayFail] = [() => {}, () => {}];
    const [sent, failing] = [new Promise<void>((resolve) => (isSent = resolve)), new Promise<void>((resolve) => (mayFail = resolve))];
    // so that there is something to share
    const before = await exportDisk(store, bytes(size, 2), "repository", { vm: "before" });
    let isFirst = true;
    const slow: Destination = {
      ...store,
      async put(path, data, options) {
        if (path.startsWith("index/") && isFirst) {
          isFirst = false;
          isSent();
          await failing;
          throw new HypersdkError("DestinationFull", "no space left");
        }
        return store.put(path, data, options);
      },
    };
    const disk = bytes(size, 1);
    await exportDisk(slow, bytes(size, 2), "repository", { vm: "same" });
    const first = exportDisk(slow, disk, "repository", { vm: "a" });
    first.catch(() => {});
    await sent;
    const path = await exportDisk(slow, disk, "repository", { vm: "b" });
    mayFail();
    await expect(first).rejects.toThrow("no space left");
    expect(await checkRepository(await opened(store), { readData: 1 })).toMatchObject({ problems: [], points: 3 });
    expect((await contentOf(store, path)).equals(disk)).toBe(true);
    expect((await contentOf(store, before)).equals(bytes(size, 2))).toBe(true);
  });

  it.each([0, 3_600_000])("holds nothing to build on that a compaction has condemned or taken away meanwhile; grace %i ms", async (graceMs) => {
    const store = emptyStore();
    const disks = [bytes(size, 1), bytes(size, 2)] as const;
    const gone = await exportDisk(store, disks[0], "repository", { vm: "a" });
    const points = new Map([[await exportDisk(store, disks[1], "repository", { vm: "b" }), disks[1]]]);
    await store.remove(gone);
    expect((await compactNow(store, { graceMs })).condemnedBytes > 0).toBe(graceMs > 0);
    points.set(await exportDisk(store, disks[0], "repository", { vm: "c" }), disks[0]);
    points.set(await exportDisk(store, disks[1], "repository", { vm: "d" }), disks[1]);
    // what was condemned was sent again, what was not was not
    expect((await store.list("packs")).length).toBe(graceMs > 0 ? 3 : 2);
    await expectSound(store, points);
  });

  it("is that of the repository which is there now, should another stand in its place", async () => {
    const files = new Map<string, Buffer>();
    const store = emptyStore(files);
    const disk = bytes(size, 1);
    await exportDisk(store, disk, "repository");
    files.clear();
    const path = await exportDisk(store, disk, "repository");
    await expectSound(store, new Map([[path, disk]]));
    const earlier = new Map(files);
    await exportDisk(store, bytes(size, 2), "repository");
    // a copy from before is put back
    files.clear();
    for (const [name, content] of earlier) files.set(name, content);
    const again = await exportDisk(store, bytes(size, 2), "repository");
    await expectSound(
      store,
      new Map([
        [path, disk],
        [again, bytes(size, 2)],
      ]),
    );
  });
});

describe("of a chunk that is in two packs", () => {
  it.each([0, 1])("the one that is left is built on, once the other is condemned (%i)", async (condemned) => {
    const files = new Map<string, Buffer>();
    const store = emptyStore(files);
    const disk = bytes(size, 1);
    const larger = Buffer.concat([disk, bytes(size, 2)]);
    // both begin before either has sent anything
    const paths = await Promise.all([exportDisk(store, disk, "repository", { vm: "a" }), exportDisk(store, larger, "repository", { vm: "b" })]);
    const packs = (await store.list("packs")).map(({ path, bytes }) => ({ name: path.slice("packs/".length), bytes }));
    expect(packs).toHaveLength(2);
    await exportDisk(store, disk, "repository", { vm: "c" });
    const { name } = packs.sort((a, b) => a.bytes - b.bytes)[condemned] as { name: string };
    const id = randomUUID();
    files.set(`condemned/${id}.json`, Buffer.from(JSON.stringify({ id, at: clock.now(), packs: [name], segments: [] })));
    const path = await exportDisk(store, disk, "repository", { vm: "d" });
    expect(await newBytesOf(store, path)).toBe(0);
    expect((await contentOf(store, path)).equals(disk)).toBe(true);
    expect((await contentOf(store, paths[1])).equals(larger)).toBe(true);
  });
});

describe("the time for which an index is kept", () => {
  it("does not end while somebody reads what is new", async () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    try {
      const store = emptyStore();
      let isLate = false;
      const slow: Destination = {
        ...store,
        async list(prefix) {
          if (isLate && prefix === "packs") vi.advanceTimersByTime(60_000);
          return store.list(prefix);
        },
      };
      await exportDisk(slow, bytes(size, 1), "repository", { vm: "a" });
      await exportDisk(slow, bytes(size, 1), "repository", { vm: "b" });
      isLate = true;
      expect(await newBytesOf(store, await exportDisk(slow, bytes(size, 1), "repository", { vm: "c" }))).toBe(0);
    } finally {
      vi.useRealTimers();
    }
  });
});

describe("an index object that is cut between two exports", () => {
  it("promises nothing any more", async () => {
    const files = new Map<string, Buffer>();
    const store = emptyStore(files);
    const disk = bytes(size, 1);
    await exportDisk(store, disk, "repository", { vm: "a" });
    await exportDisk(store, disk, "repository", { vm: "b" });
    for (const { path, bytes } of await store.list("index")) files.set(path, (files.get(path) as Buffer).subarray(0, bytes - 10));
    const path = await exportDisk(store, disk, "repository", { vm: "c" });
    expect((await contentOf(store, path)).equals(disk)).toBe(true);
  });
});

describe("index objects that somebody deletes between two exports", () => {
  it("promise nothing any more, though their packs are there", async () => {
    const store = emptyStore();
    const disk = bytes(size, 1);
    const points = new Map([[await exportDisk(store, disk, "repository", { vm: "a" }), disk]]);
    await exportDisk(store, disk, "repository", { vm: "b" }).then((path) => points.set(path, disk));
    for (const { path } of await store.list("index")) await store.remove(path);
    points.set(await exportDisk(store, disk, "repository", { vm: "c" }), disk);
    await expectSound(store, points);
  });
});

describe("a compaction of a repository with many index objects", () => {
  it("joins them, though nothing is to be freed, and loses nothing", async () => {
    const store = emptyStore();
    const points = new Map<string, Buffer>();
    for (let i = 0; i < 40; i++) {
      const disk = bytes(size, i);
      points.set(await exportDisk(store, disk, "repository", { vm: `vm${i}` }), disk);
    }
    const indexes = async (): Promise<number> => (await store.list("index")).length;
    expect(await compactNow(store, { dryRun: true })).toMatchObject({ freedBytes: 0, condemnedBytes: 0 });
    expect(await indexes()).toBe(40);
    expect(await compactNow(store)).toMatchObject({ freedBytes: 0, condemnedBytes: 0 });
    expect(await indexes()).toBe(1);
    points.set(await exportDisk(store, bytes(size, 7), "repository", { vm: "twin" }), bytes(size, 7));
    expect((await store.list("packs")).length).toBe(40);
    await expectSound(store, points);
  });

  it.each([
    [10, 1, 2],
    [5, 1, 5],
  ])(
    "keeps nobody from reading while it replaces them; a listing takes %i ms, an object %i, a removal %i",
    { timeout: 60_000 },
    async (listMs, getMs, removeMs) => {
      const store = emptyStore();
      const disk = bytes(size, 1);
      const points = new Map<string, Buffer>();
      for (let i = 0; i < 100; i++) {
        const other = bytes(size, i);
        points.set(await exportDisk(store, other, "repository", { vm: `vm${i}` }), other);
      }
      /** What was so is heard of late. */
      const late = async <T>(ms: number, work: () => Promise<T>): Promise<T> => {
        const seen = await work();
        await sleep(ms);
        return seen;
      };
      const slow = (): Destination => ({
        ...store,
        list: (prefix) => late(listMs, () => store.list(prefix)),
        names: (prefix) => late(listMs, () => store.names(prefix)),
        get: (path, maxBytes) => late(getMs, () => store.get(path, maxBytes)),
        remove: (path) => late(removeMs, () => store.remove(path)),
      });
      let isOver = false;
      const compacting = compactNow(slow()).finally(() => (isOver = true));
      const [first] = points.keys();
      let looks = 0;
      for (; !isOver; looks++) {
        expect((await contentOf(slow(), first as string)).equals(bytes(size, 0))).toBe(true);
        points.set(await exportDisk(slow(), disk, "repository", { vm: `late${looks}` }), disk);
        expect(await checkRepository(await opened(slow()))).toMatchObject({ problems: [] });
      }
      await compacting;
      expect(looks).toBeGreaterThan(0);
      await expectSound(store, points);
    },
  );
});
