import { execFileSync } from "node:child_process";
import { closeSync, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { checkImage } from "../../src/converters/check-image.ts";
import { compareDisks } from "../../src/converters/compare.ts";
import { writeImageFile } from "../../src/converters/image-file.ts";
import { openImage } from "../../src/converters/open-image.ts";
import { pour } from "../../src/converters/pour.ts";
import { checkImageOptions } from "../../src/converters/write-image.ts";
import type { ImageCompression, ImageFormat } from "../../src/model/image-formats.ts";
import { temporaryFolder } from "../support/cli.ts";
import { largeShape, type Shape, shapes, writeRaw } from "../support/disks.ts";
import { libyalHash } from "../support/libyal.ts";
import { checkWithQemu, has, qemuImg, sameForQemu } from "../support/qemu.ts";

interface Source {
  readonly name: string;
  readonly format: ImageFormat;
  readonly args: readonly string[];
  /** Only tables that are made in advance can hold a TiB here. */
  readonly notLarge?: true;
}

/** Each way in which other people's tools write what we read. */
const sources: readonly Source[] = [
  { name: "raw", format: "raw", args: ["-O", "raw"] },
  { name: "qcow2 v3", format: "qcow2", args: ["-O", "qcow2"] },
  { name: "qcow2 v2", format: "qcow2", args: ["-O", "qcow2", "-o", "compat=0.10"] },
  { name: "qcow2 zlib", format: "qcow2", args: ["-O", "qcow2", "-c"] },
  { name: "qcow2 zstd", format: "qcow2", args: ["-O", "qcow2", "-c", "-o", "compression_type=zstd"] },
  { name: "qcow2 with extended L2", format: "qcow2", args: ["-O", "qcow2", "-o", "extended_l2=on,cluster_size=128k"] },
  { name: "qcow2 zstd with extended L2", format: "qcow2", args: ["-O", "qcow2", "-c", "-o", "extended_l2=on,compression_type=zstd"] },
  { name: "qcow2 with 4 KiB clusters", format: "qcow2", args: ["-O", "qcow2", "-o", "cluster_size=4096"], notLarge: true },
  { name: "qcow2 zlib with 2 MiB clusters", format: "qcow2", args: ["-O", "qcow2", "-c", "-o", "cluster_size=2M"] },
  { name: "qcow2 preallocated", format: "qcow2", args: ["-O", "qcow2", "-o", "preallocation=metadata"], notLarge: true },
  { name: "qcow2 with 1-bit refcounts", format: "qcow2", args: ["-O", "qcow2", "-o", "refcount_bits=1"] },
  { name: "vmdk monolithicSparse", format: "vmdk", args: ["-O", "vmdk", "-o", "subformat=monolithicSparse"] },
  { name: "vmdk monolithicSparse with zeroed grains", format: "vmdk", args: ["-O", "vmdk", "-o", "subformat=monolithicSparse,zeroed_grain=on"] },
  { name: "vmdk monolithicFlat", format: "vmdk", args: ["-O", "vmdk", "-o", "subformat=monolithicFlat"] },
  { name: "vmdk twoGbMaxExtentSparse", format: "vmdk", args: ["-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"], notLarge: true },
  { name: "vmdk twoGbMaxExtentFlat", format: "vmdk", args: ["-O", "vmdk", "-o", "subformat=twoGbMaxExtentFlat"], notLarge: true },
  { name: "vmdk streamOptimized", format: "vmdk", args: ["-O", "vmdk", "-o", "subformat=streamOptimized"] },
  { name: "vhd dynamic", format: "vhd", args: ["-O", "vpc", "-o", "force_size=on"] },
  { name: "vhd fixed", format: "vhd", args: ["-O", "vpc", "-o", "subformat=fixed,force_size=on"] },
  { name: "vhdx dynamic", format: "vhdx", args: ["-O", "vhdx"] },
  { name: "vhdx with 1 MiB blocks", format: "vhdx", args: ["-O", "vhdx", "-o", "block_size=1M"] },
  { name: "vhdx fixed", format: "vhdx", args: ["-O", "vhdx", "-o", "subformat=fixed"], notLarge: true },
  { name: "vdi dynamic", format: "vdi", args: ["-O", "vdi"] },
  { name: "vdi static", format: "vdi", args: ["-O", "vdi", "-o", "static=on"], notLarge: true },
];

interface Target {
  readonly format: ImageFormat;
  readonly compression: ImageCompression;
  readonly subformat?: string;
}

const targets: readonly Target[] = [
  { format: "qcow2", compression: "none" },
  { format: "qcow2", compression: "zlib" },
  { format: "qcow2", compression: "zstd" },
  { format: "raw", compression: "none" },
  { format: "vmdk", compression: "none" },
  { format: "vmdk", compression: "zlib" },
  { format: "vhd", compression: "none", subformat: "dynamic" },
  { format: "vhd", compression: "none", subformat: "fixed" },
  { format: "vhdx", compression: "none", subformat: "dynamic" },
  { format: "vhdx", compression: "none", subformat: "fixed" },
  { format: "vdi", compression: "none" },
];
const qemuName = (format: ImageFormat): string => (format === "vhd" ? "vpc" : format);
/** `npm run test:matrix` takes every pair for every shape; otherwise each takes its turn. */
const isWhole = process.env["MATRIX"] === "whole";

async function convert(input: string, from: ImageFormat, output: string, { format, ...options }: Target): Promise<void> {
  const { source } = await openImage(input, from === "raw" ? { from } : {});
  await writeImageFile(
    output,
    format,
    source.sizeBytes,
    { ...options, overwrite: false, inputs: [input], durable: false },
    async (sink) => void (await pour(source, sink)),
  );
  await source.close();
}

async function isSame(left: string, leftFormat: ImageFormat, right: string, rightFormat: ImageFormat): Promise<void> {
  const [a, b] = [await openImage(left, { from: leftFormat }), await openImage(right, { from: rightFormat })];
  expect(await compareDisks(a.source, b.source)).toBeUndefined();
  await Promise.all([a.source.close(), b.source.close()]);
}

async function checkTarget(output: string, target: Target, raw: string, shape: Shape): Promise<void> {
  const { format } = target;
  await isSame(output, format, raw, "raw");
  expect(await checkImage(output, { from: format })).toEqual({ format, problems: [], leaks: 0, notes: [] });
  if (format === "qcow2" || format === "vdi" || format === "vmdk") checkWithQemu(output, format);
  sameForQemu(output, qemuName(format), raw, "raw");
  // these read the whole of a disk, holes included
  if (shape.sizeBytes > (isWhole ? 2 ** 33 : 2 ** 26)) return;
  // 7-Zip 22 reads no VHDX that qemu-img writes either, and no zstd
  if (has7z && format !== "raw" && format !== "vhdx" && target.compression !== "zstd") execFileSync("7zz", ["t", output], { stdio: "ignore" });
  const theirs = libyalHash(output, format, target.compression);
  if (theirs !== undefined) expect([format, theirs]).toEqual([format, hashOf(shape, raw)]);
}

/** What a shape hashes to; its file is the same each time that it is made. */
function hashOf(shape: Shape, raw: string): string | undefined {
  const known = shapeHashes.get(shape) ?? libyalHash(raw, "raw", "none");
  shapeHashes.set(shape, known);
  return known;
}

const shapeHashes = new Map<Shape, string | undefined>();

const has7z = has("7zz", "--help");

describe.skipIf(!has("qemu-img"))("a disk that qemu-img wrote", () => {
  for (const [s, source] of sources.entries()) {
    for (const [i, shape] of shapes.entries()) {
      it(`as ${source.name}, ${shape.name}, is the same disk in every format that is written`, { timeout: isWhole ? 1_800_000 : 300_000 }, async () => {
        const folder = temporaryFolder();
        const raw = join(folder, "original.raw");
        writeRaw(raw, shape);
        const input = join(folder, `disk.${source.format}`);
        qemuImg("convert", "-f", "raw", ...source.args, raw, input);
        expect((await checkImage(input, source.format === "raw" ? { from: "raw" } : {})).problems).toEqual([]);
        await isSame(input, source.format, raw, "raw");
        const turn = isWhole ? targets : targets.filter((_, t) => (t + s + i) % 5 === 0);
        for (const [t, target] of turn.entries()) {
          const output = join(folder, `out-${t}.${target.format}`);
          await convert(input, source.format, output, target);
          await checkTarget(output, target, raw, shape);
        }
      });
    }
  }
});

/** A base, and two overlays that qemu-io writes: by the first byte at each end, across a cluster's border, zeros over data, and over what the first overlay wrote. */
const overlaid: readonly (readonly (readonly [offset: number, length: number, value: number])[])[] = [
  [
    [0, 512, 0x11],
    [60 * 1024, 16 * 1024, 0x22],
    [2 * 2 ** 20, 2 ** 20, 0],
  ],
  [
    [64 * 1024, 4096, 0x33],
    [2.5 * 2 ** 20, 512, 0x44],
    [5 * 2 ** 20, 512, 0x55],
  ],
];
const chains: readonly { readonly overlay: "qcow2" | "vmdk"; readonly base: ImageFormat }[] = [
  ...(["raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi"] as const).map((base) => ({ overlay: "qcow2", base }) as const),
  { overlay: "vmdk", base: "vmdk" },
];

describe.skipIf(!has("qemu-img"))("a chain of three", () => {
  for (const [c, { overlay, base }] of chains.entries()) {
    it(`of two ${overlay} over ${base} is the same disk in every format that is written`, { timeout: 300_000 }, async () => {
      const folder = temporaryFolder();
      const shape = { name: "chain", sizeBytes: 5 * 2 ** 20 + 512, islands: [{ offset: 30_000, length: 4 * 2 ** 20 }] };
      const raw = join(folder, "original.raw");
      writeRaw(raw, shape);
      let below = join(folder, `base.${base}`);
      qemuImg("convert", "-f", "raw", "-O", qemuName(base), ...(base === "vhd" ? ["-o", "force_size=on"] : []), raw, below);
      let belowFormat = base;
      for (const [i, writes] of overlaid.entries()) {
        const path = join(folder, `layer-${i}.${overlay}`);
        qemuImg("create", "-q", "-f", overlay, "-b", below, "-F", qemuName(belowFormat), path);
        const commands = writes.flatMap(([offset, length, value]) => ["-c", `write -q -P ${value} ${offset} ${length}`]);
        execFileSync("qemu-io", ["-f", overlay, ...commands, path]);
        for (const [offset, length, value] of writes) overwrite(raw, offset, Buffer.alloc(length, value));
        [below, belowFormat] = [path, overlay];
      }
      await isSame(below, overlay, raw, "raw");
      for (const [t, target] of targets.entries()) {
        if (!isWhole && (t + c) % 4 !== 0) continue;
        const output = join(folder, `out-${t}.${target.format}`);
        await convert(below, overlay, output, target);
        await checkTarget(output, target, raw, shape);
      }
    });
  }
});

function overwrite(path: string, offset: number, data: Buffer): void {
  const file = openSync(path, "r+");
  writeSync(file, data, 0, data.length, offset);
  closeSync(file);
}

describe.skipIf(!has("qemu-img"))("a disk of 1 TiB", () => {
  const chosen = isWhole ? sources.filter(({ notLarge }) => !notLarge) : sources.filter(({ name }) => ["vhdx dynamic", "qcow2 v3"].includes(name));
  for (const source of chosen) {
    it(`as ${source.name} becomes every format in little memory`, { timeout: isWhole ? 3_600_000 : 600_000 }, async () => {
      const folder = temporaryFolder();
      const raw = join(folder, "original.raw");
      writeRaw(raw, largeShape);
      const input = join(folder, `disk.${source.format}`);
      qemuImg("convert", "-f", "raw", ...source.args, raw, input);
      for (const [t, target] of targets.entries()) {
        // a fixed VHDX of a TiB is a sparse file here, and fine; a whole slice takes its turn
        if (!isWhole && t % 2 === 1) continue;
        const output = join(folder, `out-${t}.${target.format}`);
        await convert(input, source.format, output, target);
        await isSame(output, target.format, raw, "raw");
        if (target.format === "qcow2") checkWithQemu(output, "qcow2");
        expect(JSON.parse(qemuImg("info", "--output=json", "-f", qemuName(target.format), output))).toMatchObject({ "virtual-size": largeShape.sizeBytes });
        expect(process.resourceUsage().maxRSS / 1024).toBeLessThan(700);
      }
    });
  }
});

describe("what a format cannot hold", () => {
  it.each([
    ["vhd", 2 ** 41, "holds at most"],
    ["vhdx", 2 ** 46 + 512, "holds at most"],
    ["vdi", 2 ** 42, "is not written"],
  ] as const)("%s refuses %d bytes before it starts", (format, size, message) => {
    expect(() => checkImageOptions(format, size, { compression: "none" })).toThrow(message);
  });

  it.each(["qcow2", "vmdk", "vhd", "vhdx", "vdi"] as const)("%s counts in sectors, and says so", (format) => {
    expect(checkImageOptions(format, 1000, { compression: "none" })).toBe(1024);
    expect(checkImageOptions(format, 1024, { compression: "none" })).toBe(1024);
  });

  it.each([
    ["raw", { compression: "zlib" }, "cannot be compressed"],
    ["vmdk", { compression: "zstd" }, "cannot be compressed with zstd"],
    ["vmdk", { compression: "zlib", subformat: "monolithicSparse" }, "is not compressed"],
    ["vhd", { compression: "none", subformat: "differencing" }, "has no subformat"],
  ] as const)("%s refuses %j", (format, options, message) => {
    expect(() => checkImageOptions(format, 1024, options)).toThrow(message);
  });
});
