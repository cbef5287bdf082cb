import { execFileSync } from "node:child_process";
import { chmodSync, chownSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it, onTestFinished } from "vitest";
import type { ChunkedDisk, Manifest } from "../../src/exports/manifest.ts";
import { hypersdk, ok, start, workTree } from "../support/cli.ts";
import { bytes, MiB } from "../support/disks.ts";
import { nobody, startLibvirt } from "../support/libvirt.ts";
import { has, qemuImg } from "../support/qemu.ts";
import { type Counting, countingSector, diskAfter, lastNumber } from "../support/writing-guest.ts";

const counting: Counting = { slots: 700, stride: 40 };
const diskBytes = 48 * MiB;

describe.skipIf(!has("libvirtd") || !has("virsh"))("a machine that libvirt runs", () => {
  it("is exported at one instant while the guest writes, in increments by its checkpoints, off and on, and after an export was killed", {
    timeout: 300_000,
  }, async () => {
    const folder = workTree("version: v2\n");
    chmodSync(folder, 0o755);
    const uri = await startLibvirt(folder);
    const virsh = (...args: string[]): string =>
      execFileSync("virsh", ["-q", "-c", uri, ...args], { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] }).trim();
    writeFileSync(
      join(folder, "infrastructure.yaml"),
      `version: v2\nproviders:\n  - {name: lab, type: qemu, libvirt: "${uri}", scratch: ./scratch}\nschedules:\n  - {name: nightly, cron: "0 2 * * *", initialExport: immediate, vms: ["/datacenter/vm/*"], destination: "file:./backups", incremental: true}\n`,
    );
    const machines = join(folder, "machines");
    mkdirSync(machines);
    mkdirSync(join(folder, "scratch"));
    const before = ["qcow2", "raw"].map((_, i) => {
      const disk = Buffer.alloc(diskBytes);
      bytes(6 * MiB, 20 + i).copy(disk, 30 * MiB);
      if (i === 0) countingSector(counting).copy(disk);
      return disk;
    });
    const images = ["qcow2", "raw"].map((format, i) => {
      const raw = join(machines, `${i}.raw`);
      const path = join(machines, `disk & ${i}.${format}`);
      writeFileSync(raw, before[i] as Buffer);
      qemuImg("convert", "-f", "raw", "-O", format, raw, path);
      rmSync(raw);
      return path;
    });
    if (process.getuid?.() === 0) for (const path of [machines, ...images]) chownSync(path, nobody, nobody);
    const disk = (path: string, format: string, target: string): string =>
      `<disk type='file' device='disk'><driver name='qemu' type='${format}'/><source file='${path.replace("&", "&amp;")}'/><target dev='${target}' bus='ide'/></disk>`;
    writeFileSync(
      join(folder, "domain.xml"),
      `<domain type='qemu'><name>counting</name><memory unit='MiB'>32</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>` +
        `<devices>${disk(images[0] as string, "qcow2", "hda")}${disk(images[1] as string, "raw", "hdb")}</devices></domain>`,
    );
    virsh("define", join(folder, "domain.xml"));
    virsh("start", "counting");
    onTestFinished(() => {
      try {
        virsh("destroy", "counting");
      } catch {}
    });
    const manifests = (): Manifest[] =>
      readdirSync(join(folder, "backups/points"), { recursive: true, encoding: "utf8" })
        .filter((name) => name.endsWith(".json"))
        .map((name) => JSON.parse(readFileSync(join(folder, "backups/points", name), "utf8")) as Manifest)
        .sort((a, b) => (a.source.instant < b.source.instant ? -1 : 1));
    const last = (): ChunkedDisk[] => manifests().at(-1)?.disks as ChunkedDisk[];

    expect(await ok(folder, ["get", "vms"])).toContain("/datacenter/vm/counting");
    await sleep(2500);
    await ok(folder, ["apply", "--auto-approve"]);
    for (let round = 0; round < 3; round++) {
      await sleep(300);
      await ok(folder, ["run", "nightly"]);
    }
    expect(last()[0]).toMatchObject({ mode: "incremental", reason: expect.stringContaining("changed blocks since") as string });
    // libvirt keeps no bitmaps for raw disks
    expect(last()[1]).toMatchObject({ mode: "incremental", reason: expect.stringContaining("not tracked") as string });
    const tomorrow = new Date(Date.now() + 2 * 86_400_000).toISOString();
    expect(await ok(folder, ["plan", "--at", tomorrow])).toMatch(/disk & 0.qcow2 {2}incremental \(changed blocks, /);

    for (const delay of [900, 1300, 1700]) {
      const cut = start(folder, ["run", "nightly"]);
      await sleep(delay);
      cut.kill("SIGKILL");
      await cut.done;
    }
    await ok(folder, ["apply", "--auto-approve"]);
    await ok(folder, ["run", "nightly"]);
    expect(last()[0]?.mode).toBe("incremental");
    expect(last()[0]?.mark?.startsWith(`${virsh("checkpoint-list", "counting", "--name")}-`)).toBe(true);
    expect(readdirSync(machines).sort()).toEqual(["disk & 0.qcow2", "disk & 1.raw"]);
    expect(readdirSync(join(folder, "scratch"))).toEqual([]);

    virsh("destroy", "counting", "--graceful");
    await ok(folder, ["run", "nightly"]);
    expect(last()[0]).toMatchObject({ mode: "incremental", reason: expect.stringContaining("changed blocks since") as string });
    const off = manifests().at(-1) as Manifest;

    const numbers: number[] = [];
    for (const { id } of manifests()) {
      const to = join(folder, `restored-${id}`);
      await ok(folder, ["restore", id, "--to", `${to}/`, "--format", "raw"]);
      const disks = before.map((_, i) => readFileSync(join(to, `disk-${i}.raw`)));
      const [first = 0, second = 0] = disks.map((content, i) => lastNumber(content, before[i] as Buffer, counting));
      for (const [i, number] of [first, second].entries())
        expect([id, i, (disks[i] as Buffer).equals(diskAfter(number, before[i] as Buffer, counting))]).toEqual([id, i, true]);
      expect([0, 1]).toContain(first - second);
      numbers.push(first);
      if (id === off.id) qemuImg("compare", "-q", "-f", "qcow2", "-F", "raw", images[0] as string, join(to, "disk-0.raw"));
      rmSync(to, { recursive: true });
    }
    expect(numbers).toEqual([...numbers].sort((a, b) => a - b));
    expect(numbers[0]).toBeGreaterThan(0);
  });

  it("is not found where libvirt is not, and no URI that runs a program is taken", async () => {
    const yaml = (uri: string): string =>
      `version: v2\nproviders: [{name: lab, type: qemu, libvirt: "${uri}"}]\nschedules: [{name: s, cron: "0 2 * * *", vms: ["/datacenter/vm/*"], destination: "file:./backups"}]\n`;
    const plan = await hypersdk(workTree(yaml("qemu:///session?socket=/nowhere/libvirt-sock")), ["plan"]);
    expect(plan.stdout + plan.stderr).toMatch(/libvirt at .*[Ff]ailed to connect/);
    for (const uri of ["qemu+ext:///system?command=/bin/sh", "qemu+ssh://host/system", "qemu:///system?socket=/a&command=/bin/sh"])
      expect(await hypersdk(workTree(yaml(uri)), ["validate"])).toMatchObject({ code: 3 });
  });
});
