/**
 * One of several processes that work on one repository until its time is over: `node worker.ts ROOT SEED SECONDS CLOCK_OFFSET_MS open|sealed`. Each
 * step is an export, an expiry, a compaction, a check or a restore, as chance has it. What goes wrong is printed, and exit 1.
 */
import { randomUUID } from "node:crypto";
import { HypersdkError } from "../../src/model/errors.ts";
import { instantOf } from "../../src/model/instant.ts";
import type { Clock } from "../../src/model/ports.ts";
import { checkRepository } from "../../src/repository/check.ts";
import { compactRepository } from "../../src/repository/compact.ts";
import { listPoints } from "../../src/repository/points.ts";
import { Repository } from "../../src/repository/repository.ts";
import { contentOf, destinationAt, exportDisk } from "../repository/support.ts";
import { bytes, KiB, random } from "../support/disks.ts";

const [root = "", seed = "1", seconds = "10", offset = "0", layout = "open"] = process.argv.slice(2);
const next = random(Number(seed));
const clock: Clock = { now: () => instantOf(Date.now() + Number(offset)), sleep: async () => {} };
const destination = destinationAt(root, layout === "sealed");
const chunk = 128 * KiB;
const counts: Record<string, number> = {};

/** Twelve chunks, from a stock of 20: much is shared, also with other processes. */
function disk(): Buffer {
  const content = Buffer.alloc(12 * chunk);
  for (let i = 0; i < 12; i++) if (next() < 0.6) bytes(chunk, Math.floor(next() * 20)).copy(content, i * chunk);
  return content;
}

const isGone = (error: unknown): boolean => error instanceof HypersdkError && error.code === "NotFound";

async function stillListed(path: string): Promise<boolean> {
  return (await listPoints(destination)).some((point) => point.path === path);
}

const steps: Readonly<Record<string, () => Promise<void>>> = {
  async export() {
    const content = disk();
    let path: string;
    try {
      path = await exportDisk(destination, content, "repository", { vm: `vm-${Math.floor(next() * 3)}`, clock });
    } catch (error) {
      // a compaction took away what it was built on, and it says so
      if (error instanceof HypersdkError && error.code === "DestinationChanged") return count("withdrawn");
      throw error;
    }
    try {
      if (!(await contentOf(destination, path)).equals(content)) throw new Error(`${path} holds another disk than was exported`);
    } catch (error) {
      if (await stillListed(path)) throw error;
    }
  },
  async expire() {
    const points = await listPoints(destination);
    if (points.length > 4) await destination.remove((points[Math.floor(next() * points.length)] as (typeof points)[number]).path);
  },
  async compact() {
    const repository = await Repository.open(destination);
    if (repository) await compactRepository(repository, { now: clock.now(), id: randomUUID(), graceMs: 0, maxUnused: next() < 0.5 ? 0 : 0.3 });
  },
  async check() {
    const repository = await Repository.open(destination);
    if (!repository) return;
    const { problems, brokenPoints } = await checkRepository(repository, { readData: next() < 0.3 ? 1 : 0 });
    for (const path of brokenPoints) if (await stillListed(path)) throw new Error(`${path} is broken: ${JSON.stringify(problems)}`);
  },
  async restore() {
    const points = await listPoints(destination);
    const point = points[Math.floor(next() * points.length)];
    if (!point) return;
    try {
      await contentOf(destination, point.path);
    } catch (error) {
      if (!isGone(error) && (await stillListed(point.path))) throw error;
    }
  },
};

function count(what: string): void {
  counts[what] = (counts[what] ?? 0) + 1;
}

const chances = ["export", "export", "export", "expire", "expire", "compact", "check", "restore"];
const until = Date.now() + Number(seconds) * 1000;
while (Date.now() < until) {
  const name = chances[Math.floor(next() * chances.length)] as string;
  try {
    await steps[name]?.();
    count(name);
  } catch (error) {
    console.log(`${name}: ${error instanceof Error ? error.stack : String(error)}`);
    process.exit(1);
  }
}
console.log(JSON.stringify(counts));
