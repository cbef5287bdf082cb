/**
 * Mutates valid images and reads them: `npm run fuzz -- [CASES] [SEED]`. Fails on anything but a clean read or an error with a code,
 * on a case over 2 s, and on more than 256 MiB of memory. Prints the seed, so that a failure can be made again.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { piecesOf } from "../../src/converters/block-source.ts";
import { openImage } from "../../src/converters/open-image.ts";
import { HypersdkError } from "../../src/model/errors.ts";
import { KiB, MiB, random, writeRaw } from "../support/disks.ts";

const cases = Number(process.argv[2] ?? 100_000);
const seed = Number(process.argv[3] ?? Date.now() % 2 ** 32);
const folder = mkdtempSync(join(tmpdir(), "hypersdk-fuzz-"));
const next = random(seed);
process.stdout.write(`seed ${seed}, ${cases} cases\n`);
try {
  writeRaw(join(folder, "disk.raw"), {
    sizeBytes: MiB,
    islands: [
      { offset: 0, length: 40 * KiB },
      { offset: 600 * KiB, length: 70 * KiB },
    ],
  });
  const images = [
    ["qcow2"],
    ["qcow2", "-c"],
    ["qcow2", "-o", "compat=0.10"],
    ["vmdk", "-o", "subformat=monolithicSparse"],
    ["vmdk", "-o", "subformat=streamOptimized"],
  ].map((args, i) => {
    const path = join(folder, `seed-${i}`);
    execFileSync("qemu-img", ["convert", "-f", "raw", "-O", ...args, join(folder, "disk.raw"), path]);
    return readFileSync(path);
  });
  let refused = 0;
  for (let i = 0; i < cases; i++) {
    const whole = images[i % images.length] as Buffer;
    const bytes = Buffer.from(next() < 0.1 ? whole.subarray(0, Math.floor(next() * whole.length)) : whole);
    for (let flips = 1 + Math.floor(next() * 6); flips > 0 && bytes.length > 0; flips--) {
      const at = Math.floor(next() * (next() < 0.6 ? Math.min(512, bytes.length) : bytes.length));
      bytes[at] = [0, 0xff, 0x7f, 0x80, 1, Math.floor(next() * 256)][Math.floor(next() * 6)] as number;
    }
    const path = join(folder, "case");
    writeFileSync(path, bytes);
    const started = performance.now();
    refused += (await readOnce(path)) ? 0 : 1;
    const ms = performance.now() - started;
    if (ms > 2000) throw new Error(`case ${i} took ${ms.toFixed(0)} ms`);
    if (i % 10_000 === 9_999) process.stdout.write(`${i + 1} cases, ${refused} refused, peak ${Math.round(process.resourceUsage().maxRSS / 1024)} MiB\n`);
  }
  const peak = process.resourceUsage().maxRSS / 1024;
  process.stdout.write(`${cases} cases, ${refused} refused, ${cases - refused} read, peak ${Math.round(peak)} MiB\n`);
  if (peak > 256) throw new Error(`peak memory ${peak} MiB`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}

/** Reads at most 16 MiB of data: a mutated size may say terabytes, which is no fault. */
async function readOnce(path: string): Promise<boolean> {
  try {
    const { source } = await openImage(path);
    try {
      let [seen, extents] = [0, 0];
      for await (const _extent of source.extents()) if (++extents > 1000) break;
      for await (const { data } of piecesOf(source)) if ((seen += data.length) > 16 * MiB) break;
    } finally {
      await source.close();
    }
    return true;
  } catch (error) {
    if (error instanceof HypersdkError) return false;
    throw error;
  }
}
