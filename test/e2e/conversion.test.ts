import { execFileSync, spawn } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { hypersdk, start, temporaryFolder } from "../support/cli.ts";
import { MiB, writeRaw } from "../support/disks.ts";
import { has, qemuImg } from "../support/qemu.ts";
import { result } from "../support/schemas.ts";

const hasQemu = has("qemu-img");

function folderWithDisk(bytes = 6 * MiB): string {
  const folder = temporaryFolder();
  writeRaw(join(folder, "disk.raw"), { sizeBytes: bytes, islands: [{ offset: 0, length: Math.min(bytes, 4 * MiB) }] });
  return folder;
}

describe("a VM's descriptor", () => {
  it("names its disks whatever they are called; none is left out", async () => {
    const folder = folderWithDisk();
    await hypersdk(folder, ["convert", "disk.raw", "sys.qcow2"]);
    await hypersdk(folder, ["convert", "disk.raw", "data.vmdk"]);
    writeFileSync(
      join(folder, "vm.vmx"),
      'scsi0:0.fileName = "sys.qcow2"\nscsi0:1.fileName = "data.vmdk"\nide1:0.fileName = "setup.iso"\nide1:0.deviceType = "cdrom-image"\nsata0:1.deviceType = "atapi-cdrom"\nsata0:1.fileName = "auto detect"\n',
    );
    expect(await hypersdk(folder, ["convert", "vm.vmx", "out/", "--to", "raw"])).toMatchObject({ code: 0 });
    expect(readdirSync(join(folder, "out")).sort()).toEqual(["data.raw", "sys.raw"]);
    const info = await hypersdk(folder, ["image", "info", "vm.vmx", "--json"]);
    expect(result(info.stdout)).toMatchObject({
      type: "machine-info",
      disks: [
        { name: "sys.qcow2", format: "qcow2" },
        { name: "data.vmdk", format: "vmdk" },
      ],
    });
    writeFileSync(join(folder, "evil.vmx"), 'scsi0:0.fileName = "/etc/passwd"\n');
    expect(await hypersdk(folder, ["convert", "evil.vmx", "evil/", "--to", "raw"])).toMatchObject({ code: 11 });
    // it is no disk, and never taken for a raw one
    for (const command of ["check", "map"])
      expect(await hypersdk(folder, ["image", command, "vm.vmx"])).toMatchObject({ code: 64, stderr: expect.stringContaining("is a VM") as string });
  });

  it("may have disks in a folder that is named, and only there", async () => {
    const folder = folderWithDisk();
    mkdirSync(join(folder, "store"));
    await hypersdk(folder, ["convert", "disk.raw", "store/data.vmdk"]);
    writeFileSync(join(folder, "vm.vmx"), 'scsi0:0.fileName = "/vmfs/volumes/other/vm/data.vmdk"\n');
    expect(await hypersdk(folder, ["convert", "vm.vmx", "out/", "--to", "raw"])).toMatchObject({ code: 11 });
    expect(await hypersdk(folder, ["convert", "vm.vmx", "out/", "--to", "raw", "--allow-backing", "store"])).toMatchObject({ code: 0 });
  });
});

describe("a conversion that is left", () => {
  it.each([
    ["SIGHUP", 1, 129],
    ["SIGINT", 2, 130],
  ] as const)("by %s (%d times) takes its files with it", { timeout: 180_000 }, async (signal, times, code) => {
    const folder = temporaryFolder();
    writeRaw(join(folder, "disk.raw"), { sizeBytes: 512 * MiB, islands: [{ offset: 0, length: 300 * MiB }] });
    const before = readdirSync(folder).sort();
    const conversion = start(folder, ["convert", "disk.raw", "vm.ova"]);
    while (readdirSync(folder).length === before.length) await new Promise((resolve) => setTimeout(resolve, 20));
    for (let i = 0; i < times; i++) conversion.kill(signal);
    expect(await conversion.done).toMatchObject({ code });
    expect(readdirSync(folder).sort()).toEqual(before);
  });
});

