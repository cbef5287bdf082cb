import { randomUUID } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { beforeEach, describe, expect, it, vi } from "vitest";

vi.mock("node:fs/promises", async (load) => (await import("./recorded-fs.ts")).recording(await load()));

import type { Destination } from "../../src/destinations/destination.ts";
import { checkRepository } from "../../src/repository/check.ts";
import { compactRepository } from "../../src/repository/compact.ts";
import { addSlot, unlock } from "../../src/repository/keys.ts";
import { listPoints } from "../../src/repository/points.ts";
import { Repository } from "../../src/repository/repository.ts";
import { clock, contentOf, destinationAt, exportDisk } from "../repository/support.ts";
import { bytes, KiB } from "../support/disks.ts";
import { afterCrash, type Loss, operations } from "./recorded-fs.ts";

/** Every operation with `npm run test:crash`; else each in its turn. */
const isWhole = process.env["CRASH"] === "whole";
const strideOf = (layout: Layout): number => (isWhole ? 1 : layout === "sealed" ? 37 : 13);
const losses: readonly Loss[] = [
  "nothing",
  "all",
  "contents",
  { tornAt: 512 },
  { tornAt: 4096 },
  { namesOf: 0 },
  { namesOf: 1 },
  { namesOf: 2 },
  { namesOf: 3 },
  { namesOf: 4 },
];
const chunk = 128 * KiB;

/** A disk of ten chunks, of which the versions differ in one each: so many that its first pack is written past the page cache. */
function disk(version: number): Buffer {
  const content = bytes(9 * chunk + 1000, 1);
  bytes(chunk, 50 + version).copy(content, (version % 4) * chunk);
  return content;
}

type Layout = "image" | "repository" | "sealed";

const layoutOf = (layout: Layout): "image" | "repository" => (layout === "image" ? "image" : "repository");

async function listed(destination: Destination, layout: Layout): Promise<string[]> {
  if (layout !== "image") return (await listPoints(destination)).map(({ path }) => path);
  return (await destination.list()).filter(({ path, isPartial }) => !isPartial && path.endsWith("/manifest.json")).map(({ path }) => path);
}

/** When a point was published for good, and when its removal began: counts of operations. */
interface Life {
  readonly content: Buffer;
  from: number;
  until: number;
}

/** Does the work once, noting every operation; then tries each crash, on a copy. */
async function tryCrashes(layout: Layout, work: (destination: Destination, lives: Map<string, Life>) => Promise<void>): Promise<number> {
  const root = mkdtempSync(join(tmpdir(), "hypersdk-crash-"));
  const lives = new Map<string, Life>();
  let tried = 0;
  try {
    operations.length = 0;
    await work(destinationAt(root, layout === "sealed"), lives);
    const all = [...operations];
    for (let count = 0; count <= all.length; count++) {
      for (const [i, loss] of losses.entries()) {
        if ((count + i) % strideOf(layout) !== 0) continue;
        tried++;
        const copy = mkdtempSync(join(tmpdir(), "hypersdk-crashed-"));
        try {
          const { folders, files } = afterCrash(all, count, loss, root);
          for (const folder of folders) mkdirSync(join(copy, folder), { recursive: true });
          for (const [path, content] of files) {
            mkdirSync(dirname(join(copy, path)), { recursive: true });
            writeFileSync(join(copy, path), content);
          }
          await holds(copy, layout, lives, count, `after ${count} of ${all.length} operations, ${JSON.stringify(loss)} lost`);
        } finally {
          rmSync(copy, { recursive: true, force: true });
        }
      }
    }
    return tried;
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}

/** What must hold after any crash: everything listed restores, nothing published is lost, and the next run goes on. */
async function holds(root: string, layout: Layout, lives: ReadonlyMap<string, Life>, count: number, when: string): Promise<void> {
  const destination = destinationAt(root, layout === "sealed");
  const points = await listed(destination, layout);
  for (const path of points) {
    const life = lives.get(path);
    // a compaction's or an expiry's point that is let go may be on its way out, but what is listed is whole
    expect([when, path, (await contentOf(destination, path)).equals(life?.content ?? Buffer.alloc(0))]).toEqual([when, path, true]);
  }
  for (const [path, { from, until }] of lives)
    if (from <= count && count < until) expect([when, points]).toEqual([when, expect.arrayContaining([path]) as string[]]);
  const next = disk(7);
  const path = await exportDisk(destination, next, layoutOf(layout));
  expect((await contentOf(destination, path)).equals(next)).toBe(true);
  if (layout === "image") return;
  const repository = (await Repository.open(destination)) as Repository;
  await compactRepository(repository, { now: clock.now(), id: randomUUID(), graceMs: 0, maxUnused: 0 });
  const { problems, brokenPoints } = await checkRepository(repository, { readData: 1 });
  expect([when, problems, brokenPoints]).toEqual([when, [], []]);
  expect((await contentOf(destination, path)).equals(next)).toBe(true);
}

beforeEach(() => {
  operations.length = 0;
});

describe("a crash behind any operation of the file system", () => {
  it("of exports as images, and of a removal, lists nothing half and loses nothing whole", { timeout: 3_600_000 }, async () => {
    const tried = await tryCrashes("image", async (destination, lives) => {
      for (const version of [0, 1]) {
        const runId = randomUUID();
        const content = disk(version);
        const before = operations.length;
        const path = await exportDisk(destination, content, "image", { runId });
        lives.set(path, { content, from: operations.length, until: Number.POSITIVE_INFINITY });
        expect(operations.length).toBeGreaterThan(before);
      }
      const [first] = lives;
      if (!first) throw new Error("nothing was exported");
      first[1].until = operations.length;
      const folder = dirname(first[0]);
      await destination.remove(first[0]);
      for (const { path } of await destination.list(folder)) await destination.remove(path);
    });
    expect(tried).toBeGreaterThan(20);
  });

  it.each(["repository", "sealed"] as const)(
    "of exports into a %s, of an expiry, a change of keys and a compaction, lists nothing half and loses nothing whole",
    { timeout: 3_600_000 },
    async (layout) => {
      const tried = await tryCrashes(layout, async (destination, lives) => {
        const paths: string[] = [];
        for (const version of [0, 1, 2]) {
          const content = disk(version);
          const path = await exportDisk(destination, content, "repository");
          paths.push(path);
          lives.set(path, { content, from: operations.length, until: Number.POSITIVE_INFINITY });
        }
        for (const path of paths.slice(0, 2)) {
          (lives.get(path) as Life).until = operations.length;
          await destination.remove(path);
        }
        const repository = (await Repository.open(destination)) as Repository;
        if (layout === "sealed") {
          const { id } = repository.config;
          await destination.remove(await addSlot(destination, id, await unlock(destination, id), "another way in", clock.now()));
        }
        await compactRepository(repository, { now: clock.now(), id: randomUUID(), graceMs: 0, maxUnused: 0 });
      });
      expect(tried).toBeGreaterThan(50);
    },
  );
});
