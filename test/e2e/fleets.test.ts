import { copyFileSync, mkdirSync, readdirSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { exportFormats, imageFormats } from "../../src/model/image-formats.ts";
import { hypersdk, temporaryFolder, workTree } from "../support/cli.ts";
import { KiB, MiB, overwrite, random, writeRaw } from "../support/disks.ts";
import { has, qemuImg, sameForQemu } from "../support/qemu.ts";
import { result } from "../support/schemas.ts";

/** `npm run test:fleets` runs two hundred. */
const fleets = Number(process.env["FLEETS"] ?? 2);
const seed = Number(process.env["FLEET_SEED"] ?? 1);

const vmNames = ["web", "db 01", 'quo"ted', "it's", "x..y", "grün", "🐧", "$HOME", "-rf"];
/** As qemu-img calls them, with what files of theirs end in. */
const sources = [
  { format: "raw", ending: "raw", options: [] },
  { format: "qcow2", ending: "qcow2", options: ["-o", "compat=1.1"] },
  { format: "qcow2", ending: "qcow2", options: ["-c"] },
  { format: "vmdk", ending: "vmdk", options: [] },
  { format: "vmdk", ending: "vmdk", options: ["-o", "subformat=streamOptimized"] },
  { format: "vdi", ending: "vdi", options: [] },
  { format: "vhdx", ending: "vhdx", options: [] },
  { format: "vpc", ending: "vhd", options: ["-o", "force_size=on"] },
] as const;
const qemuNames: Readonly<Record<string, string>> = { vhd: "vpc" };

interface Disk {
  readonly name: string;
  readonly source: (typeof sources)[number];
  /** What it holds, as a raw file. */
  readonly truth: string;
}

describe.skipIf(!has("qemu-img"))("random fleets: every restore point of every one is what its disks were", () => {
  it.each(Array.from({ length: fleets }, (_, i) => seed + i))("seed %i", { timeout: 240_000 }, async (each) => {
    const next = random(each * 7919);
    const below = (limit: number): number => Math.floor(next() * limit);
    const pick = <T>(of: readonly T[]): T => of[below(of.length)] as T;
    const truths = temporaryFolder();
    const { yaml, restoreFormats } = scheduleOf(pick, below);
    const folder = workTree(yaml);
    writeFileSync(join(folder, "key"), "a passphrase that nobody guesses\n");

    const islands = (sizeBytes: number) =>
      Array.from({ length: below(5) }, () => {
        const offset = below(sizeBytes / 512) * 512;
        return { offset, length: Math.min(sizeBytes - offset, (1 + below(1024)) * 512) };
      });
    const newDisk = (vm: number, disk: number): Disk => {
      const source = pick(sources);
      const truth = join(truths, `${vm}-${disk}.raw`);
      const sizeBytes = pick([64 * KiB, MiB, 3 * MiB + 512, 5 * MiB]) + below(64) * 512;
      writeRaw(truth, { sizeBytes, islands: islands(sizeBytes) }, each + disk);
      return { name: `disk-${disk}.${source.ending}`, source, truth };
    };
    const vms = new Map<string, Disk[]>();
    while (vms.size < 1 + below(3)) vms.set(pick(vmNames), []);
    for (const [i, disks] of [...vms.values()].entries()) for (let count = 1 + below(2); count > 0; count--) disks.push(newDisk(i, disks.length));

    const asTheyWere = new Map<string, string>();
    for (let round = 0; round < 3; round++) {
      for (const [i, [vm, disks]] of [...vms].entries()) {
        const machine = join(folder, "machines", vm);
        if (round > 0) change(i, disks);
        rmSync(machine, { recursive: true, force: true });
        mkdirSync(machine, { recursive: true });
        const were = join(truths, `${i} in round ${round}`);
        mkdirSync(were);
        for (const [d, { name, source, truth }] of disks.entries()) {
          copyFileSync(truth, join(were, `disk-${d}.raw`));
          qemuImg("convert", "-f", "raw", "-O", source.format, ...source.options, truth, join(machine, name));
        }
        asTheyWere.set(`/datacenter/vm/${vm} ${round}`, were);
      }
      const exported = await hypersdk(folder, round === 0 ? ["apply", "--auto-approve"] : ["run", "nightly"]);
      expect(exported, yaml).toMatchObject({ code: 0 });
      // two exports of one second would have one instant
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }

    const { items } = result<{ items: { id: string; vm: string; state: string; instant: string }[] }>(
      (await hypersdk(folder, ["get", "artifacts", "--json"])).stdout,
    );
    expect(items.length).toBe(3 * vms.size);
    for (const [vm, points] of Map.groupBy(items, (item) => item.vm)) {
      for (const [round, { id, state }] of points.sort((a, b) => (a.instant < b.instant ? -1 : 1)).entries()) {
        expect(state).toBe("good");
        const format = pick(restoreFormats);
        const to = join(truths, `restored ${id}`);
        expect(await hypersdk(folder, ["restore", id, "--to", `${to}/`, "--format", format]), `${vm} ${round} ${yaml}`).toMatchObject({ code: 0 });
        const were = asTheyWere.get(`${vm} ${round}`) as string;
        expect(readdirSync(to).length).toBe(readdirSync(were).length);
        for (const name of readdirSync(were)) sameForQemu(join(were, name), "raw", join(to, name.replace(/raw$/, format)), qemuNames[format] ?? format);
      }
    }
    expect(await hypersdk(folder, ["verify"])).toMatchObject({ code: 0, stdout: expect.stringContaining(" 0 damaged") as string });

    /** Writes, and now and then a disk that grows or is new. */
    function change(vm: number, disks: Disk[]): void {
      for (const { truth } of disks) {
        if (below(10) === 0) truncateSync(truth, 6 * MiB + below(64) * 512);
        for (let writes = 1 + below(3); writes > 0; writes--) overwrite(truth, next);
      }
      if (below(10) === 0) disks.push(newDisk(vm, disks.length));
    }
  });
});

/** A schedule that stores images, of one format, or into a repository, open or encrypted. */
function scheduleOf(pick: <T>(of: readonly T[]) => T, below: (limit: number) => number): { readonly yaml: string; readonly restoreFormats: readonly string[] } {
  const stores =
    below(2) === 0
      ? `destination: "file:./backups", format: ${pick(exportFormats.filter((format) => format !== "ova"))}`
      : `destination: "file:./backups", incremental: true, compression: ${pick(["zstd", "none"])}${pick(["", ', encryption: {key: "${file:key}"}'])}`;
  const yaml = `version: v2\nschedules:\n  - {name: nightly, cron: "0 2 * * *", initialExport: immediate, vms: ["/datacenter/vm/*"], ${stores}, verify: restore}\n`;
  return { yaml, restoreFormats: imageFormats };
}
