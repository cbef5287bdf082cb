import { randomBytes, randomUUID } from "node:crypto";
import { chmodSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, symlinkSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import type { Destination } from "../../src/destinations/destination.ts";
import { readMarker } from "../../src/exports/lineage.ts";
import { withDigest } from "../../src/model/digest.ts";
import { HypersdkError } from "../../src/model/errors.ts";
import { epochMsOf, instantOf } from "../../src/model/instant.ts";
import { checkRepository } from "../../src/repository/check.ts";
import { compactRepository } from "../../src/repository/compact.ts";
import { methods } from "../../src/repository/layout.ts";
import { PackWriter } from "../../src/repository/pack-writer.ts";
import { listPoints } from "../../src/repository/points.ts";
import { repairRepository } from "../../src/repository/repair.ts";
import { Repository } from "../../src/repository/repository.ts";
import { memoryDestination } from "../fakes/memory-destination.ts";
import { temporaryFolder } from "../support/cli.ts";
import { bytes, KiB } from "../support/disks.ts";
import { clock, contentOf, destinationAt, exportDisk } from "./support.ts";

const disk = bytes(3 * 128 * KiB + 1000, 1);
const opened = async (destination: Destination): Promise<Repository> => (await Repository.open(destination)) as Repository;
const compactNow = async (destination: Destination): Promise<unknown> =>
  compactRepository(await opened(destination), { now: clock.now(), id: randomUUID(), graceMs: 0, maxUnused: 0 });

async function exported(): Promise<{ readonly root: string; readonly destination: Destination; readonly path: string }> {
  const root = temporaryFolder();
  const destination = destinationAt(root);
  return { root, destination, path: await exportDisk(destination, disk, "repository") };
}

const largest = (folder: string): string =>
  readdirSync(folder)
    .map((name) => join(folder, name))
    .sort((a, b) => statSync(b).size - statSync(a).size)[0] as string;

/** A destination whose first removal in a folder waits until it is woken. */
function sleepy(destination: Destination, folder: "packs" | "index"): { readonly destination: Destination; readonly isAsleep: Promise<void>; wake(): void } {
  let wake = (): void => {};
  let fallAsleep = (): void => {};
  const isAsleep = new Promise<void>((resolve) => (fallAsleep = resolve));
  const woken = new Promise<void>((resolve) => (wake = resolve));
  let hasSlept = false;
  const slow: Destination = {
    ...destination,
    async remove(target) {
      if (target.startsWith(`${folder}/`) && !hasSlept) {
        hasSlept = true;
        fallAsleep();
        await woken;
      }
      return destination.remove(target);
    },
  };
  return { destination: slow, isAsleep, wake };
}

describe("a compaction that sleeps between its decision and its deed", () => {
  it("deletes nothing that was stored anew meanwhile, though its content is the same", async () => {
    const { destination, path } = await exported();
    await destination.remove(path);
    const slow = sleepy(destination, "packs");
    const late = compactNow(slow.destination);
    await slow.isAsleep;
    await compactNow(destination);
    const again = await exportDisk(destination, disk, "repository");
    slow.wake();
    await late;
    expect((await contentOf(destination, again)).equals(disk)).toBe(true);
    expect(await checkRepository(await opened(destination), { readData: 1 })).toMatchObject({ problems: [], brokenPoints: [] });
  });

  it("deletes nothing that a new point is built on, though another compaction spared it meanwhile", async () => {
    const { root, destination, path } = await exported();
    const manifest = readFileSync(join(root, path));
    await destination.remove(path);
    const slow = sleepy(destination, "index");
    const late = compactNow(slow.destination);
    await slow.isAsleep;
    // an export that is about to be refused, but has its manifest on the way while the other compaction looks
    const pending = join(root, path.replace(/\.json$/, ".pending"));
    mkdirSync(dirname(pending), { recursive: true });
    writeFileSync(pending, manifest);
    await compactNow(destination);
    rmSync(pending);
    const again = await exportDisk(destination, disk, "repository");
    slow.wake();
    await late;
    expect((await contentOf(destination, again)).equals(disk)).toBe(true);
    expect(await checkRepository(await opened(destination), { readData: 1 })).toMatchObject({ problems: [], brokenPoints: [] });
    await compactNow(destination);
    expect(await destination.list("condemned")).toEqual([]);
  });
});

describe("a pack that another compaction moves", () => {
  /** A pack of which a quarter is not used any longer, and a destination on which it is moved just before the given opening of it. */
  async function halfUsed(opening: number): Promise<{ readonly destination: Destination; readonly path: string; readonly content: Buffer }> {
    const { destination, path: first } = await exported();
    const content = Buffer.concat([bytes(128 * KiB, 2), disk.subarray(128 * KiB)]);
    const path = await exportDisk(destination, content, "repository");
    const [pack] = (await destination.list("packs")).sort((a, b) => b.bytes - a.bytes);
    await destination.remove(first);
    let openings = 0;
    const raced: Destination = {
      ...destination,
      async open(target) {
        if (target === pack?.path && ++openings === opening) {
          await compactNow(destination);
          expect((await destination.list("packs")).map((each) => each.path)).not.toContain(target);
        }
        return destination.open(target);
      },
    };
    return { destination: raced, path, content };
  }

  it.each([1, 2])("before check opens it for the %i. time is no damage", async (opening) => {
    const { destination } = await halfUsed(opening);
    expect(await checkRepository(await opened(destination), { readData: 1 })).toMatchObject({ problems: [], brokenPoints: [], points: 1 });
  });

  it("before this one could is left to that one", async () => {
    const { destination, path, content } = await halfUsed(1);
    await compactNow(destination);
    expect((await contentOf(destination, path)).equals(content)).toBe(true);
    expect(await checkRepository(await opened(destination), { readData: 1 })).toMatchObject({ problems: [], brokenPoints: [], unusedBytes: 0 });
  });

  it("and moves again, each time just before a restore opens it, is followed", async () => {
    const root = temporaryFolder();
    const destination = destinationAt(root);
    const chunks = [1, 2, 3, 4, 5].map((seed) => bytes(128 * KiB, seed));
    const paths: string[] = [];
    // the first pack has all of it, and loses a chunk with each point that goes
    for (let used = 5; used > 0; used--) paths.push(await exportDisk(destination, Buffer.concat(chunks.slice(0, used)), "repository"));
    const last = paths.pop() as string;
    let moved = 0;
    const raced: Destination = {
      ...destination,
      async open(target) {
        const going = target.startsWith("packs/") ? paths.shift() : undefined;
        if (going !== undefined) {
          await destination.remove(going);
          await compactNow(destination);
          await compactNow(destination);
          expect((await destination.list("packs")).map((each) => each.path)).not.toContain(target);
          moved++;
        }
        return destination.open(target);
      },
    };
    expect((await contentOf(raced, last)).equals(chunks[0] as Buffer)).toBe(true);
    expect(moved).toBe(4);
  });

  it.each([1, 2])("before repair opens it for the %i. time costs nothing", async (opening) => {
    const { destination, path, content } = await halfUsed(opening);
    expect(await repairRepository(await opened(destination), { now: clock.now() })).toMatchObject({ brokenPoints: [] });
    expect((await contentOf(destination, path)).equals(content)).toBe(true);
  });
});

describe("an export that fails in the middle", () => {
  it("has put whatever it will put before its lock is gone", async () => {
    // what does not shrink fills a pack of 16 MiB just then
    const content = randomBytes(20 * 1024 * KiB);
    const late: string[] = [];
    for (let failsAt = 17 * 1024 * KiB; failsAt < 20 * 1024 * KiB; failsAt += 256 * KiB) {
      const store = destinationAt(temporaryFolder());
      let isUnlocked = false;
      const destination: Destination = {
        ...store,
        remove(path) {
          isUnlocked ||= path.startsWith("locks/");
          return store.remove(path);
        },
        put(path, ...rest) {
          if (isUnlocked) late.push(path);
          return store.put(path, ...rest);
        },
      };
      await expect(exportDisk(destination, content, "repository", { failsAt })).rejects.toThrow("the disk cannot be read");
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    expect(late).toEqual([]);
  });
});

describe("a pack with a chunk whose id is all zeros, which no writer makes", () => {
  it("is used by no hole: check counts it, compact frees it", async () => {
    const destination = destinationAt(temporaryFolder());
    const path = await exportDisk(destination, Buffer.concat([bytes(300 * KiB, 1), Buffer.alloc(700 * KiB)]), "repository");
    const repository = await opened(destination);
    const writer = new PackWriter(repository);
    await writer.add({ id: Buffer.alloc(32), stored: Buffer.alloc(128 * KiB, 7), rawBytes: 128 * KiB, method: methods.stored });
    await writer.finish();
    expect((await checkRepository(repository)).unusedBytes).toBe(128 * KiB);
    const compacted = [0, 10].map((days) => instantOf(epochMsOf(clock.now()) + days * 86_400_000));
    const reports = [];
    for (const now of compacted) reports.push(await compactRepository(repository, { now, id: randomUUID(), graceMs: 1000, maxUnused: 0.1 }));
    expect(reports[1]?.freedBytes).toBeGreaterThan(128 * KiB);
    expect((await contentOf(destination, path)).length).toBe(1000 * KiB);
  });
});

describe("a lock that a killed export left behind", () => {
  it("holds back what it may have sent, and compaction says so", async () => {
    const { destination, path } = await exported();
    await destination.remove(path);
    await destination.put("locks/00000000-0000-4000-8000-000000000000.json", JSON.stringify({ at: clock.now(), operation: "export" }));
    const repository = await opened(destination);
    const report = await compactRepository(repository, { now: clock.now(), id: randomUUID(), graceMs: 0, maxUnused: 0 });
    expect(report).toMatchObject({ freedBytes: 0, condemnedBytes: 0, exportSince: clock.now() });
    expect(report.waitingBytes).toBeGreaterThan(disk.length / 2);
    const later = instantOf(epochMsOf(clock.now()) + 25 * 3_600_000);
    expect(await compactRepository(repository, { now: later, id: randomUUID(), graceMs: 0, maxUnused: 0 })).toMatchObject({
      waitingBytes: 0,
      exportSince: null,
    });
    expect(await destination.list("packs")).toEqual([]);
  });
});

describe("a key slot that goes while it is listed", () => {
  it("is that of somebody who made the same repository a moment later, and is nobody's damage", async () => {
    const root = temporaryFolder();
    const destination = destinationAt(root, true);
    const path = await exportDisk(destination, disk, "repository");
    const late = "keys/0000000000000000000000000000000f.json";
    const raced: Destination = {
      ...destination,
      async list(prefix) {
        if (prefix === "keys") await destination.put(late, "{}");
        return destination.list(prefix);
      },
      async get(target, maxBytes) {
        if (target === late) await destination.remove(late);
        return destination.get(target, maxBytes);
      },
    };
    let lists = 0;
    const once: Destination = { ...raced, list: (prefix) => (prefix === "keys" && ++lists > 1 ? destination : raced).list(prefix) };
    expect(await checkRepository(await opened(once))).toMatchObject({ problems: [], points: 1 });
    expect(lists).toBe(2);
    expect((await contentOf(once, path)).equals(disk)).toBe(true);
  });
});

describe("a repository that somebody changed by hand", () => {
  it.each(["packs", "points"])("with a symbolic link in %s is refused by those who would delete past it", async (folder) => {
    const { root, destination, path } = await exported();
    const object = folder === "packs" ? largest(join(root, "packs")) : join(root, path);
    const elsewhere = join(temporaryFolder(), "object");
    renameSync(object, elsewhere);
    symlinkSync(elsewhere, object);
    const refusal = { code: "ArtifactDamaged", message: expect.stringContaining("symbolic link") as string };
    await expect(compactNow(destination)).rejects.toMatchObject(refusal);
    await expect(checkRepository(await opened(destination))).rejects.toMatchObject(refusal);
    await expect(repairRepository(await opened(destination), { now: clock.now() })).rejects.toMatchObject(refusal);
    await expect(exportDisk(destination, disk, "repository")).rejects.toMatchObject(refusal);
  });

  it("whose pack was cut short is not built on: the next export sends it again, and all is whole", async () => {
    const { root, destination, path } = await exported();
    truncateSync(largest(join(root, "packs")), 100);
    await expect(contentOf(destination, path)).rejects.toMatchObject({ code: "ArtifactDamaged" });
    const again = await exportDisk(destination, disk, "repository");
    expect((await contentOf(destination, again)).equals(disk)).toBe(true);
    await repairRepository(await opened(destination), { now: clock.now() });
    expect((await contentOf(destination, path)).equals(disk)).toBe(true);
    expect(await checkRepository(await opened(destination), { readData: 1 })).toMatchObject({ problems: [], brokenPoints: [] });
  });

  it("whose config is gone does not become another one", async () => {
    const { root, destination, path } = await exported();
    const config = readFileSync(join(root, "config"));
    rmSync(join(root, "config"));
    await expect(exportDisk(destination, disk, "repository")).rejects.toMatchObject({
      code: "ArtifactDamaged",
      message: expect.stringContaining("config is gone") as string,
    });
    writeFileSync(join(root, "config"), JSON.stringify(withDigest({ ...(JSON.parse(config.toString()) as object), id: randomUUID(), digest: undefined })));
    expect((await checkRepository(await opened(destination))).problems).not.toEqual([]);
    writeFileSync(join(root, "config"), config);
    expect((await contentOf(destination, path)).equals(disk)).toBe(true);
  });

  it.each([0, 1, 32_768, 100_000, 2 ** 23, null])("whose config says chunks of %s bytes is refused", async (chunkBytes) => {
    const { root, destination } = await exported();
    const { digest: _, ...config } = JSON.parse(readFileSync(join(root, "config"), "utf8")) as Record<string, unknown>;
    writeFileSync(join(root, "config"), JSON.stringify(withDigest({ ...config, chunkBytes })));
    await expect(Repository.open(destination)).rejects.toMatchObject({ code: "ArtifactDamaged" });
  });

  it.each(["null", "{", '{"packs": 3}'])("whose list of what is condemned is %s is read all the same, and mended", async (text) => {
    const { root, destination, path } = await exported();
    mkdirSync(join(root, "condemned"));
    mkdirSync(join(root, "locks"), { recursive: true });
    writeFileSync(join(root, "condemned", `${randomUUID()}.json`), text);
    writeFileSync(join(root, "locks", `${randomUUID()}.json`), text);
    expect((await contentOf(destination, path)).equals(disk)).toBe(true);
    await compactNow(destination);
    const repository = await opened(destination);
    expect((await checkRepository(repository)).problems).toHaveLength(1);
    await repairRepository(repository, { now: clock.now() });
    expect(await checkRepository(repository, { readData: 1 })).toMatchObject({ problems: [], brokenPoints: [] });
    expect(await listPoints(destination)).toHaveLength(1);
  });

  it("with a manifest that asks too little of a segment loses nothing but that manifest", async () => {
    const { root, destination, path } = await exported();
    const { digest: _, ...manifest } = JSON.parse(readFileSync(join(root, path), "utf8")) as { digest: string; id: string; disks: { virtualBytes: number }[] };
    const forged = { ...manifest, id: `0000${manifest.id.slice(4)}`, disks: manifest.disks.map((each) => ({ ...each, virtualBytes: 512 })) };
    writeFileSync(join(root, path.replace(/-[0-9a-f]{8}\.json$/, `-${forged.id.slice(0, 8)}.json`)), JSON.stringify(withDigest(forged)));
    await repairRepository(await opened(destination), { now: clock.now() });
    expect((await contentOf(destination, path)).equals(disk)).toBe(true);
  });

  it("with a manifest of a time that is none is refused, though its digest is right", async () => {
    const { root, destination, path } = await exported();
    const { digest: _, ...manifest } = JSON.parse(readFileSync(join(root, path), "utf8")) as { digest: string; source: object };
    writeFileSync(join(root, path), JSON.stringify(withDigest({ ...manifest, source: { ...manifest.source, instant: "2026-99-01T00:00:00.000Z" } })));
    await expect(contentOf(destination, path)).rejects.toMatchObject({ code: "ArtifactDamaged", message: expect.stringContaining("is no time") as string });
  });

  it("with a manifest on its way that arrived, or that died, is not held back by it", async () => {
    const { root, destination, path } = await exported();
    const pending = path.replace(/\.json$/, ".pending");
    writeFileSync(join(root, pending), readFileSync(join(root, path)));
    await compactNow(destination);
    expect(readdirSync(join(root, "points"), { recursive: true })).not.toContain(pending.slice("points/".length));
    writeFileSync(join(root, pending), readFileSync(join(root, path)));
    utimesSync(join(root, pending), 1_600_000_000, 1_600_000_000);
    await destination.remove(path);
    await compactNow(destination);
    expect((await destination.list("packs")).length).toBe(0);
  });
});

/** Flips one byte of the first chunk of a pack. */
function rot(path: string): void {
  const content = readFileSync(path);
  content[50] = (content[50] as number) ^ 1;
  chmodSync(path, 0o600);
  writeFileSync(path, content);
}

const repairNow = async (destination: Destination) => repairRepository(await opened(destination), { now: clock.now() });

describe("a chunk that two packs hold, since two exports sent it at once", () => {
  async function twice(): Promise<{
    readonly root: string;
    readonly destination: Destination;
    readonly paths: readonly string[];
    readonly packs: readonly string[];
  }> {
    const root = temporaryFolder();
    const destination = destinationAt(root);
    await Repository.openOrCreate(destination, randomUUID(), clock.now());
    const paths = await Promise.all(["a", "b"].map((vm) => exportDisk(destination, disk, "repository", { vm })));
    const packs = readdirSync(join(root, "packs"));
    expect(packs).toHaveLength(2);
    return { root, destination, paths, packs };
  }

  it.each([0, 1])("is read from the other where one is damaged; compact takes no sound one away before repair has dropped the other (%i)", async (which) => {
    const { root, destination, paths, packs } = await twice();
    rot(join(root, "packs", packs[which] as string));
    for (const path of paths) expect((await contentOf(destination, path)).equals(disk)).toBe(true);
    const refused = await compactNow(destination).then(
      () => undefined,
      (error: unknown) => error,
    );
    if (refused) expect(refused).toMatchObject({ code: "ArtifactDamaged", message: expect.stringContaining(packs[which] as string) as string });
    for (const path of paths) expect((await contentOf(destination, path)).equals(disk)).toBe(true);
    expect((await repairNow(destination)).brokenPoints).toEqual([]);
    expect(await checkRepository(await opened(destination), { readData: 1 })).toMatchObject({ problems: [], brokenPoints: [] });
    await compactNow(destination);
    for (const path of paths) expect((await contentOf(destination, path)).equals(disk)).toBe(true);
  });

  it("is looked for again where another compaction takes away the copy that is about to be read", async () => {
    const { destination, paths } = await twice();
    let openings = 0;
    const raced: Destination = {
      ...destination,
      async open(target) {
        if (target.startsWith("packs/") && openings++ === 0) throw new HypersdkError("NotFound", `${target} is not there`);
        return destination.open(target);
      },
    };
    await compactNow(raced);
    expect(openings).toBeGreaterThan(1);
    expect(await destination.list("packs")).toHaveLength(1);
    for (const path of paths) expect((await contentOf(destination, path)).equals(disk)).toBe(true);
  });

  it("is not shadowed by a damaged pack that no index names and repair finds", async () => {
    for (const which of [0, 1]) {
      const { root, destination, paths, packs } = await twice();
      const lost = packs[which] as string;
      for (const { path, directories } of await (await opened(destination)).readIndexes())
        if (directories.some(({ name }) => name === lost)) await destination.remove(path);
      rot(join(root, "packs", lost));
      const report = await repairNow(destination);
      expect(report).toMatchObject({ brokenPoints: [], dropped: [`packs/${lost}`], foundPacks: 1 });
      await compactNow(destination);
      for (const path of paths) expect((await contentOf(destination, path)).equals(disk)).toBe(true);
    }
  });
});

describe("repair", () => {
  it("reads packs that no index names before it trusts them, and names the points that have lost data", async () => {
    const { root, destination, path } = await exported();
    rmSync(join(root, "index"), { recursive: true });
    rot(largest(join(root, "packs")));
    expect((await repairNow(destination)).brokenPoints).toEqual([path]);
    expect(await checkRepository(await opened(destination))).toMatchObject({ brokenPoints: [path] });
  });

  it("goes on where a folder stands in the place of a pack", async () => {
    const { root, destination, path } = await exported();
    const second = await exportDisk(destination, bytes(128 * KiB, 7), "repository", { vm: "second" });
    const pack = largest(join(root, "packs"));
    rmSync(pack);
    mkdirSync(pack);
    expect((await repairNow(destination)).brokenPoints).toEqual([path]);
    expect((await contentOf(destination, second)).equals(bytes(128 * KiB, 7))).toBe(true);
  });

  it("takes what it can from packs that lie under a wrong name", async () => {
    const renames: ((packs: readonly string[]) => void)[] = [
      ([a, b]) => {
        renameSync(a as string, `${a}.aside`);
        renameSync(b as string, a as string);
        renameSync(`${a}.aside`, b as string);
      },
      ([a]) => renameSync(a as string, join(dirname(a as string), "ab".repeat(32))),
    ];
    for (const rename of renames) {
      const { root, destination, path } = await exported();
      const other = bytes(2 * 128 * KiB, 7);
      const second = await exportDisk(destination, other, "repository", { vm: "second" });
      rename(readdirSync(join(root, "packs")).map((name) => join(root, "packs", name)));
      expect((await repairNow(destination)).brokenPoints).toEqual([]);
      expect((await contentOf(destination, path)).equals(disk)).toBe(true);
      expect((await contentOf(destination, second)).equals(other)).toBe(true);
      expect(await checkRepository(await opened(destination), { readData: 1 })).toMatchObject({ problems: [], brokenPoints: [] });
    }
  });
});

describe("a manifest that is none", () => {
  it.each(["null", "7", '"text"', "[]", JSON.stringify(withDigest({ disks: [null] }))])(
    "%s is a damaged point, and keeps nobody from looking at the others",
    async (text) => {
      const { root, destination, path } = await exported();
      const second = await exportDisk(destination, bytes(128 * KiB, 7), "repository", { vm: "second" });
      writeFileSync(join(root, path), text);
      expect(await checkRepository(await opened(destination))).toMatchObject({ brokenPoints: [path] });
      await expect(compactNow(destination)).rejects.toMatchObject({ code: "ArtifactDamaged" });
      expect((await repairNow(destination)).brokenPoints).toEqual([path]);
      expect((await contentOf(destination, second)).equals(bytes(128 * KiB, 7))).toBe(true);
    },
  );

  it("of a newer version keeps everything from being freed", async () => {
    const { root, destination, path } = await exported();
    const { digest: _, ...manifest } = JSON.parse(readFileSync(join(root, path), "utf8")) as { digest: string };
    writeFileSync(join(root, path), JSON.stringify(withDigest({ ...manifest, formatVersion: 2 })));
    await expect(compactNow(destination)).rejects.toMatchObject({ code: "Failed", message: expect.stringContaining("a newer hypersdk wrote it") as string });
  });
});

describe("a destination without its marker", () => {
  it("is empty where no repository is, is known where one is, and is neither where that cannot be read", async () => {
    const destination = memoryDestination({ name: "d", url: "memory:" });
    expect(await readMarker(destination)).toBeUndefined();
    await destination.put("config", "of another program");
    expect(await readMarker(destination)).toBeUndefined();
    await destination.remove("config");
    await exportDisk(destination, bytes(1000, 1), "repository");
    await expect(readMarker(destination)).rejects.toMatchObject({ code: "DestinationForeign", message: expect.stringContaining("is gone") as string });
    const failing: Destination = {
      ...destination,
      async get(path, maxBytes) {
        if (path === "config") throw new HypersdkError("DestinationUnreachable", "EIO");
        return destination.get(path, maxBytes);
      },
    };
    await expect(readMarker(failing)).rejects.toMatchObject({ code: "DestinationUnreachable" });
  });
});
