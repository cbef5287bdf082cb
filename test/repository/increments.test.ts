import { randomFillSync, randomUUID } from "node:crypto";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Destination } from "../../src/destinations/destination.ts";
import { type Exported, exportVm } from "../../src/exports/export-vm.ts";
import type { ChunkedDisk } from "../../src/exports/manifest.ts";
import { finderOfPoints } from "../../src/exports/verify.ts";
import { HypersdkError } from "../../src/model/errors.ts";
import { instantOf } from "../../src/model/instant.ts";
import type { VmPath } from "../../src/model/vm-path.ts";
import { checkRepository } from "../../src/repository/check.ts";
import { compactRepository } from "../../src/repository/compact.ts";
import { repairRepository } from "../../src/repository/repair.ts";
import { Repository } from "../../src/repository/repository.ts";
import { failingDestination } from "../fakes/failing-destination.ts";
import { memoryDestination } from "../fakes/memory-destination.ts";
import { newTracker, type Tracker, trackingProvider } from "../fakes/tracking-provider.ts";
import { bytes, KiB, MiB, random } from "../support/disks.ts";
import { contentOf, sealing } from "./support.ts";

const chunk = 128 * KiB;

interface Options {
  readonly mode?: "full" | "incremental";
  readonly fraction?: () => number;
  readonly atMs?: number;
  readonly onLie?: (offset: number) => void;
}

function exported(
  destination: Destination,
  disk: Buffer,
  tracker: Tracker,
  { mode = "incremental", fraction = () => 0.5, atMs = 0, onLie = () => {} }: Options = {},
): Promise<Exported> {
  const now = instantOf(1_700_000_000_000 + atMs);
  const provider = trackingProvider("web", disk, tracker);
  return exportVm(
    { ...provider, snapshot: async (identity, options) => ({ ...(await provider.snapshot(identity, options)), instant: now }) },
    destination,
    {
      pointId: randomUUID(),
      runId: randomUUID(),
      lineage: "test",
      toolVersion: "0",
      schedule: "nightly",
      kind: "scheduled",
      fireTime: now,
      commit: null,
      identity: "web",
      sourceIdentity: "web",
      vmPath: "/dc/vm/web" as VmPath,
      layout: "repository",
      format: "qcow2",
      compression: "zstd",
      mode,
      modeReason: "as the plan said",
      fullReadEveryMs: 7 * 86_400_000,
      estimates: { readBytes: 0, storedBytes: null, durationMs: null },
    },
    { clock: { now: () => now, sleep: async () => {} }, random: { fraction } },
    { begins() {}, read() {}, diskDone() {}, lied: (_, offset) => onLie(offset) },
    new AbortController().signal,
  );
}

const diskOf = ({ manifest }: Exported): ChunkedDisk => manifest.disks[0] as ChunkedDisk;

describe("an export that was cut off", () => {
  it("has its packs in an index, so that the next one does not send them again", async () => {
    const store = memoryDestination({ name: "d", url: "memory:" });
    let packs = 0;
    const full: Destination = {
      ...store,
      put(path, data, options) {
        if (path.startsWith("packs/") && ++packs === 3) throw new HypersdkError("DestinationFull", "no space left");
        return store.put(path, data, options);
      },
    };
    // nothing of it shrinks: two packs arrive, the third does not
    const disk = randomFillSync(Buffer.alloc(40 * MiB));
    await expect(exported(full, disk, newTracker())).rejects.toThrow("no space left");
    const again = await exported(store, disk, newTracker());
    expect(diskOf(again)).toMatchObject({ dataBytes: 40 * MiB });
    expect(again.storedBytes).toBeLessThan(9 * MiB);
  });
});

