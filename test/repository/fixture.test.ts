import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { checkRepository } from "../../src/repository/check.ts";
import { Repository } from "../../src/repository/repository.ts";
import { temporaryFolder } from "../support/cli.ts";
import { contentOf, destinationAt } from "./support.ts";

const fixture = join(import.meta.dirname, "../fixtures/repository-v1");
const reader = join(import.meta.dirname, "../../examples/restore-without-hypersdk/restore.mjs");

/** The repository of version 1 that must be read for ever, with what its disks were when it was made. */
const disks: readonly (readonly [point: string, disk: number, sha256: string])[] = JSON.parse(
  readFileSync(join(import.meta.dirname, "../fixtures/repository-v1.json"), "utf8"),
) as [string, number, string][];

describe("the repository of version 1", () => {
  it("is sound, every byte of it", async () => {
    const repository = (await Repository.open(destinationAt(fixture))) as Repository;
    expect(await checkRepository(repository, { readData: 1 })).toMatchObject({ points: 3, problems: [], brokenPoints: [], unusedBytes: 0 });
  });

  it.each(disks)("gives back %s, disk %i", async (point, disk, sha256) => {
    expect(
      createHash("sha256")
        .update(await contentOf(destinationAt(fixture), point, disk))
        .digest("hex"),
    ).toBe(sha256);
  });

  it.each(disks)("gives back %s, disk %i, to a reader that knows only the specification", (point, disk, sha256) => {
    const out = join(temporaryFolder(), "disk.raw");
    execFileSync(process.execPath, [reader, fixture, point, String(disk), out]);
    expect(createHash("sha256").update(readFileSync(out)).digest("hex")).toBe(sha256);
  });

  it("is listed by that reader", () => {
    const list = execFileSync(process.execPath, [reader, fixture], { encoding: "utf8" });
    for (const [point] of disks) expect(list).toContain(point);
  });
});
