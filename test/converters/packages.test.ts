import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openMachine } from "../../src/converters/machine/open-machine.ts";
import { tarHeader } from "../../src/converters/machine/tar-writer.ts";
import { hypersdk, temporaryFolder, workTree } from "../support/cli.ts";
import { MiB, writeRaw } from "../support/disks.ts";
import { has, qemuImg, sameForQemu } from "../support/qemu.ts";

/** A folder with a VM of VMware: two disks, the second one first in the boot order. */
function machine(): string {
  const folder = temporaryFolder();
  for (const [i, name] of ["data", "system"].entries()) {
    writeRaw(join(folder, `${name}.raw`), { sizeBytes: (4 + i) * MiB, islands: [{ offset: i * MiB, length: MiB }] }, i + 1);
    qemuImg("convert", "-f", "raw", "-O", "vmdk", join(folder, `${name}.raw`), join(folder, `${name}.vmdk`));
  }
  writeFileSync(
    join(folder, "db.vmx"),
    'displayName = "db & <co>"\nguestOS = "debian12-64"\nfirmware = "efi"\nnumvcpus = "2"\nmemsize = "2048"\nbios.hddOrder = "scsi0:1"\nscsi0:0.fileName = "data.vmdk"\nscsi0:1.fileName = "system.vmdk"\n',
  );
  return folder;
}

/** The archive as Python reads it, every hash of its manifest computed again. */
const read = `
import hashlib, re, sys, tarfile, xml.etree.ElementTree as tree
archive = tarfile.open(sys.argv[1])
members = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}
names = list(members)
assert names[0].endswith(".ovf") and names[1].endswith(".mf"), names
for algorithm, name, value in re.findall(r"(\\w+)\\((.+)\\)= (\\w+)", members[names[1]].decode()):
    assert hashlib.new(algorithm, members[name]).hexdigest() == value, name
ns = "{http://schemas.dmtf.org/ovf/envelope/1}"
root = tree.fromstring(members[names[0]])
for f in root.iter(ns + "File"):
    assert int(f.get(ns + "size")) == len(members[f.get(ns + "href")])
print(root.find(ns + "VirtualSystem").find(ns + "Name").text, [d.get(ns + "capacity") for d in root.iter(ns + "Disk")])
`;