describe("an export that fails at a list of its chunks", () => {
  it.each([false, true])("has ended when it says so: nothing is written behind its lock; sealed: %s", async (isSealed) => {
    const memory = memoryDestination({ name: "d", url: "memory:" });
    const store = isSealed ? sealing(memory) : memory;
    let [begun, ended] = [0, 0];
    const late: Destination = {
      ...store,
      async put(path, data, options) {
        begun++;
        try {
          if (path.startsWith("segments/")) throw new HypersdkError("DestinationFull", "no space left");
          if (path.startsWith("packs/") || path.startsWith("index/")) await new Promise((resolve) => setTimeout(resolve, 30));
          await store.put(path, data, options);
        } finally {
          ended++;
        }
      },
    };
    await expect(exported(late, randomFillSync(Buffer.alloc(20 * MiB)), newTracker())).rejects.toThrow("no space left");
    const atEnd = begun;
    expect(ended).toBe(begun);
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(begun).toBe(atEnd);
    const disk = randomFillSync(Buffer.alloc(2 * MiB));
    expect((await contentOf(store, (await exported(store, disk, newTracker())).manifestPath)).equals(disk)).toBe(true);
  });
});

describe("an increment with changed blocks", () => {
  it("reads what changed and nothing else, and is a whole restore point with the hash of a whole read", async () => {
    const destination = memoryDestination({ name: "d", url: "memory:" });
    const tracker = newTracker();
    const disk = bytes(20 * chunk + 1000, 1);
    disk.fill(0, 4 * chunk, 6 * chunk);
    expect(diskOf(await exported(destination, disk, tracker))).toMatchObject({
      mode: "full",
      reason: "the first export of this disk",
      readBytes: disk.length - 2 * chunk,
    });
    bytes(100, 9).copy(disk, 2 * chunk + 5);
    disk.fill(0, 10 * chunk, 11 * chunk);
    bytes(100, 10).copy(disk, 5 * chunk);
    bytes(50, 11).copy(disk, 20 * chunk + 900);
    tracker.readBytes = 0;
    const second = await exported(destination, disk, tracker, { atMs: 3600_000 });
    expect(diskOf(second)).toMatchObject({
      mode: "incremental",
      reason: expect.stringMatching(/^changed blocks since 2023-11-14T22:13:20/) as string,
      newBytes: 2 * chunk + 1000,
    });
    // and the last chunk of those that are kept, which a disk that was cut and grew again would have lost in part; holes are not read
    expect(tracker.readBytes).toBe(2 * chunk + 64 * KiB + 1000);
    expect(await contentOf(destination, second.manifestPath)).toEqual(disk);
    const whole = await exported(destination, disk, tracker, { mode: "full", atMs: 7200_000 });
    expect(diskOf(whole)).toMatchObject({
      mode: "full",
      reason: "as the plan said",
      newBytes: 0,
      contentHash: diskOf(second).contentHash,
      dataBytes: diskOf(second).dataBytes,
    });
    expect(diskOf(whole).segments).toEqual(diskOf(second).segments);
  });

  it("reads everything when the mark is gone, the size is another, or the last whole read is long ago", async () => {
    const destination = memoryDestination({ name: "d", url: "memory:" });
    const tracker = newTracker();
    const disk = bytes(4 * chunk, 1);
    await exported(destination, disk, tracker);
    tracker.marks.clear();
    expect(diskOf(await exported(destination, disk, tracker, { atMs: 1000 }))).toMatchObject({ mode: "full", reason: "its mark is gone" });
    const larger = Buffer.concat([disk, bytes(chunk, 2)]);
    const grown = await exported(destination, larger, tracker, { atMs: 2000 });
    expect(diskOf(grown)).toMatchObject({ mode: "full", reason: `its size was ${4 * chunk} bytes` });
    expect(diskOf(await exported(destination, larger, tracker, { atMs: 6 * 86_400_000 }))).toMatchObject({
      mode: "incremental",
      wholeReadAt: grown.manifest.source.instant,
    });
    expect(diskOf(await exported(destination, larger, tracker, { atMs: 7 * 86_400_000 + 3000 }))).toMatchObject({
      mode: "full",
      reason: "all of it was read 7d ago for the last time",
    });
  });

  it("goes on from the last point, of several within one second too", async () => {
    const destination = memoryDestination({ name: "d", url: "memory:" });
    const tracker = newTracker();
    const disk = bytes(4 * chunk, 1);
    await exported(destination, disk, tracker);
    for (let atMs = 50; atMs < 1000; atMs += 50) {
      bytes(100, atMs).copy(disk, atMs * 100);
      expect(diskOf(await exported(destination, disk, tracker, { atMs }))).toMatchObject({ mode: "incremental", newBytes: chunk });
    }
  });

  it("goes on from the last point whatever a clock that was ahead has dated", async () => {
    const destination = memoryDestination({ name: "d", url: "memory:" });
    const tracker = newTracker();
    const disk = bytes(4 * chunk, 1);
    await exported(destination, disk, tracker);
    await exported(destination, disk, tracker, { atMs: 365 * 86_400_000 });
    // the mark of that one is the only one left: what it is not known to cover is read
    expect(diskOf(await exported(destination, disk, tracker, { atMs: 3600_000 })).mode).toBe("full");
    bytes(100, 7).copy(disk, chunk);
    expect(diskOf(await exported(destination, disk, tracker, { atMs: 7200_000 }))).toMatchObject({ mode: "incremental", newBytes: chunk });
  });

  it("finds what a disk lost when it was cut and grew again, of which no tracker tells", async () => {
    const destination = memoryDestination({ name: "d", url: "memory:" });
    const tracker = newTracker();
    const disk = bytes(12 * chunk, 1);
    await exported(destination, disk, tracker);
    for (const [i, cut] of [12 * chunk - 100_000, 7 * chunk, 3 * chunk + 70_000].entries()) {
      disk.fill(0, cut);
      tracker.leavesOut = (offset) => offset + 64 * KiB > cut;
      const point = await exported(destination, disk, tracker, { atMs: (i + 1) * 1000 });
      expect(diskOf(point).mode).toBe("incremental");
      expect((await contentOf(destination, point.manifestPath)).equals(disk)).toBe(true);
    }
  });

  it("reads a chunk again that the repository has lost", async () => {
    const files = new Map<string, Buffer>();
    const destination = memoryDestination({ name: "d", url: "memory:" }, files);
    const tracker = newTracker();
    const disk = bytes(4 * chunk, 1);
    await exported(destination, disk, tracker);
    for (const path of files.keys()) if (path.startsWith("packs/")) files.delete(path);
    const again = await exported(destination, disk, tracker, { atMs: 1000 });
    expect(diskOf(again)).toMatchObject({ mode: "incremental", newBytes: 4 * chunk });
    expect(await contentOf(destination, again.manifestPath)).toEqual(disk);
    for (const path of files.keys()) if (path.startsWith("segments/")) files.delete(path);
    expect(await contentOf(destination, (await exported(destination, disk, tracker, { atMs: 2000 })).manifestPath)).toEqual(disk);
  });

  it("asks a mark that was found wanting no more, also of a machine that is off and sets none", async () => {
    const destination = memoryDestination({ name: "d", url: "memory:" });
    const tracker = newTracker();
    const disk = bytes(4 * chunk, 1);
    await exported(destination, disk, tracker);
    tracker.isOff = true;
    bytes(chunk, 2).copy(disk, chunk);
    tracker.leavesOut = (offset) => offset >= chunk && offset < 2 * chunk;
    const sampled = { fraction: () => 0.05 };
    const next = random(3);
    let calls = 0;
    expect(diskOf(await exported(destination, disk, tracker, { atMs: 1000, fraction: () => (calls++ === 0 ? sampled.fraction() : next()) }))).toMatchObject({
      mode: "full",
      marksRefused: true,
    });
    for (const atMs of [2000, 3000]) {
      bytes(chunk, atMs).copy(disk, chunk);
      const point = await exported(destination, disk, tracker, { atMs });
      expect(diskOf(point).reason).toContain("not tracked");
      expect((await contentOf(destination, point.manifestPath)).equals(disk)).toBe(true);
    }
    tracker.isOff = false;
    tracker.leavesOut = () => false;
    await exported(destination, disk, tracker, { atMs: 4000 });
    bytes(100, 9).copy(disk, 5);
    expect(diskOf(await exported(destination, disk, tracker, { atMs: 5000 }))).toMatchObject({ mode: "incremental", newBytes: chunk });
  });

  it("reads what a list of chunks that is damaged or gone would have told, holes too", async () => {
    for (const spoil of [
      (files: Map<string, Buffer>, path: string) => files.delete(path),
      (files: Map<string, Buffer>, path: string) => files.set(path, bytes(100, 3)),
    ]) {
      const files = new Map<string, Buffer>();
      const destination = memoryDestination({ name: "d", url: "memory:" }, files);
      const tracker = newTracker();
      const disk = bytes(12 * chunk, 1);
      disk
        .fill(0, 0, 2 * chunk)
        .fill(0, 5 * chunk, 6 * chunk)
        .fill(0, 10 * chunk);
      await exported(destination, disk, tracker);
      for (const path of files.keys()) if (path.startsWith("segments/")) spoil(files, path);
      const again = await exported(destination, disk, tracker, { atMs: 1000 });
      expect(diskOf(again)).toMatchObject({ mode: "incremental", newBytes: 0 });
      expect(await contentOf(destination, again.manifestPath)).toEqual(disk);
    }
  });

  it("finds a tracker that leaves out a change, in the sample, and reads everything then", async () => {
    const tracker = newTracker();
    const disk = Buffer.concat(Array<Buffer>(40).fill(bytes(chunk, 1)));
    for (const victim of [3 * chunk, 20 * chunk]) {
      const destination = memoryDestination({ name: "d", url: "memory:" });
      await exported(destination, disk, tracker);
      bytes(chunk, 77 + victim).copy(disk, victim);
      tracker.leavesOut = (offset) => offset >= victim && offset < victim + chunk;
      // the first number decides that this is the one in ten, the others which chunks: of 40 all but a few are among 128 tries
      const next = random(5);
      let isFirst = true;
      const lies: number[] = [];
      const point = await exported(destination, disk, tracker, {
        atMs: 1000,
        fraction() {
          if (!isFirst) return next();
          isFirst = false;
          return 0.05;
        },
        onLie: (offset) => lies.push(offset),
      });
      expect(lies).toEqual([victim]);
      expect(diskOf(point)).toMatchObject({ mode: "full", reason: expect.stringContaining("left out a change") as string });
      expect(await contentOf(destination, point.manifestPath)).toEqual(disk);
      tracker.leavesOut = () => false;
    }
  });

  it.each(["plain", "sealed"])("is right whatever is written, fails, expires and is compacted between (%s)", { timeout: 240_000 }, async (kind) => {
    const write = fc.record({ kind: fc.constant("write" as const), at: fc.nat(9 * chunk), length: fc.integer({ min: 1, max: chunk }), seed: fc.nat(3) });
    const step = fc.oneof(
      { weight: 6, arbitrary: write },
      { weight: 4, arbitrary: fc.record({ kind: fc.constant("export" as const), sampled: fc.boolean() }) },
      { weight: 2, arbitrary: fc.record({ kind: fc.constant("failed export" as const), call: fc.nat(25) }) },
      { weight: 1, arbitrary: fc.record({ kind: fc.constant("reset" as const) }) },
      { weight: 1, arbitrary: fc.record({ kind: fc.constant("expire" as const), which: fc.nat(5) }) },
      { weight: 1, arbitrary: fc.record({ kind: fc.constant("compact" as const) }) },
    );
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 4, maxLength: 25 }), async (steps) => {
        const store = memoryDestination({ name: "d", url: "memory:" });
        const wrap = kind === "sealed" ? sealing : (each: Destination) => each;
        const destination = wrap(store);
        const tracker = newTracker();
        const disk = Buffer.alloc(9 * chunk + 777);
        const points = new Map<string, Buffer>();
        let atMs = 0;
        for (const each of [...steps, { kind: "export" as const, sampled: true }]) {
          atMs += 1000;
          if (each.kind === "write") {
            const length = Math.min(each.length, disk.length - each.at);
            if (each.seed === 0) disk.fill(0, each.at, each.at + length);
            else bytes(length, each.seed).copy(disk, each.at);
          } else if (each.kind === "export") {
            const { manifestPath } = await exported(destination, disk, tracker, { atMs, fraction: each.sampled ? random(atMs) : () => 0.9 });
            points.set(manifestPath, Buffer.from(disk));
          } else if (each.kind === "failed export") {
            // it may also come through, when the call that fails is none that it makes
            const failing = wrap(failingDestination(store, each.call, "lost answer"));
            const done = await exported(failing, disk, tracker, { atMs }).catch(() => undefined);
            if (done) points.set(done.manifestPath, Buffer.from(disk));
          } else if (each.kind === "reset") tracker.marks.clear();
          else if (each.kind === "expire") {
            const path = [...points.keys()][each.which % Math.max(1, points.size)];
            if (path !== undefined) await store.remove(path);
            if (path !== undefined) points.delete(path);
          } else {
            const repository = await Repository.open(destination);
            if (repository) await compactRepository(repository, { now: instantOf(1_700_000_000_000 + atMs), id: randomUUID(), graceMs: 0, maxUnused: 0 });
          }
        }
        for (const [path, content] of points) expect((await contentOf(destination, path)).equals(content)).toBe(true);
        const { problems } = await checkRepository((await Repository.open(destination)) as Repository, { readData: 1 });
        expect(problems).toEqual([]);
      }),
      { numRuns: Number(process.env["INCREMENT_CASES"] ?? (kind === "sealed" ? 8 : 60)), seed: 11 },
    );
  });
});

