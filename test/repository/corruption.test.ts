import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { Destination } from "../../src/destinations/destination.ts";
import { readManifest } from "../../src/exports/restore.ts";
import { HypersdkError } from "../../src/model/errors.ts";
import { checkRepository } from "../../src/repository/check.ts";
import { repairRepository } from "../../src/repository/repair.ts";
import { Repository } from "../../src/repository/repository.ts";
import { random } from "../support/disks.ts";
import { clock, contentOf, destinationAt } from "./support.ts";

/** 10,000 with `npm run test:corruption`. */
const allCases = Number(process.env["CORRUPTIONS"] ?? 120);
const fixtures = join(import.meta.dirname, "../fixtures");

/** What a reader of disks needs; whose the destination is stands apart. */
function objectsOf(fixture: string): string[] {
  return readdirSync(fixture, { recursive: true, encoding: "utf8" }).filter(
    (path) => statSync(join(fixture, path)).isFile() && path !== "hypersdk-destination.json",
  );
}

type Damage = (path: string, next: () => number, fixture: string) => string;

const kinds: readonly Damage[] = [
  flip,
  flip,
  flip,
  flip,
  (path) => {
    rmSync(path);
    return "deleted";
  },
  (path) => {
    writeFileSync(path, "");
    return "emptied";
  },
  (path, next) => {
    const bytes = readFileSync(path);
    const cut = Math.floor(next() * bytes.length);
    writeFileSync(path, bytes.subarray(0, cut));
    return `cut at ${cut}`;
  },
  (path, next, fixture) => {
    const objects = objectsOf(fixture);
    const other = join(fixture, objects[Math.floor(next() * objects.length)] as string);
    const isSame = readFileSync(other).equals(readFileSync(path));
    writeFileSync(path, readFileSync(other));
    return isSame ? "" : `replaced by ${other.slice(fixture.length + 1)}`;
  },
];

function flip(path: string, next: () => number): string {
  const bytes = readFileSync(path);
  const bit = Math.floor(next() * bytes.length * 8);
  bytes[bit >> 3] = (bytes[bit >> 3] as number) ^ (1 << (bit & 7));
  writeFileSync(path, bytes);
  return `bit ${bit} flipped`;
}

/** The problems that are found, or the refusal to look at all. */
async function found(root: string, isSealed: boolean): Promise<readonly string[]> {
  try {
    const repository = await Repository.open(destinationAt(root, isSealed));
    if (!repository) return ["there is no repository"];
    return (await checkRepository(repository, { readData: 1 })).problems.map(({ message }) => message);
  } catch (error) {
    if (error instanceof HypersdkError && (error.code === "ArtifactDamaged" || error.code === "KeyRefused")) return [error.message];
    throw error;
  }
}

describe.each([
  ["a repository", "repository-v1", false],
  ["a sealed repository", "repository-v1-sealed", true],
])("%s of which something is damaged", (_, name, isSealed) => {
  const fixture = join(fixtures, name);
  const objects = objectsOf(fixture);
  const points = objects.filter((path) => path.startsWith("points/"));
  const intact = new Map<string, Buffer[]>();
  // scrypt asks for its time in each
  const cases = isSealed ? allCases / 4 : (allCases * 3) / 4;
  const seed = Number(process.env["CORRUPTION_SEED"] ?? 4);

  it(`is found out, gives back right bytes or none, and is sound after a repair (${cases} cases from seed ${seed})`, { timeout: 7_200_000 }, async () => {
    for (const point of points) {
      const { disks } = await readManifest(destinationAt(fixture, isSealed), point);
      intact.set(point, await Promise.all(disks.map((_, disk) => contentOf(destinationAt(fixture, isSealed), point, disk))));
    }
    const next = random(seed);
    for (let i = 0; i < cases; i++) {
      const root = mkdtempSync(join(tmpdir(), "hypersdk-corrupt-"));
      try {
        cpSync(fixture, root, { recursive: true });
        const object = objects[Math.floor(next() * objects.length)] as string;
        const how = (kinds[Math.floor(next() * kinds.length)] as Damage)(join(root, object), next, fixture);
        if (how === "") continue;
        const what = `case ${i}: ${object} ${how}`;
        const problems = await found(root, isSealed);
        // a point that is deleted is one that was expired, as far as a repository can tell
        if (!(how === "deleted" && object.startsWith("points/"))) expect([what, problems.length > 0]).toEqual([what, true]);
        for (const [point, disks] of intact) await restoresRightOrNot(destinationAt(root, isSealed), point, disks, what);
        if (object === "config" || (await Repository.open(destinationAt(root, isSealed)).catch(() => undefined)) === undefined) continue;
        const repository = (await Repository.open(destinationAt(root, isSealed))) as Repository;
        const { brokenPoints } = await repairRepository(repository, { now: clock.now() });
        // what is said to be whole is
        for (const [point, disks] of intact)
          if (!brokenPoints.includes(point) && !(how === "deleted" && object === point))
            for (const [disk, content] of disks.entries())
              expect([what, point, (await contentOf(destinationAt(root, isSealed), point, disk)).equals(content)]).toEqual([what, point, true]);
        const after = await checkRepository(repository, { readData: 1 });
        expect([what, after.brokenPoints]).toEqual([what, brokenPoints]);
        if (brokenPoints.length === 0) expect([what, after.problems]).toEqual([what, []]);
      } finally {
        rmSync(root, { recursive: true, force: true });
      }
    }
  });
});

async function restoresRightOrNot(destination: Destination, point: string, disks: readonly Buffer[], what: string): Promise<void> {
  for (const [disk, content] of disks.entries()) {
    try {
      expect([what, point, (await contentOf(destination, point, disk)).equals(content)]).toEqual([what, point, true]);
    } catch (error) {
      if (!(error instanceof HypersdkError)) throw error;
    }
  }
}
