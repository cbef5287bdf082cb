import { execFileSync } from "node:child_process";
import { copyFileSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { deflateRawSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { piecesOf } from "../../src/converters/block-source.ts";
import { checkImage } from "../../src/converters/check-image.ts";
import { openImage } from "../../src/converters/open-image.ts";
import { checksum } from "../../src/converters/vhd/layout.ts";
import { crc32cWithout } from "../../src/converters/vhdx/crc32c.ts";
import { HypersdkError } from "../../src/model/errors.ts";
import { temporaryFolder } from "../support/cli.ts";
import { KiB, MiB, random, writeRaw } from "../support/disks.ts";
import { has, qemuImg } from "../support/qemu.ts";

/** The content of a disk of a few MiB; nothing of one that says it is larger. */
async function readWhole(path: string): Promise<Buffer> {
  const { source } = await openImage(path);
  try {
    for await (const _extent of source.extents()) {
    }
    const content = Buffer.alloc(Math.min(source.sizeBytes, 16 * MiB));
    for await (const { offset, data } of piecesOf(source)) if (offset < content.length) data.copy(content, offset);
    return content;
  } finally {
    await source.close();
  }
}

/** Reading ends well or with an error that has a code: anything else is a bug. */
async function readsOrRefuses(path: string): Promise<void> {
  try {
    await readWhole(path);
  } catch (error) {
    expect(error, String((error as Error).stack)).toBeInstanceOf(HypersdkError);
  }
}

describe.skipIf(!has("qemu-img"))("a hostile image", () => {
  const kinds: readonly [string, readonly string[]][] = [
    ["qcow2", ["-O", "qcow2"]],
    ["zlib.qcow2", ["-O", "qcow2", "-c"]],
    ["sparse.vmdk", ["-O", "vmdk", "-o", "subformat=monolithicSparse"]],
    ["stream.vmdk", ["-O", "vmdk", "-o", "subformat=streamOptimized"]],
    ["vhd", ["-O", "vpc", "-o", "force_size=on"]],
    ["vdi", ["-O", "vdi"]],
  ];
  function made(folder: string, args: readonly string[], name: string): string {
    const raw = join(folder, "original.raw");
    writeRaw(raw, {
      sizeBytes: 2 * MiB,
      islands: [
        { offset: 0, length: 100 * KiB },
        { offset: MiB, length: 70 * KiB },
      ],
    });
    const path = join(folder, `disk.${name}`);
    qemuImg("convert", "-f", "raw", ...args, raw, path);
    return path;
  }

  for (const [name, args] of kinds) {
    it(`cut anywhere is refused, or is the same disk: ${name}`, async () => {
      const folder = temporaryFolder();
      const whole = readFileSync(made(folder, args, name));
      const original = readFileSync(join(folder, "original.raw"));
      const path = join(folder, `cut.${name}`);
      const lengths = Array.from({ length: Math.ceil(whole.length / (4096 + 511)) }, (_, i) => 1 + i * (4096 + 511));
      // a cut leaves a sparse file where it was one, whose end reads as a hole
      const atTheEnd = [1, 511, 512, 1024, 4000, 40_000, 65_535].map((missing) => whole.length - missing);
      for (const [length, isSparse] of [...[...lengths, ...atTheEnd].map((each) => [each, false] as const), ...atTheEnd.map((each) => [each, true] as const)]) {
        if (isSparse) {
          copyFileSync(join(folder, `disk.${name}`), path);
          truncateSync(path, length);
        } else writeFileSync(path, whole.subarray(0, length));
        const read = await readWhole(path).catch((error: unknown) => {
          if (!(error instanceof HypersdkError)) throw error;
          return undefined;
        });
        expect([length, isSparse, read === undefined || read.equals(original)]).toEqual([length, isSparse, true]);
      }
    });

    it(`with flipped bytes in its metadata is refused or read, never a crash: ${name}`, async () => {
      const folder = temporaryFolder();
      const whole = readFileSync(made(folder, args, name));
      const next = random(4711);
      const path = join(folder, `flipped.${name}`);
      for (let i = 0; i < 250; i++) {
        const copy = Buffer.from(whole);
        for (let flips = 1 + Math.floor(next() * 4); flips > 0; flips--) {
          const at = Math.floor(next() * (next() < 0.7 ? Math.min(1024, copy.length) : copy.length));
          copy[at] = [0, 0xff, 0x7f, 0x80, Math.floor(next() * 256)][Math.floor(next() * 5)] as number;
        }
        writeFileSync(path, copy);
        await readsOrRefuses(path);
      }
    });
  }

  it("that says a huge L1 table, cluster bits of 0 or 31, or 16 EiB is refused by the field's name", async () => {
    const folder = temporaryFolder();
    const whole = readFileSync(made(folder, ["-O", "qcow2"], "qcow2"));
    const poked = async (poke: (bytes: Buffer) => void): Promise<string> => {
      const copy = Buffer.from(whole);
      poke(copy);
      writeFileSync(join(folder, "poked.qcow2"), copy);
      return readWhole(join(folder, "poked.qcow2")).then(
        () => "read",
        (error: HypersdkError) => `${error.code} ${error.message}`,
      );
    };
    expect(await poked((bytes) => bytes.writeUInt32BE(0xffffffff, 36))).toMatch(/ImageDamaged .*l1_size is 4294967295/);
    expect(await poked((bytes) => bytes.writeUInt32BE(0, 20))).toMatch(/ImageDamaged .*cluster_bits is 0/);
    expect(await poked((bytes) => bytes.writeUInt32BE(31, 20))).toMatch(/ImageDamaged .*cluster_bits is 31/);
    expect(await poked((bytes) => bytes.writeBigUInt64BE(2n ** 64n - 1n, 24))).toMatch(/ImageDamaged .*size is 18446744073709551615/);
    expect(await poked((bytes) => bytes.writeBigUInt64BE(4n, 72))).toMatch(/ImageUnsupported .*external file/);
    expect(await poked((bytes) => bytes.writeUInt32BE(1, 32))).toMatch(/ImageUnsupported .*encrypted/);
  });

  it.each([
    ["vhd", ["-O", "vpc", "-o", "force_size=on"], (bytes: Buffer) => bytes.writeUInt32BE(0xffffffff, 512 + 28), /the table offset|entries|checksum/],
    ["vhd", ["-O", "vpc", "-o", "force_size=on"], (bytes: Buffer) => bytes.writeUInt32BE(0, 512 + 32), /the block size is 0/],
    ["vdi", ["-O", "vdi"], (bytes: Buffer) => bytes.writeUInt32LE(0, 376), /the block size is 0/],
    ["vdi", ["-O", "vdi"], (bytes: Buffer) => bytes.writeUInt32LE(1, 384), /the table has 1 entries, the disk needs 2/],
    ["vdi", ["-O", "vdi"], (bytes: Buffer) => bytes.writeBigUInt64LE(2n ** 63n, 368), /disk size is 9223372036854775808, more than 2\^53/],
    ["sparse.vmdk", ["-O", "vmdk"], (bytes: Buffer) => bytes.writeBigUInt64LE(0n, 20), /grainSize is 0 bytes/],
    ["sparse.vmdk", ["-O", "vmdk"], (bytes: Buffer) => bytes.writeUInt32LE(0xffffffff, 44), /numGTEsPerGT is 4294967295/],
  ] as const)(
    "%s %j with an impossible size or count is refused by the field's name (CVE-2014-0142 to -0148, -0222, -0223)",
    async (name, args, poke, message) => {
      const folder = temporaryFolder();
      const path = made(folder, args, name);
      const bytes = readFileSync(path);
      poke(bytes);
      if (name === "vhd") bytes.writeUInt32BE(checksum(bytes.subarray(512, 1536), 36), 512 + 36);
      writeFileSync(path, bytes);
      await expect(readWhole(path)).rejects.toMatchObject({ code: "ImageDamaged", message: expect.stringMatching(message) as string });
    },
  );

  it.each([
    ["a region table that overlaps itself", (bytes: Buffer) => bytes.copy(bytes, 196_608 + 32, 196_608 + 64, 196_608 + 72)],
    ["a region of 2^32 bytes", (bytes: Buffer) => bytes.writeUInt32LE(0xffffffff, 196_608 + 40)],
    ["two thousand times two thousand regions", (bytes: Buffer) => bytes.writeUInt32LE(4_000_000, 196_608 + 8)],
  ] as const)("a VHDX with %s is refused", async (_, poke) => {
    const folder = temporaryFolder();
    const path = made(folder, ["-O", "vhdx", "-o", "block_size=1M"], "vhdx");
    const bytes = readFileSync(path);
    poke(bytes);
    for (const at of [196_608, 262_144]) {
      bytes.copy(bytes, at, 196_608, 262_144);
      bytes.writeUInt32LE(crc32cWithout(bytes.subarray(at, at + 65_536), 4), at + 4);
    }
    writeFileSync(path, bytes);
    await expect(readWhole(path)).rejects.toMatchObject({ code: "ImageDamaged" });
  });

  it("that unpacks to more than a cluster or a grain stops there (deflate bombs)", async () => {
    const folder = temporaryFolder();
    const path = made(folder, ["-O", "qcow2", "-c"], "qcow2");
    const bytes = readFileSync(path);
    const l2 = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(40))) & 0x00fffffffffffe00n);
    const bomb = deflateRawSync(Buffer.alloc(64 * MiB));
    const entry = (1n << 62n) | (BigInt(Math.ceil(bomb.length / 512)) << 54n) | BigInt(bytes.length);
    bytes.writeBigUInt64BE(entry, l2);
    writeFileSync(path, Buffer.concat([bytes, bomb]));
    await expect(readWhole(path)).rejects.toMatchObject({ code: "ImageDamaged", message: expect.stringContaining("does not unpack") as string });
  });

  it("that maps one compressed cluster a thousand times is read in constant memory (CVE-2015-5162 class)", async () => {
    const folder = temporaryFolder();
    qemuImg("create", "-q", "-f", "raw", join(folder, "a.raw"), "64M");
    execFileSync("qemu-io", ["-f", "raw", "-c", "write -q -P 5 0 64k", join(folder, "a.raw")]);
    const path = join(folder, "disk.qcow2");
    qemuImg("convert", "-c", "-f", "raw", "-O", "qcow2", join(folder, "a.raw"), path);
    const bytes = readFileSync(path);
    const l2 = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(40))) & 0x00fffffffffffe00n);
    for (let i = 1; i < 1024; i++) bytes.copy(bytes, l2 + i * 8, l2, l2 + 8);
    writeFileSync(path, bytes);
    await readWhole(path);
    expect((await checkImage(path, {})).problems.length).toBeGreaterThan(0);
  });
});

