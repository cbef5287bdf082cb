import { readdirSync } from "node:fs";
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
