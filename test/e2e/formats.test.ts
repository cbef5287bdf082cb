import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { makeMachines } from "../../examples/quickstart/make-machines.ts";
import { boots } from "../support/boot.ts";
import { hypersdk, workTree } from "../support/cli.ts";
import { has, qemuImg } from "../support/qemu.ts";

const kinds = [
  { name: "qcow2", format: "qcow2", compression: "none" },
  { name: "qcow2-zlib", format: "qcow2", compression: "zlib" },
  { name: "qcow2-zstd", format: "qcow2", compression: "zstd" },
  { name: "raw", format: "raw", compression: "none" },
  { name: "vmdk", format: "vmdk", compression: "none" },
  { name: "vmdk-zlib", format: "vmdk", compression: "zlib" },
  { name: "vhd", format: "vhd", compression: "none" },
  { name: "vhdx", format: "vhdx", compression: "none" },
  { name: "vdi", format: "vdi", compression: "none" },
];

it.skipIf(!has("qemu-img") || !has("qemu-system-x86_64"))(
  "a schedule exports in every format, proves it, restores it into any other, and the stored disk boots",
  { timeout: 300_000 },
  async () => {
    const schedules = kinds.map(
      ({ name, format, compression }) =>
        `  - {name: ${name}, cron: "0 2 * * *", initialExport: immediate, vms: [/datacenter/vm/web], destination: "file:./exports", format: ${format}, compression: ${compression}, verify: restore}\n`,
    );
    const folder = workTree(`version: v2\nschedules:\n${schedules.join("")}`);
    makeMachines(join(folder, "machines"), 3);
    const applied = await hypersdk(folder, ["apply", "--auto-approve"]);
    expect(applied).toMatchObject({ code: 0, stdout: expect.stringContaining("9 exports completed") as string });
    for (const [i, { name, format }] of kinds.entries()) {
      const disks = readdirSync(join(folder, "exports", name), { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(`disk-0.${format}`));
      expect([name, disks.length]).toEqual([name, 1]);
      const stored = join(folder, "exports", name, disks[0] as string);
      const qemuName = format === "vhd" ? "vpc" : format;
      expect([name, await boots(stored, qemuName)]).toEqual([name, expect.stringContaining("HYPERSDK-BOOT web") as string]);
      const next = kinds[(i + 3) % kinds.length] as (typeof kinds)[number];
      const restored = `restored-${name}.${next.format}`;
      expect(await hypersdk(folder, ["restore", "--vm", "/datacenter/vm/web", "--schedule", name, "--to", restored])).toMatchObject({ code: 0 });
      qemuImg("compare", "-q", "-f", qemuName, "-F", next.format === "vhd" ? "vpc" : next.format, stored, join(folder, restored));
    }
  },
);

it.skipIf(!has("qemu-img") || !has("qemu-system-x86_64"))(
  "a schedule exports a VM as one package that others read, proves it, and restores it disk by disk or as a package again",
  { timeout: 300_000 },
  async () => {
    const folder = workTree(
      `version: v2\nschedules:\n  - {name: packed, cron: "0 2 * * *", initialExport: immediate, vms: [/datacenter/vm/db], destination: "file:./exports", format: ova, verify: restore}\n`,
    );
    makeMachines(join(folder, "machines"), 3);
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0, stdout: expect.stringContaining("1 export completed") as string });
    const [stored] = readdirSync(join(folder, "exports"), { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith("machine.ova"));
    const ova = join(folder, "exports", stored as string);

    // its own manifest proves every member, the descriptor with its padding included
    const unpacked = join(folder, "unpacked");
    mkdirSync(unpacked);
    execFileSync("tar", ["xf", ova, "-C", unpacked]);
    expect(readdirSync(unpacked).sort()).toEqual(["machine-disk1.vmdk", "machine-disk2.vmdk", "machine.mf", "machine.ovf"]);
    const lines = readFileSync(join(unpacked, "machine.mf"), "utf8").replace(/^SHA256\((.*)\)= (.*)$/gm, "$2  $1");
    execFileSync("sha256sum", ["-c", "--quiet", "-"], { cwd: unpacked, input: lines });
    execFileSync("python3", ["-c", `import xml.dom.minidom as m; m.parse(${JSON.stringify(join(unpacked, "machine.ovf"))})`]);
    expect(await boots(join(unpacked, "machine-disk1.vmdk"), "vmdk")).toContain("HYPERSDK-BOOT db");

    const restore = ["restore", "--vm", "/datacenter/vm/db", "--to"];
    expect(await hypersdk(folder, [...restore, "disks/", "--format", "qcow2"])).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, [...restore, "again.ova"])).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, [...restore, "again.ova"])).toMatchObject({ code: 1, stderr: expect.stringContaining("exists already") as string });
    expect(await hypersdk(folder, [...restore, "one.ova", "--disk", "0"])).toMatchObject({ code: 64 });
    expect(await hypersdk(folder, ["convert", "again.ova", "from-package/", "--to", "qcow2"])).toMatchObject({ code: 0 });
    for (const i of [0, 1]) {
      const disk = join(folder, "disks", `disk-${i}.qcow2`);
      qemuImg("compare", "-q", "-f", "qcow2", "-F", "vmdk", disk, join(unpacked, `machine-disk${i + 1}.vmdk`));
      qemuImg("compare", "-q", "-f", "qcow2", "-F", "qcow2", disk, join(folder, "from-package", `again-disk${i + 1}.qcow2`));
    }

    // a byte of the descriptor is no byte of a disk: it is missed by nobody all the same
    const bytes = readFileSync(ova);
    bytes[600] = (bytes[600] as number) ^ 1;
    writeFileSync(ova, bytes);
    for (const level of ["checksum", "restore"])
      expect(await hypersdk(folder, ["verify", "--level", level])).toMatchObject({
        code: 11,
        stdout: expect.stringContaining("is not what was stored") as string,
      });
  },
);
