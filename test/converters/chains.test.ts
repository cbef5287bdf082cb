import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { isZero } from "../../src/converters/block-source.ts";
import { compareDisks } from "../../src/converters/compare.ts";
import { writeImageFile } from "../../src/converters/image-file.ts";
import { type OpenedImage, openImage } from "../../src/converters/open-image.ts";
import { pour } from "../../src/converters/pour.ts";
import { crc32cWithout } from "../../src/converters/vhdx/crc32c.ts";
import type { ImageFormat } from "../../src/model/image-formats.ts";
import { temporaryFolder } from "../support/cli.ts";
import { makeVdiDifference, makeVhdDifference, makeVhdxDifference, writeCowd, writeSeSparse } from "../support/differences.ts";
import { bytes, MiB, writeRaw } from "../support/disks.ts";
import { has, qemuImg } from "../support/qemu.ts";

const hasQemu = has("qemu-img");

/** Writes a raw file as an image of ours. */
async function write(raw: string, path: string, format: ImageFormat): Promise<void> {
  const { source } = await openImage(raw, { from: "raw" });
  await writeImageFile(
    path,
    format,
    source.sizeBytes,
    { compression: "none", overwrite: false, inputs: [], durable: false },
    async (sink) => void (await pour(source, sink)),
  );
  await source.close();
}

/** Fails unless the image is the raw disk, by extents, by random reads and as a whole. */
async function isDisk(image: OpenedImage, raw: string): Promise<void> {
  const expected = await openImage(raw, { from: "raw" });
  expect(await compareDisks(expected.source, image.source)).toBeUndefined();
  for (const offset of [0, 511, 65_000, MiB - 7, image.source.sizeBytes - 1000]) {
    const [a, b] = [Buffer.alloc(1000), Buffer.alloc(1000)];
    await Promise.all([expected.source.read(offset, a), image.source.read(offset, b)]);
    expect(b.equals(a)).toBe(true);
  }
  let at = 0;
  for await (const extent of image.source.extents()) {
    expect(extent.offset).toBe(at);
    at += extent.length;
  }
  expect(at).toBe(image.source.sizeBytes);
  await Promise.all([expected.source.close(), image.source.close()]);
}

/** Three layers as raw disks: base, and what two children change of it; and the disk that they are together. */
function layers(folder: string): { readonly names: readonly string[]; readonly changed: readonly (readonly [number, number])[][]; readonly whole: string } {
  const size = 6 * MiB;
  const changed: [number, number][][] = [
    [
      [0, 3 * MiB],
      [5 * MiB, MiB],
    ],
    [
      [512, 1024],
      [2 * MiB - 4096, 8192],
    ],
    [
      [0, 512],
      [4 * MiB, 65_536],
      [size - 512, 512],
    ],
  ];
  const whole = Buffer.alloc(size);
  const names = changed.map((islands, i) => {
    const path = join(folder, `layer-${i}.raw`);
    writeRaw(path, { sizeBytes: size, islands: islands.map(([offset, length]) => ({ offset, length })) }, 10 * i + 1);
    const layer = readFileSync(path);
    for (const [offset, length] of islands) layer.copy(whole, offset, offset, offset + length);
    return path;
  });
  writeFileSync(join(folder, "whole.raw"), whole);
  return { names, changed, whole: join(folder, "whole.raw") };
}

const sectorsOf = (islands: readonly (readonly [number, number])[]): Set<number> =>
  new Set(islands.flatMap(([offset, length]) => Array.from({ length: length / 512 }, (_, i) => offset / 512 + i)));