describe.skipIf(!hasQemu)("an image that somebody writes to", () => {
  it("is refused by convert, unless it is asked for; one that is only read is not", { timeout: 30_000 }, async () => {
    const folder = folderWithDisk();
    await hypersdk(folder, ["convert", "disk.raw", "live.qcow2"]);
    const hold = async (args: readonly string[], work: () => Promise<void>): Promise<void> => {
      const holder = spawn("qemu-io", [...args, "live.qcow2"], { cwd: folder, stdio: ["pipe", "pipe", "ignore"] });
      await new Promise((resolve) => holder.stdout.once("data", resolve));
      await work();
      holder.stdin.end("quit\n");
      await new Promise((resolve) => holder.on("exit", resolve));
    };
    await hold([], async () => {
      expect(await hypersdk(folder, ["convert", "live.qcow2", "a.raw"])).toMatchObject({
        code: 1,
        stderr: expect.stringContaining("locked by another process") as string,
      });
      expect(await hypersdk(folder, ["convert", "live.qcow2", "a.raw", "--force-share"])).toMatchObject({ code: 0 });
    });
    await hold(["-r"], async () => {
      expect(await hypersdk(folder, ["convert", "live.qcow2", "b.raw"])).toMatchObject({ code: 0 });
    });
  });
});

describe.skipIf(!hasQemu)("image check", () => {
  const orphan: Readonly<Record<string, (bytes: Buffer) => void>> = {
    // the table's first entry is forgotten, its block stays in the file
    vdi: (bytes) => {
      bytes.writeUInt32LE(0xffffffff, bytes.readUInt32LE(340));
      bytes.writeUInt32LE(bytes.readUInt32LE(388) - 1, 388);
    },
    vhd: (bytes) => bytes.writeUInt32BE(0xffffffff, Number(bytes.readBigUInt64BE(512 + 16))),
    vhdx: (bytes) => bytes.writeBigUInt64LE(0n, 3 * MiB),
    vmdk: (bytes) => {
      for (const at of [56, 48]) bytes.writeUInt32LE(0, bytes.readUInt32LE(Number(bytes.readBigUInt64LE(at)) * 512) * 512);
    },
  };
  it.each(Object.keys(orphan))("finds what a %s holds and does not use", async (format) => {
    const folder = folderWithDisk();
    await hypersdk(folder, ["convert", "disk.raw", `disk.${format}`]);
    const path = join(folder, `disk.${format}`);
    expect(result((await hypersdk(folder, ["image", "check", path, "--json"])).stdout)).toMatchObject({ sound: true, leaks: 0 });
    const bytes = readFileSync(path);
    orphan[format]?.(bytes);
    writeFileSync(path, bytes);
    expect(result((await hypersdk(folder, ["image", "check", path, "--json"])).stdout)).toMatchObject({ sound: true, leaks: 1 });
  });

  it.each([
    ["the second VHDX header", "vhdx", 131_072 + 100, "header at 131072"],
    ["the first region table", "vhdx", 196_608 + 20, "region table at 196608"],
    ["the copy of a VHD's footer", "vhd", 40, "copy of the footer"],
  ] as const)("tells of %s, without which the disk is read all the same", async (_, format, at, message) => {
    const folder = folderWithDisk();
    await hypersdk(folder, ["convert", "disk.raw", `disk.${format}`]);
    const path = join(folder, `disk.${format}`);
    const bytes = readFileSync(path);
    bytes[at] = (bytes[at] as number) ^ 1;
    writeFileSync(path, bytes);
    expect(await hypersdk(folder, ["image", "check", path])).toMatchObject({ code: 11, stdout: expect.stringContaining(message) as string });
    expect(await hypersdk(folder, ["image", "compare", path, "disk.raw"])).toMatchObject({ code: 0 });
  });
});

