/**
 * A night of 100 small VMs as a repository gets old: `npm run bench:nights`. Each VM has 8 chunks, of which one changes every night, so that
 * what is measured is all but reading and storing. BENCH_VMS and BENCH_NIGHTS for other numbers. Alone: a restic snapshot for each VM
 * and night would take hours.
 */
import { execFileSync } from "node:child_process";
import { randomFillSync } from "node:crypto";
import { closeSync, ftruncateSync, mkdirSync, mkdtempSync, openSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Measured, measure, say } from "./measure.ts";

const program = join(import.meta.dirname, "..", "bin", "hypersdk.js");
const machines = Number(process.env["BENCH_VMS"] ?? 100);
const nights = Number(process.env["BENCH_NIGHTS"] ?? 25);
const folder = mkdtempSync(join(tmpdir(), "hypersdk-bench-"));
const MiB = 2 ** 20;
const chunk = 128 * 1024;

const diskOf = (vm: number): string => join(folder, `machines/vm${vm}/disk0.raw`);

function write(vm: number, piece: number, bytes: number): void {
  const file = openSync(diskOf(vm), "r+");
  writeSync(file, randomFillSync(Buffer.alloc(bytes)), 0, bytes, piece * MiB);
  closeSync(file);
}

function night(): Measured {
  for (let vm = 0; vm < machines; vm++) write(vm, Math.floor(Math.random() * 8), 4096);
  execFileSync("sync");
  return measure([process.execPath, program, "run", "nightly", "--quiet"], folder);
}

try {
  for (let vm = 0; vm < machines; vm++) {
    mkdirSync(join(folder, `machines/vm${vm}`), { recursive: true });
    const file = openSync(diskOf(vm), "w");
    ftruncateSync(file, 64 * MiB);
    closeSync(file);
    for (let piece = 0; piece < 8; piece++) write(vm, piece, chunk);
  }
  writeFileSync(
    join(folder, "infrastructure.yaml"),
    `version: v2\nproviders: [{name: lab, type: local, path: ./machines}]\nschedules:\n  - {name: nightly, cron: "0 2 * * *", vms: ["/datacenter/vm/*"], destination: "file:./backups", incremental: true, verify: none}\n`,
  );
  execFileSync("git", ["init", "-q"], { cwd: folder });
  execFileSync("git", ["add", "infrastructure.yaml"], { cwd: folder });
  execFileSync("git", ["-c", "user.name=B", "-c", "user.email=b@b", "commit", "-qm", "a schedule"], { cwd: folder });
  execFileSync(process.execPath, [program, "apply", "--auto-approve", "--quiet"], { cwd: folder, stdio: "ignore" });
  const seen = Array.from({ length: nights }, night);
  const text = ({ wallS, cpuS, peakMiB }: Measured): string => `wall ${wallS.toFixed(2)} s, CPU ${cpuS.toFixed(2)} s, peak ${Math.round(peakMiB)} MiB`;
  // the first stores everything
  const [second, last] = [seen[1] as Measured, seen.at(-1) as Measured];
  const growthUs = ((last.wallS - second.wallS) * 1e6) / machines / ((nights - 2) * machines);
  say(`${machines} VMs, the second night: ${text(second)}`);
  say(
    `the same, night ${nights}, ${machines * nights} points: ${text(last)} = ${(last.wallS / second.wallS).toFixed(1)} times; ${growthUs.toFixed(1)} µs an export for each point that is there`,
  );
  execFileSync(process.execPath, [program, "compact", "--quiet"], { cwd: folder, stdio: "ignore" });
  say(`behind compact: ${text(night())}`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
