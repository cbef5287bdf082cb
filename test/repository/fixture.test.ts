import { execFileSync, spawnSync } from "node:child_process";
import { createHash, randomUUID } from "node:crypto";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { readManifest } from "../../src/exports/restore.ts";
import { storeAgain } from "../../src/exports/stored-point.ts";
import { checkRepository } from "../../src/repository/check.ts";
import { Repository } from "../../src/repository/repository.ts";
import { temporaryFolder } from "../support/cli.ts";
import { clock, contentOf, destinationAt, passphrase } from "./support.ts";

const reader = join(import.meta.dirname, "../../examples/restore-without-hypersdk/restore.mjs");

/** The repositories of version 1 that must be read for ever, with what their disks were when they were made. */
describe.each([
  ["the repository of version 1", "repository-v1", false],
  ["the sealed repository of version 1", "repository-v1-sealed", true],
])("%s", (_, name, isSealed) => {
  const fixture = join(import.meta.dirname, "../fixtures", name);
  const disks = JSON.parse(readFileSync(`${fixture}.json`, "utf8")) as [point: string, disk: number, sha256: string][];
  const env = { ...process.env, ...(isSealed ? { HYPERSDK_PASSPHRASE: passphrase } : {}) };

  it("is sound, every byte of it", async () => {
    const repository = (await Repository.open(destinationAt(fixture, isSealed))) as Repository;
    expect(await checkRepository(repository, { readData: 1 })).toMatchObject({
      points: new Set(disks.map(([point]) => point)).size,
      problems: [],
      brokenPoints: [],
      unusedBytes: 0,
    });
  });

  it.each(disks)("gives back %s, disk %i", async (point, disk, sha256) => {
    expect(
      createHash("sha256")
        .update(await contentOf(destinationAt(fixture, isSealed), point, disk))
        .digest("hex"),
    ).toBe(sha256);
  });

  it.each(disks)("gives back %s, disk %i, to a reader that knows only the specification", (point, disk, sha256) => {
    const out = join(temporaryFolder(), "disk.raw");
    execFileSync(process.execPath, [reader, fixture, point, String(disk), out], { env });
    expect(createHash("sha256").update(readFileSync(out)).digest("hex")).toBe(sha256);
  });

  it.each(["image", "repository"] as const)(
    "can be stored again as %s, whose hash is over other pieces, and one that is not the same is refused",
    async (layout) => {
      const manifestPath = disks[0]?.[0] as string;
      const from = destinationAt(fixture, isSealed);
      const manifest = await readManifest(from, manifestPath);
      const to = destinationAt(temporaryFolder());
      const ports = { clock, random: { uuid: randomUUID, fraction: () => 0.5 } };
      const request = () =>
        ({ pointId: randomUUID(), runId: randomUUID(), lineage: "test", toolVersion: "0", layout, format: "qcow2", compression: "none" }) as const;
      const signal = new AbortController().signal;
      const stored = await storeAgain({ destination: from, manifestPath, manifest }, to, request(), ports, { signal });
      expect(stored.manifest.disks[0]?.contentHash.pieceBytes).not.toBe(manifest.disks[0]?.contentHash.pieceBytes);
      for (const [i] of manifest.disks.entries())
        expect((await contentOf(to, stored.manifestPath, i)).equals(await contentOf(from, manifestPath, i))).toBe(true);
      const other = { ...manifest, disks: manifest.disks.map((disk) => ({ ...disk, contentHash: { ...disk.contentHash, value: "0".repeat(64) } })) };
      await to.remove(stored.manifestPath);
      await expect(storeAgain({ destination: from, manifestPath, manifest: other }, to, request(), ports, { signal })).rejects.toMatchObject({
        code: "ArtifactDamaged",
      });
      expect((await to.list()).filter(({ path }) => /manifest\.json$|^points\/.*\.json$/.test(path))).toEqual([]);
    },
  );

  it("is listed by that reader", () => {
    const list = execFileSync(process.execPath, [reader, fixture], { encoding: "utf8", env });
    for (const [point] of disks) expect(list).toContain(point);
  });

  it("is listed by it as far as it is sound", () => {
    const copy = join(temporaryFolder(), "copy");
    cpSync(fixture, copy, { recursive: true });
    const points = [...new Set(disks.map(([point]) => point))];
    writeFileSync(join(copy, points[0] as string), "{");
    const { status, stdout, stderr } = spawnSync(process.execPath, [reader, copy], { encoding: "utf8", env });
    expect([status, stderr]).toEqual([1, `${points[0]} is damaged\n`]);
    for (const point of points.slice(1)) expect(stdout).toContain(point);
  });
});
