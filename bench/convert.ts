/**
 * Conversion beside qemu-img on one disk, interleaved: `npm run bench:convert`. The disk is 2 GiB with about 800 MiB from this
 * machine's own /usr. Set BENCH_DISK to a raw image to take another, BENCH_ROUNDS for more than five rounds. Every run begins without
 * the outputs of others, so that all find the same free memory and the same free disk.
 */
import { execFileSync } from "node:child_process";
import { closeSync, existsSync, ftruncateSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeSync } from "node:fs";
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
  const qemu = (input: string, from: string, to: string, options: readonly string[]): readonly (readonly string[])[] => {
    const command = (...more: readonly string[]) => ["qemu-img", "convert", "-f", from, "-O", to, ...more, ...options, input, join(top, "q.out")];
    return [command(), command("-W", "-m", "16")];
  };
  const ours = (input: string, from: string, to: string, options: readonly string[]) => [
    ...[node, program, "convert", input, join(top, "o.out"), "--from", from, "--to", to, "--quiet"],
    ...options,
  ];
  if (!process.env["BENCH_ONLY"])
    for (const to of ["qcow2", "raw", "vhdx", "vdi"]) compare(`streamOptimized -> ${to}`, ours(stream, "vmdk", to, []), qemu(stream, "vmdk", to, []), 0.6);
  for (const [to, theirs] of [
    ["raw", "raw"],
    ["qcow2", "qcow2"],
    ["vhdx", "vhdx"],
    ["vdi", "vdi"],
    ["vhd", "vpc"],
  ] as const)
    compare(`raw -> ${to}`, ours(raw, "raw", to, []), qemu(raw, "raw", theirs, []), 1);
  compare("raw -> qcow2, zlib", ours(raw, "raw", "qcow2", ["--compress", "zlib"]), qemu(raw, "raw", "qcow2", ["-c"]), 0.6);
  compare("raw -> qcow2, zstd", ours(raw, "raw", "qcow2", ["--compress", "zstd"]), qemu(raw, "raw", "qcow2", ["-c", "-o", "compression_type=zstd"]), 1);

  const hole = join(top, "hole.raw");
  closeSync(openSync(hole, "w"));
  truncateSync(hole, 16 * 2 ** 30);
  const overHole = Array.from({ length: rounds }, () => {
    const measured = measure(ours(hole, "raw", "qcow2", []), top);
    rmSync(join(top, "o.out"));
    return measured.wallS;
  });
  say(`a hole of 16 GiB, raw -> qcow2: wall ${median(overHole).toFixed(2)} s, goal 0.2 s`);
  const large = join(top, "large.raw");
  closeSync(openSync(large, "w"));
  truncateSync(large, 2 ** 40);
  for (const to of ["qcow2", "vhdx", "vdi", "vhd", "vmdk"]) {
    const measured = measure(ours(large, "raw", to, []), top);
    rmSync(join(top, "o.out"));
    say(`1 TiB, empty, raw -> ${to}: peak ${Math.round(measured.peakMiB)} MiB, goal 200; ${measured.wallS.toFixed(2)} s`);
  }
} finally {
  rmSync(top, { recursive: true, force: true });
}

function compare(name: string, own: readonly string[], theirs: readonly (readonly string[])[], goal: number): void {
  const mine: Measured[] = [];
  const others: Measured[][] = theirs.map(() => []);
  const run = (command: readonly string[]): Measured => {
    for (const name of ["q.out", "o.out"]) rmSync(join(top, name), { force: true });
    return measure(command, top);
  };
  for (let round = 0; round < rounds; round++) {
    mine.push(run(own));
    for (const [i, command] of theirs.entries()) others[i]?.push(run(command));
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