describe.skipIf(!has("qemu-img"))("a raw disk whose guest wrote a header into it", () => {
  it.each([
    ["qcow2", Buffer.from("QFI\xfb\0\0\0\x03", "latin1")],
    ["vmdk", Buffer.from('# Disk DescriptorFile\ncreateType="monolithicFlat"\nRW 1 FLAT "/etc/passwd" 0\n')],
    ["vhdx", Buffer.from("vhdxfile")],
    ["vhd", Buffer.from("conectix")],
  ])("is never opened as %s where it is said to be raw (CVE-2008-1945, CVE-2024-4467, CVE-2026-24708)", async (_, magic) => {
    const folder = temporaryFolder();
    const disk = Buffer.alloc(8192);
    magic.copy(disk);
    writeFileSync(join(folder, "disk.img"), disk);
    const { source, format } = await openImage(join(folder, "disk.img"), { from: "raw" });
    const read = Buffer.alloc(8192);
    await source.read(0, read);
    await source.close();
    expect([format, read.equals(disk)]).toEqual(["raw", true]);
    await expect(openImage(join(folder, "disk.img"))).rejects.toBeInstanceOf(HypersdkError);
  });
});

describe.skipIf(!has("qemu-img"))("where widely used tools are wrong", () => {
  it("a fixed VHD is not raw: qemu-img says so when it is not told", async () => {
    const folder = temporaryFolder();
    const raw = join(folder, "disk.raw");
    writeRaw(raw, { sizeBytes: MiB, islands: [{ offset: 0, length: 512 }] });
    qemuImg("convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size=on", raw, join(folder, "disk.vhd"));
    expect(JSON.parse(qemuImg("info", "--output=json", join(folder, "disk.vhd")))).toMatchObject({ format: "raw", "virtual-size": MiB + 512 });
    const { format, variant, source } = await openImage(join(folder, "disk.vhd"));
    await source.close();
    expect([format, variant, source.sizeBytes]).toEqual(["vhd", "fixed", MiB]);
  });

  it("a differencing VHD is not a disk of zeros: qemu-img converts it as one", async () => {
    const folder = temporaryFolder();
    const path = join(folder, "child.vhd");
    qemuImg("create", "-q", "-f", "vpc", "-o", "force_size=on", path, "4M");
    const bytes = readFileSync(path);
    for (const at of [0, bytes.length - 512]) {
      bytes.writeUInt32BE(4, at + 60);
      bytes.writeUInt32BE(checksum(bytes.subarray(at, at + 512), 64), at + 64);
    }
    writeFileSync(path, bytes);
    qemuImg("convert", "-f", "vpc", "-O", "raw", path, join(folder, "zeros.raw"));
    await expect(openImage(path)).rejects.toMatchObject({ code: "ImageDamaged", message: expect.stringContaining("difference") as string });
  });

  it("a VHD that qemu-img made without force_size has the size that its footer says", async () => {
    const folder = temporaryFolder();
    qemuImg("create", "-q", "-f", "vpc", join(folder, "disk.vhd"), "10M");
    const { "virtual-size": theirs } = JSON.parse(qemuImg("info", "--output=json", "-f", "vpc", join(folder, "disk.vhd"))) as { "virtual-size": number };
    const { source } = await openImage(join(folder, "disk.vhd"));
    await source.close();
    expect(source.sizeBytes).toBe(theirs);
  });

  it("internal snapshots are noted, and the disk is its present state", async () => {
    const folder = temporaryFolder();
    const path = join(folder, "disk.qcow2");
    qemuImg("create", "-q", "-f", "qcow2", path, "4M");
    execFileSync("qemu-io", ["-f", "qcow2", "-c", "write -q -P 1 0 64k", path]);
    qemuImg("snapshot", "-c", "before", path);
    execFileSync("qemu-io", ["-f", "qcow2", "-c", "write -q -P 2 0 64k", path]);
    const { source, details } = await openImage(path);
    const data = Buffer.alloc(512);
    await source.read(0, data);
    await source.close();
    expect(data.every((byte) => byte === 2)).toBe(true);
    expect(details.notes).toEqual([expect.stringContaining("1 internal snapshot") as string]);
    expect(await checkImage(path, {})).toEqual({
      format: "qcow2",
      problems: [],
      leaks: 0,
      notes: [expect.stringContaining("1 internal snapshot") as string],
    });
  });

  it("a raw disk that was split is one disk", async () => {
    const folder = temporaryFolder();
    for (let i = 1; i <= 3; i++) writeFileSync(join(folder, `disk.00${i}`), Buffer.alloc(MiB, i));
    const { source, variant } = await openImage(join(folder, "disk.001"));
    const data = Buffer.alloc(2);
    await source.read(2 * MiB - 1, data);
    await source.close();
    expect([variant, source.sizeBytes, ...data]).toEqual(["split in 3", 3 * MiB, 2, 3]);
  });
});