describe("beside others", () => {
  it("check and repair find no damage where exports publish point after point while they look", async () => {
    const inner = memoryDestination({ name: "d", url: "memory:" });
    const tracker = newTracker();
    const disk = bytes(4 * chunk, 1);
    await exported(inner, disk, tracker);
    let points = 1;
    /** Between any two looks. */
    const meanwhile = async <T>(look: () => Promise<T>): Promise<T> => {
      const seen = await look();
      bytes(chunk, 50 + points).copy(disk, (points % 4) * chunk);
      await exported(inner, disk, tracker, { atMs: points++ * 1000 });
      return seen;
    };
    const destination: Destination = {
      ...inner,
      list: (prefix) => meanwhile(() => inner.list(prefix)),
      names: (prefix) => meanwhile(() => inner.names(prefix)),
    };
    const repository = (await Repository.open(destination)) as Repository;
    expect(await checkRepository(repository, { readData: 1 })).toMatchObject({ problems: [], brokenPoints: [] });
    expect(await repairRepository(repository, { now: instantOf(0) })).toMatchObject({ problems: [], brokenPoints: [], dropped: [] });
    const own = (await Repository.open(inner)) as Repository;
    expect(await checkRepository(own, { readData: 1 })).toMatchObject({ problems: [], points });
  });

  it("a point whose packs were condemned and are spared is there: only nothing new is built on them", async () => {
    const files = new Map<string, Buffer>();
    const destination = memoryDestination({ name: "d", url: "memory:" }, files);
    const tracker = newTracker();
    const { manifestPath } = await exported(destination, bytes(4 * chunk, 1), tracker);
    const names = (folder: string): string[] =>
      [...files.keys()].filter((path) => path.startsWith(`${folder}/`)).map((path) => path.split("/").at(-1) as string);
    const id = randomUUID();
    files.set(`condemned/${id}.json`, Buffer.from(JSON.stringify({ id, at: instantOf(0), packs: names("packs"), segments: names("segments") })));
    await finderOfPoints(destination)(manifestPath);
    expect(diskOf(await exported(destination, bytes(4 * chunk, 1), tracker, { atMs: 1000 })).newBytes).toBe(4 * chunk);
    for (const name of names("packs")) files.delete(`packs/${name}`);
    await expect(finderOfPoints(destination)(manifestPath)).rejects.toMatchObject({ code: "ArtifactDamaged" });
  });
});
