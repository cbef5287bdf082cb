import { execFileSync, spawn } from "node:child_process";
import { appendFileSync, chmodSync, copyFileSync, mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { makeMachines } from "../../examples/quickstart/make-machines.ts";
import type { ProviderSpec } from "../../src/model/desired.ts";
import { instantOf } from "../../src/model/instant.ts";
import type { VmPath } from "../../src/model/vm-path.ts";
import { localProvider } from "../../src/providers/local/local-provider.ts";
import type { Provider } from "../../src/providers/provider.ts";
import { temporaryFolder } from "../support/cli.ts";
import { MiB, writeRaw } from "../support/disks.ts";
import { has, qemuImg } from "../support/qemu.ts";

const provider = (path: string): Provider => {
  const spec: ProviderSpec = { name: "lab", type: "local", path, writtenPath: path, root: "/dc/vm" as VmPath, origin: { file: "", document: 0, pointer: [] } };
  return localProvider(spec, { now: () => instantOf(0), sleep: async () => {} });
};
const raw = (path: string): void => writeRaw(path, { sizeBytes: MiB, islands: [{ offset: 0, length: 4096 }] });

describe("the local provider", () => {
  it("takes a folder with images for one VM, and an image at the top for one", async () => {
    const top = temporaryFolder();
    mkdirSync(join(top, "prod", "db-01"), { recursive: true });
    raw(join(top, "prod", "db-01", "b.raw"));
    raw(join(top, "prod", "db-01", "a.raw"));
    raw(join(top, "lone.raw"));
    const { vms, problems, unknown } = await provider(top).inventory();
    expect(vms.map(({ path, identity, disks }) => [path, identity, disks.map(({ name }) => name)])).toEqual([
      ["/dc/vm/lone", "lone.raw", ["lone.raw"]],
      ["/dc/vm/prod/db-01", "prod/db-01", ["a.raw", "b.raw"]],
    ]);
    expect(problems).toEqual([]);
    expect(unknown).toEqual([]);
    expect(await provider(top).inventory()).toEqual({ vms, problems, unknown });
  });

  it("says of a VM that it cannot read that it is there, and why, and goes on with the others", async () => {
    const top = temporaryFolder();
    for (const name of ["well", "empty", "cut"]) mkdirSync(join(top, name));
    raw(join(top, "well", "disk.raw"));
    writeFileSync(join(top, "empty", "disk.qcow2"), "");
    writeFileSync(join(top, "cut", "disk.vmdk"), "KDM");
    symlinkSync(join(top, "well"), join(top, "linked"));
    const { vms, problems, unknown } = await provider(top).inventory();
    expect(vms.map(({ identity }) => identity)).toEqual(["well"]);
    expect(unknown?.map(({ identity, reason }) => `${identity}: ${reason}`).sort()).toEqual([
      "cut: disk.vmdk holds no vmdk image: its header is missing",
      "empty: disk.qcow2 holds no qcow2 image: its header is missing",
    ]);
    expect(problems).toHaveLength(3);
    expect(problems).toContainEqual(expect.stringContaining("linked is a link to a folder"));
    await expect(provider(top).snapshot("empty")).rejects.toMatchObject({ code: "SourceUnavailable", message: expect.stringContaining("header is missing") });
  });

  it("says of a VM that lacks a file which one it is; a base named by its whole path is a part of the disk too", async () => {
    const top = temporaryFolder();
    for (const name of ["flat", "overlay", "whole"]) mkdirSync(join(top, name));
    writeFileSync(
      join(top, "flat", "d.vmdk"),
      '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 8 FLAT "d-flat.vmdk" 0\n',
    );
    for (const name of ["overlay", "whole"]) {
      const base = join(top, name, "base.qcow2");
      qemuImg("create", "-q", "-f", "qcow2", base, "1M");
      qemuImg("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", name === "whole" ? base : "base.qcow2", join(top, name, "top.qcow2"));
    }
    rmSync(join(top, "overlay", "base.qcow2"));
    const { vms, unknown } = await provider(top).inventory();
    expect(vms.map(({ identity, disks }) => [identity, disks.map(({ name }) => name)])).toEqual([["whole", ["top.qcow2"]]]);
    expect(unknown?.map(({ identity, reason }) => `${identity}: ${reason}`).sort()).toEqual([
      "flat: d.vmdk: the file d-flat.vmdk that belongs to it is missing",
      'overlay: top.qcow2: the file "base.qcow2" that it is based on is missing',
    ]);
  });

  it.skipIf(process.getuid?.() === 0)("nor does a file or a folder without permission keep it from the others", async () => {
    const top = temporaryFolder();
    for (const name of ["well", "file", "folder"]) {
      mkdirSync(join(top, name));
      raw(join(top, name, "disk.raw"));
    }
    renameSync(join(top, "file", "disk.raw"), join(top, "file", "disk.qcow2"));
    chmodSync(join(top, "file", "disk.qcow2"), 0);
    chmodSync(join(top, "folder"), 0);
    const { vms, unknown } = await provider(top).inventory();
    expect([vms.map(({ identity }) => identity), unknown?.map(({ identity }) => identity).sort()]).toEqual([["well"], ["file", "folder"]]);
    chmodSync(join(top, "folder"), 0o700);
  });

  it("tells of a VM whose descriptor is there and whose disks are elsewhere", async () => {
    const top = temporaryFolder();
    for (const name of ["away", "below/disks", "none"]) mkdirSync(join(top, name), { recursive: true });
    const vmx = (disk: string): string => `scsi0:0.present = "TRUE"\nscsi0:0.fileName = "${disk}"\n`;
    writeFileSync(join(top, "away", "away.vmx"), vmx("../elsewhere/d.vmdk"));
    writeFileSync(join(top, "below", "below.vmx"), vmx("disks/d.raw"));
    writeFileSync(join(top, "none", "none.vmx"), 'displayName = "none"\n');
    writeFileSync(join(top, "lone.vmx"), vmx("d.raw"));
    raw(join(top, "below", "disks", "d.raw"));
    const { vms, problems, unknown } = await provider(top).inventory();
    expect(vms.map(({ identity }) => identity)).toEqual(["below/disks"]);
    expect(unknown?.map(({ identity, reason }) => `${identity}: ${reason}`).sort()).toEqual([
      'away: away.vmx names the disk "../elsewhere/d.vmdk", which is not beside it',
      'below: below.vmx names the disk "disks/d.raw", which is not beside it',
    ]);
    expect(problems).toContain("lone.vmx names disks, and has no folder: give it one of its own, with them");
    expect(problems).toHaveLength(3);
  });

  it("follows a .vmx: its name, its disks with the boot disk first, the extents no disks of their own", async () => {
    const top = temporaryFolder();
    makeMachines(top, 1);
    const db = (await provider(top).inventory()).vms.find(({ path }) => path === "/dc/vm/db");
    expect(db).toMatchObject({
      name: "db",
      guestType: "debian12-64",
      firmware: "bios",
      disks: [
        { name: "system.vmdk", format: "vmdk", virtualBytes: 2 ** 30 },
        { name: "data.vmdk", format: "vmdk" },
      ],
    });
    const snapshot = await provider(top).snapshot("db");
    expect(snapshot.vm).toEqual({ name: "db", guestType: "debian12-64", firmware: "bios", cpus: 2, memoryBytes: 2 ** 31 });
    expect(snapshot.disks.map(({ name, variant }) => [name, variant])).toEqual([
      ["system.vmdk", "monolithicFlat"],
      ["data.vmdk", "streamOptimized"],
    ]);
    await snapshot.release();
  });

  it("reads an .ova in place, its disks in the hardware's order", async () => {
    const top = temporaryFolder();
    const staging = temporaryFolder();
    makeMachines(staging, 1);
    copyFileSync(join(staging, "web", "web.vmdk"), join(staging, "one.vmdk"));
    copyFileSync(join(staging, "db", "data.vmdk"), join(staging, "two.vmdk"));
    writeFileSync(
      join(staging, "m.ovf"),
      `<?xml version="1.0"?><Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="urn:rasd">
      <References><File ovf:id="f1" ovf:href="two.vmdk"/><File ovf:id="f2" ovf:href="one.vmdk"/></References>
      <DiskSection><Disk ovf:diskId="d1" ovf:fileRef="f1"/><Disk ovf:diskId="d2" ovf:fileRef="f2"/></DiskSection>
      <VirtualSystem ovf:id="appliance"><VirtualHardwareSection>
      <Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceType>6</rasd:ResourceType><rasd:Address>0</rasd:Address></Item>
      <Item><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>4</rasd:VirtualQuantity></Item>
      <Item><rasd:AddressOnParent>1</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/d1</rasd:HostResource><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/d2</rasd:HostResource><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      </VirtualHardwareSection></VirtualSystem></Envelope>`,
    );
    execFileSync("tar", ["--format=ustar", "-cf", join(top, "machine.ova"), "m.ovf", "two.vmdk", "one.vmdk"], { cwd: staging });
    const { vms, problems } = await provider(top).inventory();
    expect(problems).toEqual([]);
    expect(vms).toMatchObject([{ path: "/dc/vm/machine", name: "appliance", disks: [{ name: "one.vmdk" }, { name: "two.vmdk" }] }]);
    const snapshot = await provider(top).snapshot("machine.ova");
    const sector = Buffer.alloc(512);
    await snapshot.disks[0]?.source.read(0, sector);
    expect(sector.toString("latin1")).toContain("HYPERSDK-BOOT web");
    await snapshot.confirm();
    await snapshot.release();
  });

  it("notices that a file changed while it was read", async () => {
    const top = temporaryFolder();
    raw(join(top, "a.raw"));
    const snapshot = await provider(top).snapshot("a.raw");
    appendFileSync(join(top, "a.raw"), "x");
    await expect(snapshot.confirm()).rejects.toMatchObject({ code: "SourceChanged", isTransient: true });
    await snapshot.release();
    await snapshot.release();
  });

  it("follows no link out of its folder, and says so", async () => {
    const top = temporaryFolder();
    const outside = temporaryFolder();
    raw(join(outside, "secret.raw"));
    symlinkSync(join(outside, "secret.raw"), join(top, "link.raw"));
    const { vms, problems } = await provider(top).inventory();
    expect(vms).toEqual([]);
    expect(problems).toEqual([expect.stringContaining("leads out of")]);
  });

  it("reads nothing that only has the name of a disk, and says so", async () => {
    const top = temporaryFolder();
    mkdirSync(join(top, "vm"));
    execFileSync("mkfifo", [join(top, "vm/disk.raw")]);
    expect(await provider(top).inventory()).toMatchObject({ vms: [], problems: ["vm/disk.raw is no regular file, and is not read"] });
  });

  it("does not take a raw disk for the format whose header its guest wrote (CVE-2008-1945)", async () => {
    const top = temporaryFolder();
    const disk = Buffer.alloc(MiB);
    disk.write("QFI\xfb", "latin1");
    writeFileSync(join(top, "disk.raw"), disk);
    const { vms, problems } = await provider(top).inventory();
    expect(vms).toEqual([]);
    expect(problems).toEqual([expect.stringContaining("a guest may have written that")]);
  });

  it("calls a folder that is not there unreachable, not empty", async () => {
    await expect(provider(join(temporaryFolder(), "none")).inventory()).rejects.toMatchObject({ code: "ProviderUnreachable" });
  });

  it("copes with odd names, and says which cannot be VM paths", async () => {
    const top = temporaryFolder();
    for (const name of ["with space", "it's", 'say "x"', "größe 🦊", "new\nline"]) {
      mkdirSync(join(top, name));
      raw(join(top, name, "d.raw"));
    }
    const { vms, problems } = await provider(top).inventory();
    expect(vms.map(({ name }) => name).sort()).toEqual(["größe 🦊", "it's", 'say "x"', "with space"]);
    expect(problems).toEqual([expect.stringContaining("new\\nline")]);
  });

  it.skipIf(!has("qemu-io"))("refuses an image that QEMU holds locked as a running VM", async () => {
    const top = temporaryFolder();
    qemuImg("create", "-q", "-f", "qcow2", join(top, "disk.qcow2"), "1M");
    const holder = spawn("qemu-io", ["-f", "qcow2", join(top, "disk.qcow2")], { stdio: ["pipe", "pipe", "ignore"] });
    onTestFinished(() => void holder.kill());
    await new Promise((resolve) => holder.stdout.once("data", resolve));
    await expect(provider(top).snapshot("disk.qcow2")).rejects.toMatchObject({ code: "SourceLocked" });
  });
});