describe("a chain of three", () => {
  it.each(["vhd", "vhdx"] as const)("of differencing %s images is one disk", async (format) => {
    const folder = temporaryFolder();
    const { names, changed, whole } = layers(folder);
    for (const [i, name] of names.entries()) {
      const child = join(folder, `disk-${i}.${format}`);
      await write(name, child, format);
      const make = format === "vhd" ? makeVhdDifference : makeVhdxDifference;
      if (i > 0) make({ child, parent: join(folder, `disk-${i - 1}.${format}`), sectors: sectorsOf(changed[i] ?? []) });
    }
    const image = await openImage(join(folder, `disk-2.${format}`));
    expect(image.chain.map(({ file, variant }) => [file.split("/").at(-1), variant])).toEqual([
      [`disk-2.${format}`, "differencing"],
      [`disk-1.${format}`, "differencing"],
      [`disk-0.${format}`, "dynamic"],
    ]);
    expect(image.otherFiles).toEqual([join(folder, `disk-1.${format}`), join(folder, `disk-0.${format}`)]);
    await isDisk(image, whole);
  });

  it("of differencing VDI images is one disk, found by id", async () => {
    const folder = temporaryFolder();
    const [whole, size] = [Buffer.alloc(6 * MiB), 6 * MiB];
    // a VDI changes whole blocks of 1 MiB
    for (const [i, block] of [0, 2, 5].entries()) {
      const raw = join(folder, `layer-${i}.raw`);
      writeRaw(raw, { sizeBytes: size, islands: [{ offset: block * MiB, length: MiB }] }, i + 1);
      readFileSync(raw).copy(whole, block * MiB, block * MiB, (block + 1) * MiB);
      await write(raw, join(folder, `disk-${i}.vdi`), "vdi");
      if (i > 0) makeVdiDifference(join(folder, `disk-${i}.vdi`), join(folder, `disk-${i - 1}.vdi`));
    }
    writeFileSync(join(folder, "whole.raw"), whole);
    await isDisk(await openImage(join(folder, "disk-2.vdi")), join(folder, "whole.raw"));
  });

  it.skipIf(!hasQemu).each([
    ["qcow2", []],
    ["qcow2", ["-o", "compat=0.10"]],
    ["qcow2", ["-o", "extended_l2=on,cluster_size=128k"]],
    ["qcow2", ["-o", "compression_type=zstd"]],
    ["vmdk", []],
    ["vmdk", ["-o", "subformat=twoGbMaxExtentSparse"]],
  ] as const)("that qemu-img made as %s %j is one disk", async (format, options) => {
    const folder = temporaryFolder();
    const { names, changed, whole } = layers(folder);
    for (const [i, name] of names.entries()) {
      const path = join(folder, `disk-${i}.${format}`);
      if (i === 0) qemuImg("convert", "-f", "raw", "-O", format, ...options, name, path);
      else {
        qemuImg("create", "-q", "-f", format, ...options, "-b", `disk-${i - 1}.${format}`, "-F", format, path);
        const writes = (changed[i] ?? []).flatMap(([offset, length]) => ["-c", `write -s ${name}.part ${offset} ${length}`]);
        for (const [offset, length] of changed[i] ?? []) {
          writeFileSync(`${name}.part`, readFileSync(name).subarray(offset, offset + length));
          execFileSync("qemu-io", ["-f", format, "-c", `write -q -s ${name}.part ${offset} ${length}`, path]);
        }
        expect(writes.length).toBeGreaterThan(0);
      }
    }
    await isDisk(await openImage(join(folder, `disk-2.${format}`)), whole);
  });

  it("of an ESX delta and a space-efficient one over a base is one disk, for qemu-img too", async () => {
    const folder = temporaryFolder();
    const { names, whole } = layers(folder);
    const [base, delta, newest] = names.map((name) => readFileSync(name)) as [Buffer, Buffer, Buffer];
    writeFileSync(join(folder, "base-flat.vmdk"), base);
    // VMware writes the trailing 0 that qemu-img 7.2 refuses
    writeFileSync(
      join(folder, "base.vmdk"),
      `# Disk DescriptorFile\r\nversion=1\r\nCID=11111111\r\nparentCID=ffffffff\r\ncreateType="vmfs"\r\nRW ${base.length / 512} VMFS "base-flat.vmdk" 0\r\n`,
    );
    // a delta's sectors of zeros are not there at all, so the layers' islands hold none
    writeCowd(folder, "snap1", delta, { cid: "22222222", parentCid: "11111111", parent: "base.vmdk" });
    const esx = await openImage(join(folder, "snap1.vmdk"));
    expect(esx.chain.map(({ variant }) => variant)).toEqual(["vmfsSparse", "vmfs"]);
    const middle = Buffer.from(base);
    for (let at = 0; at < middle.length; at += 512) if (!isZero(delta, at, at + 512)) delta.copy(middle, at, at, at + 512);
    writeFileSync(join(folder, "middle.raw"), middle);
    await isDisk(esx, join(folder, "middle.raw"));
    // grains of 4 KiB: a changed sector brings its neighbours along
    const top = Buffer.alloc(middle.length);
    const disk = readFileSync(whole);
    for (let at = 0; at < top.length; at += 4096) if (!isZero(newest, at, at + 4096)) disk.copy(top, at, at, at + 4096);
    writeSeSparse(folder, "snap2", top, { cid: "33333333", parentCid: "22222222", parent: "/vmfs/volumes/5f/web/snap1.vmdk" });
    await isDisk(await openImage(join(folder, "snap2.vmdk")), whole);
    if (!hasQemu) return;
    writeSeSparse(folder, "alone", top, { cid: "44444444", parentCid: "ffffffff", parent: "" });
    writeFileSync(join(folder, "top.raw"), top);
    qemuImg("compare", "-q", "-f", "vmdk", "-F", "raw", join(folder, "alone.vmdk"), join(folder, "top.raw"));
    writeCowd(folder, "lone", delta, { cid: "55555555", parentCid: "ffffffff", parent: "" });
    qemuImg("compare", "-q", "-f", "vmdk", "-F", "raw", join(folder, "lone.vmdk"), names[1] as string);
  });
});

