import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { checkImage } from "../../src/converters/check-image.ts";
import { openImage } from "../../src/converters/open-image.ts";
import { checkImageOptions } from "../../src/converters/write-image.ts";
import { hypersdk, temporaryFolder } from "../support/cli.ts";
import { makeVdiDifference } from "../support/differences.ts";
import { MiB, writeRaw } from "../support/disks.ts";
import { has, qemuImg } from "../support/qemu.ts";

const damaged = { code: "ImageDamaged" };
const sizeOf = async (path: string): Promise<number> => {
  const { source } = await openImage(path);
  await source.close();
  return source.sizeBytes;
};

describe("a disk that was split", () => {
  it("has all its parts, through a link too, however many files are beside it", async () => {
    const folder = temporaryFolder();
    for (const i of [1, 3]) writeFileSync(join(folder, `z.00${i}`), Buffer.alloc(4096, i));
    await expect(openImage(join(folder, "z.001"))).rejects.toMatchObject({ ...damaged, message: expect.stringContaining("z.002 is missing") as string });
    writeFileSync(join(folder, "second"), Buffer.alloc(4096, 2));
    symlinkSync("second", join(folder, "z.002"));
    expect(await sizeOf(join(folder, "z.001"))).toBe(3 * 4096);
  });

  it("is not what another file happens to be called", async () => {
    const folder = temporaryFolder();
    for (const i of [1, 2]) writeFileSync(join(folder, `vm.${i}`), Buffer.alloc(4096, i));
    expect(await sizeOf(join(folder, "vm.1"))).toBe(4096);
  });
});

describe("a VMDK", () => {
  it("whose guest wrote a descriptor into its raw disk does not get at its neighbour", async () => {
    const folder = temporaryFolder();
    writeFileSync(join(folder, "secret-flat.vmdk"), Buffer.alloc(4096, 7));
    writeFileSync(join(folder, "guest.raw"), '# Disk DescriptorFile\ncreateType="monolithicFlat"\nRW 8 FLAT "secret-flat.vmdk" 0\n'.padEnd(4096, "\0"));
    await expect(openImage(join(folder, "guest.raw"))).rejects.toMatchObject({ code: "ImageUnsafe" });
    await (await openImage(join(folder, "guest.raw"), { from: "raw" })).source.close();
  });

  it("with a line of 500 KB in its descriptor is answered at once", async () => {
    const folder = temporaryFolder();
    writeFileSync(join(folder, "long.vmdk"), `# Disk DescriptorFile\na=${" ".repeat(500_000)}"b"c\n`);
    const started = performance.now();
    await expect(openImage(join(folder, "long.vmdk"))).rejects.toMatchObject(damaged);
    expect(performance.now() - started).toBeLessThan(2000);
  });

  it.skipIf(!has("qemu-img"))("whose flags, algorithm and descriptor contradict each other is refused", async () => {
    const folder = temporaryFolder();
    const path = join(folder, "disk.vmdk");
    writeRaw(join(folder, "a.raw"), { sizeBytes: MiB, islands: [{ offset: 0, length: 100_000 }] });
    qemuImg("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", join(folder, "a.raw"), path);
    const bytes = readFileSync(path);
    bytes.writeUInt32LE(1, 8);
    bytes.writeUInt32LE(1, bytes.length - 1024 + 8);
    writeFileSync(path, bytes);
    await expect(openImage(path)).rejects.toMatchObject(damaged);
  });

  it("with a grain in its own header is refused", async () => {
    const folder = temporaryFolder();
    const path = join(folder, "disk.vmdk");
    writeRaw(join(folder, "a.raw"), { sizeBytes: MiB, islands: [{ offset: 0, length: 100_000 }] });
    expect(await hypersdk(folder, ["convert", "a.raw", "disk.vmdk"])).toMatchObject({ code: 0 });
    const bytes = readFileSync(path);
    const table = bytes.readUInt32LE(Number(bytes.readBigUInt64LE(56)) * 512) * 512;
    bytes.writeUInt32LE(2, table);
    writeFileSync(path, bytes);
    expect((await checkImage(path, {})).problems).toEqual([
      expect.stringContaining("the redundant grain table 0") as string,
      expect.stringContaining("its own structures") as string,
    ]);
  });

  it.skipIf(!has("qemu-img"))("knows a parent whose CID begins with a zero, which qemu leaves out", async () => {
    const folder = temporaryFolder();
    qemuImg("create", "-q", "-f", "vmdk", join(folder, "base.vmdk"), "1M");
    const base = readFileSync(join(folder, "base.vmdk"));
    const text = base.toString("latin1", 512, 20 * 512).replace(/\nCID=[0-9a-f]+/, "\nCID=0893b998");
    base.fill(0, 512, 20 * 512).write(text.slice(0, 19 * 512 - 1), 512, "latin1");
    writeFileSync(join(folder, "base.vmdk"), base);
    qemuImg("create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", join(folder, "child.vmdk"));
    expect(await sizeOf(join(folder, "child.vmdk"))).toBe(MiB);
  });
});