describe.skipIf(!has("qemu-img"))("a VM of several disks", () => {
  it("becomes an archive that others read, and comes back as it was", async () => {
    const folder = machine();
    expect(await hypersdk(folder, ["convert", "db.vmx", "db.ova"])).toMatchObject({ code: 0, stderr: "" });
    expect(execFileSync("python3", ["-c", read, join(folder, "db.ova")], { encoding: "utf8" })).toBe(`db & <co> ['${5 * MiB}', '${4 * MiB}']\n`);
    const { descriptor } = await openMachine(join(folder, "db.ova"));
    expect(descriptor).toMatchObject({ name: "db & <co>", guestType: "debian12-64", firmware: "efi", cpus: 2, memoryBytes: 2048 * MiB });
    expect(await hypersdk(folder, ["convert", "db.ova", "out/", "--to", "vhdx", "--parallelism", "2"])).toMatchObject({ code: 0 });
    sameForQemu(join(folder, "out/db-disk1.vhdx"), "vhdx", join(folder, "system.raw"), "raw");
    sameForQemu(join(folder, "out/db-disk2.vhdx"), "vhdx", join(folder, "data.raw"), "raw");
    expect(await hypersdk(folder, ["convert", "db.ova", "one.qcow2"])).toMatchObject({
      code: 64,
      stderr: expect.stringContaining("there are 2 disks") as string,
    });
  });

  it("becomes a descriptor with its disks beside it", async () => {
    const folder = machine();
    mkdirSync(join(folder, "package"));
    expect(await hypersdk(folder, ["convert", "db.vmx", "package/db.ovf"])).toMatchObject({ code: 0 });
    for (const disk of (await openMachine(join(folder, "package/db.ovf"))).disks) await (await disk.open()).source.close();
    expect(await hypersdk(folder, ["convert", "db.vmx", "package/db.ovf"])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("exists already") as string,
    });
    const disk = readFileSync(join(folder, "package/db-disk1.vmdk"));
    disk[disk.length - 3000] = (disk[disk.length - 3000] as number) ^ 1;
    writeFileSync(join(folder, "package/db-disk1.vmdk"), disk);
    expect(await hypersdk(folder, ["convert", "package/db.ovf", "out/", "--to", "raw"])).toMatchObject({
      code: 11,
      stderr: expect.stringContaining("is not the file that the manifest") as string,
    });
  });

  it("in an archive that was damaged on its way is refused, by convert and by an export", async () => {
    const folder = workTree(
      'version: v2\nschedules:\n  - name: nightly\n    cron: "0 2 * * *"\n    initialExport: immediate\n    retry: {attempts: 0}\n    vms: [/datacenter/vm/*]\n    destination: file:./exports\n',
    );
    const from = machine();
    mkdirSync(join(folder, "machines"));
    await hypersdk(from, ["convert", "db.vmx", join(folder, "machines/db.ova")]);
    const archive = readFileSync(join(folder, "machines/db.ova"));
    // a byte of padding inside the last disk: no table and no stream of it notices
    archive[archive.length - 1024 - 512] = 7;
    writeFileSync(join(folder, "machines/db.ova"), archive);
    expect(await hypersdk(folder, ["convert", "machines/db.ova", "out/", "--to", "raw"])).toMatchObject({ code: 11 });
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({
      code: 7,
      stderr: expect.stringContaining("is not the file that the manifest") as string,
    });
  });

  it("keeps its own disks, whatever the output is called", async () => {
    const folder = machine();
    const original = readFileSync(join(folder, "data.vmdk"));
    writeFileSync(join(folder, "data-disk1.vmdk"), original);
    writeFileSync(join(folder, "data.vmx"), 'scsi0:0.fileName = "data-disk1.vmdk"\n');
    for (const args of [
      ["convert", "db.vmx", "./", "--to", "vmdk"],
      ["convert", "data.vmx", "data.ovf"],
      ["convert", "data.vmx", "data.vmx", "--to", "raw"],
      ["convert", "data.vmdk", "system.vmdk", "./", "--to", "vmdk"],
    ])
      expect([args, await hypersdk(folder, [...args, "--overwrite"])]).toEqual([args, expect.objectContaining({ code: 64 })]);
    expect(readFileSync(join(folder, "data.vmdk")).equals(original)).toBe(true);
    expect(readFileSync(join(folder, "data-disk1.vmdk")).equals(original)).toBe(true);
  });

  it("that fails leaves the package that was there before as it was, and nothing of its own", async () => {
    const folder = machine();
    mkdirSync(join(folder, "package"));
    expect(await hypersdk(folder, ["convert", "db.vmx", "package/db.ovf"])).toMatchObject({ code: 0 });
    const names = readdirSync(join(folder, "package")).sort();
    const before = names.map((name) => readFileSync(join(folder, "package", name)));
    const damaged = readFileSync(join(folder, "data.vmdk"));
    // a grain beyond the end, which is met when the second disk is read: the first one is written by then
    const table = damaged.readUInt32LE(Number(damaged.readBigUInt64LE(56)) * 512) * 512;
    damaged.writeUInt32LE(0x7fffffff, table);
    writeFileSync(join(folder, "data.vmdk"), damaged);
    expect(await hypersdk(folder, ["convert", "db.vmx", "package/db.ovf", "--overwrite"])).toMatchObject({ code: 11 });
    expect(readdirSync(join(folder, "package")).sort()).toEqual(names);
    expect(names.map((name) => readFileSync(join(folder, "package", name)))).toEqual(before);
  });

  it("cannot name a disk outside of its folder", async () => {
    const folder = machine();
    writeFileSync(join(folder, "evil.vmx"), 'scsi0:0.fileName = "../../etc/shadow.vmdk"\n');
    expect(await hypersdk(folder, ["convert", "evil.vmx", "out.ova"])).toMatchObject({ code: 11 });
  });
});

describe("the header of an archive's member", () => {
  it.each([0, 511, 8 ** 11 - 1, 8 ** 11, 3 * 2 ** 40])("of %d bytes is read by Python as it was written", (bytes) => {
    const header = tarHeader("disk.vmdk", bytes, 1_700_000_000);
    const script = "import sys, tarfile; t = tarfile.TarInfo.frombuf(sys.stdin.buffer.read(512), 'utf-8', 'strict'); print(t.name, t.size, t.mtime)";
    expect(execFileSync("python3", ["-c", script], { input: header, encoding: "utf8" })).toBe(`disk.vmdk ${bytes} 1700000000\n`);
  });
});