describe("a parent", () => {
  async function pair(format: "vhd" | "vhdx"): Promise<{ readonly folder: string; readonly child: string; readonly parent: string }> {
    const folder = temporaryFolder();
    const { names, changed } = layers(folder);
    const [parent, child] = [join(folder, `base.${format}`), join(folder, `child.${format}`)];
    await write(names[0] as string, parent, format);
    await write(names[1] as string, child, format);
    (format === "vhd" ? makeVhdDifference : makeVhdxDifference)({ child, parent, sectors: sectorsOf(changed[1] ?? []) });
    return { folder, child, parent };
  }

  it.each(["vhd", "vhdx"] as const)("of a %s that is missing is named, never read as zeros", async (format) => {
    const { child, parent } = await pair(format);
    execFileSync("rm", [parent]);
    await expect(openImage(child)).rejects.toMatchObject({ code: "ImageDamaged", message: expect.stringContaining(`base.${format}`) as string });
  });

  it("of a VHDX whose locator says that it has thousands of entries is refused before they are read", async () => {
    const folder = temporaryFolder();
    const { names } = layers(folder);
    const [parent, child] = [join(folder, "parent.vhdx"), join(folder, "child.vhdx")];
    await write(names[0] as string, parent, "vhdx");
    await write(names[1] as string, child, "vhdx");
    makeVhdxDifference({ child, parent, sectors: new Set([1]) });
    const image = readFileSync(child);
    // where the maker puts the locator; its count stands behind its type
    image.writeUInt16LE(65_535, 2 * MiB + 70_000 + 18);
    writeFileSync(child, image);
    await expect(openImage(child)).rejects.toMatchObject({ code: "ImageDamaged", message: expect.stringContaining("65535 entries") as string });
  });

  it.each(["vhd", "vhdx"] as const)("of a %s that is another image is refused", async (format) => {
    const { folder, child, parent } = await pair(format);
    execFileSync("rm", [parent]);
    await write(join(folder, "layer-0.raw"), parent, format);
    await expect(openImage(child)).rejects.toMatchObject({ code: "ImageDamaged", message: expect.stringContaining("was changed or is another one") as string });
  });

  it.skipIf(!hasQemu)("outside the folder is opened only where the operator allows it", async () => {
    const folder = temporaryFolder();
    mkdirSync(join(folder, "golden"));
    mkdirSync(join(folder, "web"));
    writeRaw(join(folder, "golden/base.raw"), { sizeBytes: 2 * MiB, islands: [{ offset: 0, length: MiB }] });
    qemuImg("create", "-q", "-f", "qcow2", "-b", "../golden/base.raw", "-F", "raw", join(folder, "web/disk.qcow2"));
    await expect(openImage(join(folder, "web/disk.qcow2"))).rejects.toMatchObject({ code: "ImageUnsafe" });
    await isDisk(await openImage(join(folder, "web/disk.qcow2"), { allowBacking: [join(folder, "golden")] }), join(folder, "golden/base.raw"));
  });

  it.skipIf(!hasQemu).each(['json:{"driver":"file"}', "nbd://127.0.0.1/x", "/etc/passwd", "../../etc/passwd", "fat:rw:/etc", "/dev/zero"])(
    "called %s is refused without opening anything",
    async (name) => {
      const folder = temporaryFolder();
      const path = join(folder, "disk.qcow2");
      qemuImg("create", "-q", "-f", "qcow2", path, "1M");
      const image = readFileSync(path);
      image.writeBigUInt64BE(1024n, 8);
      image.writeUInt32BE(Buffer.byteLength(name), 16);
      image.write(name, 1024);
      writeFileSync(path, image);
      await expect(openImage(path)).rejects.toMatchObject({ code: expect.stringMatching(/ImageUnsafe|ImageDamaged/) as string });
    },
  );

  it.skipIf(!hasQemu)("that leads in a circle, or 65 deep, is refused", async () => {
    const folder = temporaryFolder();
    const at = (i: number): string => join(folder, `disk-${i}.qcow2`);
    qemuImg("create", "-q", "-f", "qcow2", at(0), "1M");
    for (let i = 1; i <= 65; i++) {
      copyFileSync(at(0), at(i));
      const image = readFileSync(at(i));
      const name = `disk-${i - 1}.qcow2`;
      image.writeBigUInt64BE(1024n, 8);
      image.writeUInt32BE(name.length, 16);
      image.write(name, 1024);
      writeFileSync(at(i), image);
    }
    await expect(openImage(at(65))).rejects.toMatchObject({ code: "ImageDamaged", message: expect.stringContaining("longer than 64") as string });
    const circle = readFileSync(at(3));
    circle.write("disk-3.qcow2", 1024);
    circle.writeUInt32BE(12, 16);
    writeFileSync(at(1), circle);
    await expect(openImage(at(3))).rejects.toMatchObject({ code: "ImageDamaged", message: expect.stringContaining("comes back") as string });
  });
});