describe("a VMDK descriptor", () => {
  const descriptor = (extent: string): string => `# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n${extent}\n`;
  it.each(["/etc/passwd", "../secret.raw", "sub/disk.raw", "..", "\\\\server\\disk"])(
    "that names %s opens nothing outside its folder (CVE-2022-47951)",
    async (name) => {
      const folder = temporaryFolder();
      writeFileSync(join(folder, "disk.vmdk"), descriptor(`RW 8 FLAT "${name}" 0`));
      await expect(openImage(join(folder, "disk.vmdk"))).rejects.toMatchObject({ code: "ImageUnsafe" });
    },
  );

  it("that names a link out of its folder opens nothing there", async () => {
    const folder = temporaryFolder();
    symlinkSync("/etc/passwd", join(folder, "flat.raw"));
    writeFileSync(join(folder, "disk.vmdk"), descriptor('RW 1 FLAT "flat.raw" 0'));
    await expect(openImage(join(folder, "disk.vmdk"))).rejects.toMatchObject({ code: "ImageUnsafe" });
  });

  it("of VMware, with CRLF, lower case and a trailing 0 on a VMFS extent, is read", async () => {
    const folder = temporaryFolder();
    writeFileSync(join(folder, "x-flat.vmdk"), Buffer.alloc(4096, 7));
    writeFileSync(join(folder, "disk.vmdk"), descriptor('rw 8 vmfs "x-flat.vmdk" 0').replaceAll("\n", "\r\n"));
    const { source, format } = await openImage(join(folder, "disk.vmdk"));
    const data = Buffer.alloc(4096);
    await source.read(0, data);
    await source.close();
    expect(format).toBe("vmdk");
    expect(data.every((byte) => byte === 7)).toBe(true);
  });

  it("whose extent is shorter than it says is refused", async () => {
    const folder = temporaryFolder();
    writeFileSync(join(folder, "flat.raw"), Buffer.alloc(512));
    writeFileSync(join(folder, "disk.vmdk"), descriptor('RW 8 FLAT "flat.raw" 0'));
    expect((await checkImage(join(folder, "disk.vmdk"), {}).catch((error: HypersdkError) => error)) as HypersdkError).toMatchObject({ code: "ImageDamaged" });
  });
});

