/**
 * Conversion beside qemu-img on one disk, interleaved: `npm run bench:convert`. The disk is 2 GiB with about 800 MiB from this
 * machine's own /usr, as a stream-optimized VMDK. Set BENCH_DISK to a raw image to take another.
 */
import { execFileSync } from "node:child_process";
import { closeSync, existsSync, ftruncateSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, statSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Measured, measure, median, say } from "./measure.ts";

const node = process.execPath;
const program = join(import.meta.dirname, "..", "bin", "hypersdk.js");
const top = mkdtempSync(join(tmpdir(), "hypersdk-bench-"));
const rounds = Number(process.env["BENCH_ROUNDS"] ?? 5);

try {
  const raw = process.env["BENCH_DISK"] ?? makeDisk(join(top, "disk.raw"));
  const stream = join(top, "disk.vmdk");
  execFileSync("qemu-img", ["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, stream]);
  const qemu = (input: string, from: string, to: string, options: readonly string[]) => [
    "qemu-img",
    "convert",
    "-f",
    from,
    "-O",
    to,
    ...options,
    input,
    join(top, `q.${to}`),
  ];
  const ours = (input: string, to: string, options: readonly string[]) => [
    node,
    program,
    "convert",
    input,
    join(top, `o.${to}`),
    "--quiet",
    "--overwrite",
    ...options,
  ];
  compare("streamOptimized -> qcow2", ours(stream, "qcow2", []), [qemu(stream, "vmdk", "qcow2", []), qemu(stream, "vmdk", "qcow2", ["-W", "-m", "16"])], 0.75);
  compare("raw -> qcow2", ours(raw, "qcow2", ["--from", "raw"]), [qemu(raw, "raw", "qcow2", []), qemu(raw, "raw", "qcow2", ["-W", "-m", "16"])], 1);
  compare("raw -> raw, sparse", ours(raw, "raw", ["--from", "raw"]), [qemu(raw, "raw", "raw", []), qemu(raw, "raw", "raw", ["-W", "-m", "16"])], 1);
} finally {
  rmSync(top, { recursive: true, force: true });
}

function compare(name: string, own: readonly string[], theirs: readonly (readonly string[])[], goal: number): void {
  const mine: Measured[] = [];
  const others: Measured[][] = theirs.map(() => []);
  for (let round = 0; round < rounds; round++) {
    mine.push(measure(own, top));
    for (const [i, command] of theirs.entries()) others[i]?.push(measure(command, top));
  }
  const wall = (list: readonly Measured[]): number => median(list.map(({ wallS }) => wallS));
  const cpu = (list: readonly Measured[]): number => median(list.map(({ cpuS }) => cpuS));
  const best = [...others].sort((a, b) => wall(a) - wall(b))[0] as Measured[];
  say(
    `${name}: wall ${wall(mine).toFixed(2)} s against ${wall(best).toFixed(2)} s, ratio ${(wall(mine) / wall(best)).toFixed(2)} (goal ${goal}); CPU ratio ${(cpu(mine) / cpu(best)).toFixed(2)}; peak ${Math.round(median(mine.map(({ peakMiB }) => peakMiB)))} MiB`,
  );
}

/** Runs of real files with holes between, up to 800 MiB on 2 GiB. */
function makeDisk(path: string): string {
  const [sizeBytes, wanted] = [2 ** 31, 800 * 2 ** 20];
  const file = openSync(path, "w");
  ftruncateSync(file, sizeBytes);
  let [at, filled] = [0, 0];
  const walk = (folder: string): void => {
    for (const entry of readdirSync(folder, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1))) {
      const name = join(folder, entry.name);
      if (filled >= wanted) return;
      if (entry.isDirectory()) walk(name);
      else if (entry.isFile() && existsSync(name) && statSync(name).size < 64 * 2 ** 20) {
        const data = readFileSync(name);
        if (at + data.length > sizeBytes) return;
        writeSync(file, data, 0, data.length, at);
        filled += data.length;
        // every 16 MiB of files a hole of 20 MiB
        at += Math.ceil(data.length / 4096) * 4096 + (Math.floor(filled / 2 ** 24) > Math.floor((filled - data.length) / 2 ** 24) ? 20 * 2 ** 20 : 0);
      }
    }
  };
  for (const folder of ["/usr/bin", "/usr/lib"]) walk(folder);
  closeSync(file);
  return path;
}