describe.skipIf(!hasQemu)("a VHDX that was not closed", () => {
  it("is read with its log replayed, whatever of it had reached the tables", async () => {
    const folder = temporaryFolder();
    const raw = join(folder, "disk.raw");
    writeRaw(raw, { sizeBytes: 40 * MiB, islands: [{ offset: 0, length: MiB }] });
    const path = join(folder, "disk.vhdx");
    qemuImg("convert", "-f", "raw", "-O", "vhdx", "-o", "block_size=1M", raw, path);
    writeFileSync(join(folder, "part"), bytes(2 * MiB, 9));
    execFileSync("qemu-io", ["-f", "vhdx", "-c", `write -q -s ${join(folder, "part")} 20M 2M`, path]);
    const expected = Buffer.from(readFileSync(raw));
    bytes(2 * MiB, 9).copy(expected, 20 * MiB);
    writeFileSync(join(folder, "expected.raw"), expected);

    // qemu leaves the entries of its log behind; with their id in the headers they count again, as after a crash
    const image = readFileSync(path);
    const log = image.subarray(MiB, 2 * MiB);
    const entries = [...Array(256).keys()].map((i) => log.subarray(i * 4096, i * 4096 + 64)).filter((entry) => entry.toString("latin1", 0, 4) === "loge");
    const last = entries.sort((a, b) => Number(b.readBigUInt64LE(16) - a.readBigUInt64LE(16)))[0] as Buffer;
    for (const at of [65_536, 131_072]) {
      const header = image.subarray(at, at + 4096);
      last.copy(header, 48, 32, 48);
      header.writeUInt32LE(crc32cWithout(header, 4), 4);
    }
    // as if the power had gone before the block table itself was written
    const bat = "6677c22d23f600429d64115e9bfd4a08";
    const region = [...Array(4).keys()].map((i) => image.subarray(196_608 + 16 + i * 32)).find((entry) => entry.toString("hex", 0, 16) === bat) as Buffer;
    const tableAt = Number(region.readBigUInt64LE(16));
    const before = Buffer.from(image.subarray(tableAt, tableAt + 4096));
    image.fill(0, tableAt, tableAt + 4096);
    expect(before.equals(image.subarray(tableAt, tableAt + 4096))).toBe(false);
    writeFileSync(path, image);
    const open = await openImage(path);
    expect(open.details.notes).toEqual([expect.stringContaining("replayed") as string]);
    await isDisk(open, join(folder, "expected.raw"));
    // in memory only
    expect(readFileSync(path).equals(image)).toBe(true);
    // the oracle repairs a copy
    copyFileSync(path, join(folder, "repaired.vhdx"));
    execFileSync("qemu-img", ["check", "-q", "-r", "all", "-f", "vhdx", join(folder, "repaired.vhdx")]);
    qemuImg("compare", "-q", "-f", "vhdx", "-F", "raw", join(folder, "repaired.vhdx"), join(folder, "expected.raw"));
  });

  it("with a log whose entries all claim to be the whole of it is refused before they are read", async () => {
    const folder = temporaryFolder();
    const path = join(folder, "disk.vhdx");
    qemuImg("create", "-q", "-f", "vhdx", path, "4M");
    const image = readFileSync(path);
    const id = Buffer.alloc(16, 7);
    for (const at of [65_536, 131_072]) {
      const header = image.subarray(at, at + 4096);
      id.copy(header, 48);
      header.writeUInt32LE(crc32cWithout(header, 4), 4);
    }
    for (let at = MiB; at < 2 * MiB; at += 4096) {
      image.write("loge", at, "latin1");
      image.writeUInt32LE(MiB, at + 8);
      id.copy(image, at + 32);
    }
    writeFileSync(path, image);
    await expect(openImage(path)).rejects.toMatchObject({ code: "ImageDamaged", message: expect.stringContaining("entries of the log overlap") as string });
  });
});