describe.skipIf(!has("qemu-img"))("a VHD", () => {
  it("of before 2004, with a footer of 511 bytes, is read", async () => {
    const folder = temporaryFolder();
    const path = join(folder, "old.vhd");
    qemuImg("create", "-q", "-f", "vpc", "-o", "subformat=fixed,force_size=on", path, "2M");
    truncateSync(path, 2 * MiB + 511);
    expect(await sizeOf(path)).toBe(2 * MiB);
  });

  it("with a block in its own header is refused", async () => {
    const folder = temporaryFolder();
    writeRaw(join(folder, "a.raw"), { sizeBytes: 4 * MiB, islands: [{ offset: 0, length: 4096 }] });
    qemuImg("convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on", join(folder, "a.raw"), join(folder, "a.vhd"));
    const bytes = readFileSync(join(folder, "a.vhd"));
    bytes.writeUInt32BE(1, bytes.readUInt32BE(532));
    writeFileSync(join(folder, "a.vhd"), bytes);
    expect((await checkImage(join(folder, "a.vhd"), {})).problems).toEqual([expect.stringContaining("its own structures") as string]);
  });
});

describe.skipIf(!has("qemu-img"))("a VDI", () => {
  it("whose data begin in its table is refused", async () => {
    const folder = temporaryFolder();
    qemuImg("create", "-q", "-f", "vdi", join(folder, "a.vdi"), "4M");
    const bytes = readFileSync(join(folder, "a.vdi"));
    bytes.writeUInt32LE(0, 344);
    writeFileSync(join(folder, "a.vdi"), bytes);
    await expect(openImage(join(folder, "a.vdi"))).rejects.toMatchObject(damaged);
  });

  it("finds its parent whatever else is in the folder, and takes nothing else for its own", async () => {
    const folder = temporaryFolder();
    for (const name of ["base", "child", "other"]) qemuImg("create", "-q", "-f", "vdi", join(folder, `${name}.vdi`), "4M");
    makeVdiDifference(join(folder, "child.vdi"), join(folder, "base.vdi"));
    writeFileSync(join(folder, "a\nb.vdi"), "");
    writeFileSync(join(folder, "ab:c.vdi"), "x".repeat(1000));
    mkdirSync(join(folder, "sub"));
    execFileSync("mv", [join(folder, "base.vdi"), join(folder, "sub")]);
    symlinkSync("sub/base.vdi", join(folder, "base.vdi"));
    const { source, otherFiles } = await openImage(join(folder, "child.vdi"));
    await source.close();
    expect(otherFiles).toEqual([join(folder, "sub/base.vdi")]);
  });
});