describe("image compare", () => {
  it("takes zeros at the end for nothing, as a conversion that rounds up makes them, unless it is strict", async () => {
    const folder = folderWithDisk(6 * MiB + 100);
    await hypersdk(folder, ["convert", "disk.raw", "disk.qcow2"]);
    expect(await hypersdk(folder, ["image", "compare", "disk.raw", "disk.qcow2"])).toMatchObject({
      code: 0,
      stdout: expect.stringContaining("but for zeros at the end") as string,
    });
    expect(await hypersdk(folder, ["image", "compare", "disk.raw", "disk.qcow2", "--strict"])).toMatchObject({
      code: 2,
      stdout: expect.stringContaining("differ in size") as string,
    });
    const longer = Buffer.concat([readFileSync(join(folder, "disk.raw")), Buffer.from("x")]);
    writeFileSync(join(folder, "longer.raw"), longer);
    expect(await hypersdk(folder, ["image", "compare", "disk.raw", "longer.raw"])).toMatchObject({
      code: 2,
      stdout: expect.stringContaining(`offset ${longer.length - 1}`) as string,
    });
  });

  it("is told what each of the two is", async () => {
    const folder = folderWithDisk();
    await hypersdk(folder, ["convert", "disk.raw", "disk.qcow2"]);
    // a guest's disk that holds a QCOW2 file
    await hypersdk(folder, ["convert", "disk.qcow2", "outer.qcow2", "--from", "raw"]);
    expect(await hypersdk(folder, ["image", "compare", "disk.qcow2", "outer.qcow2", "--from", "raw"])).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, ["image", "compare", "outer.qcow2", "disk.qcow2", "--right-from", "raw"])).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, ["image", "compare", "disk.qcow2", "outer.qcow2"])).toMatchObject({ code: 2 });
  });
});

describe.skipIf(!hasQemu)("image info", () => {
  it("tells what it can of an image whose parent is missing", async () => {
    const folder = folderWithDisk();
    qemuImg("create", "-q", "-f", "qcow2", "-b", join(folder, "disk.raw"), "-F", "raw", join(folder, "child.qcow2"));
    execFileSync("mv", [join(folder, "disk.raw"), join(folder, "elsewhere.raw")]);
    const { code, stdout } = await hypersdk(folder, ["image", "info", "child.qcow2", "--json"]);
    expect([code, result(stdout)]).toMatchObject([11, { format: "qcow2", virtualBytes: 6 * MiB, problem: expect.stringContaining("is missing") as string }]);
    // moved to another folder, it is found by its name where the operator says
    mkdirSync(join(folder, "golden"));
    execFileSync("mv", [join(folder, "elsewhere.raw"), join(folder, "golden/disk.raw")]);
    expect(await hypersdk(folder, ["convert", "child.qcow2", "whole.raw", "--allow-backing", "golden"])).toMatchObject({ code: 0 });
  });

  it("counts all files of a disk", async () => {
    const folder = folderWithDisk();
    qemuImg("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicFlat", join(folder, "disk.raw"), join(folder, "flat.vmdk"));
    const info = result((await hypersdk(folder, ["image", "info", "flat.vmdk", "--json"])).stdout) as { fileBytes: number };
    expect(info.fileBytes).toBe(6 * MiB + statSync(join(folder, "flat.vmdk")).size);
  });
});

describe("what convert writes", () => {
  it("may be read by whom the umask lets, and keeps the mode of what it replaces", async () => {
    const folder = folderWithDisk();
    await hypersdk(folder, ["convert", "disk.raw", "a.qcow2"]);
    const umask = process.umask();
    expect(statSync(join(folder, "a.qcow2")).mode & 0o777).toBe(0o666 & ~umask);
    chmodSync(join(folder, "a.qcow2"), 0o640);
    await hypersdk(folder, ["convert", "disk.raw", "a.qcow2", "--overwrite"]);
    expect(statSync(join(folder, "a.qcow2")).mode & 0o777).toBe(0o640);
  });

  it("is no link, no folder that is missing, and nothing that is asked for in words it does not know", async () => {
    const folder = folderWithDisk();
    symlinkSync("nowhere.qcow2", join(folder, "link.qcow2"));
    expect(await hypersdk(folder, ["convert", "disk.raw", "link.qcow2"])).toMatchObject({ code: 1, stderr: expect.stringContaining("is a link") as string });
    expect(await hypersdk(folder, ["convert", "disk.raw", "missing/a.qcow2"])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("its folder is not there") as string,
    });
    expect(await hypersdk(folder, ["convert", "disk.raw", "a.qcow2", "--compress", "lz4"])).toMatchObject({
      code: 64,
      stderr: expect.stringContaining("lz4") as string,
    });
    expect(await hypersdk(folder, ["convert", "disk.raw", "a.qcow2", "--events", "e.json"])).toMatchObject({
      code: 64,
      stderr: expect.stringContaining("tells no events") as string,
    });
    expect(await hypersdk(folder, ["convert", "disk.raw", "a.qcow2", "--max-virtual-size", String(6 * MiB - 1)])).toMatchObject({ code: 1 });
    expect(existsSync(join(folder, "a.qcow2"))).toBe(false);
  });
});
