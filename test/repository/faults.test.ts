import { randomUUID } from "node:crypto";
import { describe, expect, it } from "vitest";
import type { Destination } from "../../src/destinations/destination.ts";
import { HypersdkError } from "../../src/model/errors.ts";
import { checkRepository } from "../../src/repository/check.ts";
import { compactRepository } from "../../src/repository/compact.ts";
import { listPoints } from "../../src/repository/points.ts";
import { Repository } from "../../src/repository/repository.ts";
import { type Fault, failingDestination } from "../fakes/failing-destination.ts";
import { memoryDestination } from "../fakes/memory-destination.ts";
import { bytes, KiB } from "../support/disks.ts";
import { clock, contentOf, exportDisk, sealing } from "./support.ts";

const chunk = 128 * KiB;
const faults: readonly Fault[] = [{ code: "DestinationFull" }, { code: "DestinationUnreachable" }, "lost answer", "stale list"];

function disk(version: number): Buffer {
  const content = bytes(3 * chunk + 1000, 1);
  bytes(chunk, 50 + version).copy(content, (version % 3) * chunk);
  return content;
}

/** Two exports, an expiry, a compaction: what is done in the life of a repository. Each step may fail; the next goes on. */
async function live(destination: Destination, contents: Map<string, Buffer>): Promise<void> {
  const may = async (work: () => Promise<void>): Promise<void> => {
    try {
      await work();
    } catch (error) {
      if (!(error instanceof HypersdkError)) throw error;
    }
  };
  for (const version of [1, 2])
    await may(async () => {
      const content = disk(version);
      contents.set(await exportDisk(destination, content, "repository"), content);
    });
  await may(async () => {
    const [first] = await listPoints(destination);
    if (first) await destination.remove(first.path);
  });
  await may(async () => {
    const repository = await Repository.open(destination);
    if (repository) await compactRepository(repository, { now: clock.now(), id: randomUUID(), graceMs: 0, maxUnused: 0 });
  });
}

async function calls(wrap: (destination: Destination) => Destination): Promise<number> {
  const counting = failingDestination(memoryDestination({ name: "d", url: "memory:" }), -1, "lost answer");
  await live(wrap(counting), new Map());
  return counting.calls;
}

const plain = (destination: Destination): Destination => destination;
const cases: readonly (readonly [Fault, "plain" | "sealed"])[] = [...faults.map((fault) => [fault, "plain"] as const), ["lost answer", "sealed"]];

describe("a store of which any one call fails", () => {
  it.each(cases)("%j, %s: what is listed restores, and the next run goes on", { timeout: 600_000 }, async (fault, kind) => {
    const wrap = kind === "sealed" ? sealing : plain;
    const most = await calls(wrap);
    expect(most).toBeGreaterThan(40);
    for (let failsAt = 0; failsAt < most; failsAt++) {
      const files = new Map<string, Buffer>();
      const store = wrap(memoryDestination({ name: "d", url: "memory:" }, files));
      const contents = new Map<string, Buffer>();
      await live(wrap(failingDestination(store, failsAt, fault)), contents);
      const when = `call ${failsAt} of ${most}`;
      for (const { path } of await listPoints(store)) {
        const content = await contentOf(store, path);
        // one whose answer was lost is there all the same: it is one of the two disks
        expect([when, path, [disk(1), disk(2)].some((each) => each.equals(content))]).toEqual([when, path, true]);
      }
      const last = disk(5);
      const path = await exportDisk(store, last, "repository");
      const repository = (await Repository.open(store)) as Repository;
      await compactRepository(repository, { now: clock.now(), id: randomUUID(), graceMs: 0, maxUnused: 0 });
      const { problems, brokenPoints } = await checkRepository(repository, { readData: 1 });
      expect([when, problems, brokenPoints]).toEqual([when, [], []]);
      expect((await contentOf(store, path)).equals(last)).toBe(true);
    }
  });
});
