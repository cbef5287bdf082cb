import { readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { piecesOf } from "../../src/converters/block-source.ts";
import { checkImage } from "../../src/converters/check-image.ts";
import { openImage } from "../../src/converters/open-image.ts";
import { HypersdkError } from "../../src/model/errors.ts";
import { temporaryFolder } from "../support/cli.ts";
import { KiB, MiB, random, writeRaw } from "../support/disks.ts";
import { has, qemuImg } from "../support/qemu.ts";

async function readWhole(path: string): Promise<void> {
  const { source } = await openImage(path);
  try {
    for await (const _extent of source.extents()) {
    }
    for await (const _piece of piecesOf(source)) {
    }
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
    it(`cut anywhere is refused or read, never a crash: ${name}`, async () => {
      const folder = temporaryFolder();
      const whole = readFileSync(made(folder, args, name));
      const path = join(folder, `cut.${name}`);
      for (let length = 1; length < whole.length; length += 4096 + 511) {
        writeFileSync(path, whole.subarray(0, length));
        await readsOrRefuses(path);
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

  it("that has a backing file is refused by name (CVE-2024-4467)", async () => {
    const folder = temporaryFolder();
    qemuImg("create", "-q", "-f", "raw", join(folder, "base.raw"), "1M");
    qemuImg("create", "-q", "-f", "qcow2", "-F", "raw", "-b", join(folder, "base.raw"), join(folder, "overlay.qcow2"));
    await expect(readWhole(join(folder, "overlay.qcow2"))).rejects.toMatchObject({ code: "ImageUnsupported" });
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
    ["VHDX", Buffer.from("vhdxfile")],
    ["VHD", Buffer.from("conectix")],
    ["LUKS", Buffer.from("LUKS\xba\xbe", "latin1")],
    ["gzip", Buffer.from([0x1f, 0x8b])],
    ["VMDK COWD", Buffer.from("COWD")],
  ])("%s is refused by its name, and never taken for raw", async (name, magic) => {
    const folder = temporaryFolder();
    const file = Buffer.alloc(8192);
    magic.copy(file);
    writeFileSync(join(folder, "disk.img"), file);
    await expect(openImage(join(folder, "disk.img"))).rejects.toMatchObject({ code: "ImageUnsupported", message: expect.stringContaining(name) as string });
  });

  it("is recognised at the end too: a fixed VHD has its only footer there", async () => {
    const folder = temporaryFolder();
    const file = Buffer.alloc(8192);
    file.write("conectix", 8192 - 512);
    writeFileSync(join(folder, "disk.img"), file);
    await expect(openImage(join(folder, "disk.img"))).rejects.toMatchObject({ code: "ImageUnsupported" });
  });
});