describe.skipIf(!has("qemu-img"))("a QCOW2", () => {
  it("whose tables are used by many is refused, by reading and by check, in little time", async () => {
    const folder = temporaryFolder();
    const path = join(folder, "bomb.qcow2");
    qemuImg("create", "-q", "-f", "qcow2", path, "8G");
    execFileSync("qemu-io", ["-f", "qcow2", "-c", "write -q 0 4M", path]);
    const bytes = readFileSync(path);
    const l1 = Number(bytes.readBigUInt64BE(40));
    const l2 = Number(bytes.readBigUInt64BE(l1) & 0x00fffffffffffe00n);
    for (let i = 0; i < 8192; i++) bytes.copy(bytes, l2 + i * 8, l2, l2 + 8);
    for (let i = 1; i < 16; i++) bytes.copy(bytes, l1 + i * 8, l1, l1 + 8);
    writeFileSync(path, bytes);
    expect((await checkImage(path, {})).problems.join()).toContain("used more than once");
    expect(await hypersdk(folder, ["convert", path, "out.raw"])).toMatchObject({ code: 11 });
  });

  it("in a file of 8 TiB with nothing in it is checked", async () => {
    const folder = temporaryFolder();
    const path = join(folder, "sparse.qcow2");
    qemuImg("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "1M");
    truncateSync(path, 8 * 2 ** 40);
    expect(await checkImage(path, {})).toEqual({ format: "qcow2", problems: [], leaks: 0, notes: [] });
  });

  it("with persistent bitmaps has no leaks", async () => {
    const folder = temporaryFolder();
    const path = join(folder, "bitmap.qcow2");
    qemuImg("create", "-q", "-f", "qcow2", path, "10M");
    qemuImg("bitmap", "--add", path, "b0");
    expect(await checkImage(path, {})).toEqual({ format: "qcow2", problems: [], leaks: 0, notes: [] });
  });

  it("finds a backing file whose name holds a colon", async () => {
    const folder = temporaryFolder();
    qemuImg("create", "-q", "-f", "qcow2", `./${"ab:c.qcow2"}`.replace("./", `${folder}/`), "1M");
    qemuImg("create", "-q", "-f", "qcow2", "-b", "./ab:c.qcow2", "-F", "qcow2", join(folder, "child.qcow2"));
    expect(await sizeOf(join(folder, "child.qcow2"))).toBe(MiB);
  });
});

describe("what is written", () => {
  it.each(["vmdk", "vhd", "vhdx", "vdi"] as const)("as %s holds at least a sector", (format) => {
    expect(() => checkImageOptions(format, 0, { compression: "none" })).toThrow("0 bytes");
  });

  it("as monolithicSparse is at most 30 TiB", () => {
    expect(() => checkImageOptions("vmdk", 60 * 2 ** 40, { compression: "none" })).toThrow("is not written");
    expect(checkImageOptions("vmdk", 60 * 2 ** 40, { compression: "zlib" })).toBe(60 * 2 ** 40);
  });

  it("goes into a folder that is made for it, and is named as it was asked for when it cannot be", async () => {
    const folder = temporaryFolder();
    writeRaw(join(folder, "a.raw"), { sizeBytes: MiB, islands: [{ offset: 0, length: 512 }] });
    expect(await hypersdk(folder, ["convert", "a.raw", "new/", "--to", "vhd"])).toMatchObject({ code: 0 });
    const failed = await hypersdk(folder, ["convert", "a.raw", "nowhere/a.vhd"]);
    expect([failed.code, failed.stderr]).toEqual([1, expect.stringContaining("nowhere/a.vhd") as string]);
    expect(failed.stderr).not.toContain(".partial");
    expect(await hypersdk(folder, ["convert", "a.raw", "b.vhd", "--allow-backing", "none"])).toMatchObject({ code: 64 });
  });

  it.skipIf(!has("qemu-img"))("is refused when an input changed while it waited for its turn", async () => {
    const folder = temporaryFolder();
    writeRaw(join(folder, "small.raw"), { sizeBytes: MiB, islands: [{ offset: 0, length: 512 }] });
    writeRaw(join(folder, "big.raw"), { sizeBytes: 256 * MiB, islands: Array.from({ length: 64 }, (_, i) => ({ offset: i * 4 * MiB, length: 4 * MiB })) });
    const running = hypersdk(folder, ["convert", "big.raw", "small.raw", "out", "--to", "qcow2", "--parallelism", "1", "--compress", "zlib"]);
    // both were looked at before the first of them is written
    const out = join(folder, "out");
    while (!existsSync(out) || readdirSync(out).length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    truncateSync(join(folder, "small.raw"), 2 * MiB);
    expect(await running).toMatchObject({ stderr: expect.stringContaining("changed while it was read") as string });
  });
});