describe("a format that is not read", () => {
  it.each([
    ["LUKS", Buffer.from("LUKS\xba\xbe", "latin1")],
    ["gzip", Buffer.from([0x1f, 0x8b])],
    ["Parallels", Buffer.from("WithouFreSpacExt")],
  ])("%s is refused by its name, and never taken for raw", async (name, magic) => {
    const folder = temporaryFolder();
    const file = Buffer.alloc(8192);
    magic.copy(file);
    writeFileSync(join(folder, "disk.img"), file);
    await expect(openImage(join(folder, "disk.img"))).rejects.toMatchObject({ code: "ImageUnsupported", message: expect.stringContaining(name) as string });
  });
});

describe.skipIf(!has("qemu-img"))("image check", () => {
  it.each([
    [
      "vhd",
      ["-O", "vpc", "-o", "force_size=on"],
      (bytes: Buffer) => bytes.copy(bytes, bytes.readUInt32BE(532) + 4, bytes.readUInt32BE(532), bytes.readUInt32BE(532) + 4),
      "both lie at",
    ],
    ["vdi", ["-O", "vdi"], (bytes: Buffer) => bytes.copy(bytes, 516, 512, 516), "both lie at"],
    ["vdi", ["-O", "vdi"], (bytes: Buffer) => bytes.writeUInt32LE(1, 388), "the header counts 1 blocks"],
  ] as const)("finds in a %s what reading it would not", async (name, args, poke, message) => {
    const folder = temporaryFolder();
    const raw = join(folder, "original.raw");
    writeRaw(raw, { sizeBytes: 6 * MiB, islands: [{ offset: 0, length: 5 * MiB }] });
    const path = join(folder, `disk.${name}`);
    qemuImg("convert", "-f", "raw", ...args, raw, path);
    expect((await checkImage(path, {})).problems).toEqual([]);
    const bytes = readFileSync(path);
    poke(bytes);
    writeFileSync(path, bytes);
    expect((await checkImage(path, {})).problems).toEqual([expect.stringContaining(message) as string]);
  });
});
