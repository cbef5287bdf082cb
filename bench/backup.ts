/**
 * Backups of one VM disk beside restic and borg, interleaved: `npm run bench:backup`. The disk is 2 GiB of ext4 with some 900 MiB of
 * this machine's own /usr; between backups about 1 % of it changes, in one of three patterns. Nobody is told what changed: all read the
 * disk again. restic and borg encrypt (restic cannot do without), ours is left open here. BENCH_ROUNDS for more than three rounds, BENCH_DISK
 * for a folder with a disk0.img made before.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Measured, measure, median, say, sizeOf } from "./measure.ts";

const program = join(import.meta.dirname, "..", "bin", "hypersdk.js");
const workload = join(import.meta.dirname, "vm-image-workload.sh");
const rounds = Number(process.env["BENCH_ROUNDS"] ?? 3);
const top = mkdtempSync(join(tmpdir(), "hypersdk-bench-"));
const patterns = ["clustered", "hotspot", "scattered"];

interface Tool {
  readonly name: string;
  /** The folder that grows. */
  readonly store: string;
  readonly init: () => void;
  readonly backup: readonly string[];
  readonly restore: readonly string[];
  readonly check: readonly string[];
}

process.env["RESTIC_PASSWORD"] = "bench";
process.env["BORG_PASSPHRASE"] = "bench";
process.env["BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK"] = "yes";
process.env["BORG_RELOCATED_REPO_ACCESS_IS_OK"] = "yes";

try {
  const source = process.env["BENCH_DISK"] ?? join(top, "source");
  if (!process.env["BENCH_DISK"]) execFileSync(workload, ["gen", source], { stdio: "ignore" });
  const steps = new Map<string, Map<string, { measured: Measured[]; added: number[] }>>();
  for (let round = 0; round < rounds; round++) oneRound(join(source, "disk0.img"), round, steps);
  for (const [step, tools] of steps) {
    const base = tools.get("restic");
    for (const [name, { measured, added }] of tools) {
      const wall = median(measured.map(({ wallS }) => wallS));
      const cpu = median(measured.map(({ cpuS }) => cpuS));
      const peak = Math.round(median(measured.map(({ peakMiB }) => peakMiB)));
      const ratio = base
        ? ` = ${(wall / median(base.measured.map(({ wallS }) => wallS))).toFixed(2)} of restic's; CPU ${(cpu / median(base.measured.map(({ cpuS }) => cpuS))).toFixed(2)}`
        : "";
      const stored =
        median(added) > 0 ? `; ${(median(added) / 2 ** 20).toFixed(1)} MiB added${base ? `, ${(median(added) / median(base.added)).toFixed(2)}` : ""}` : "";
      say(`${step}, ${name}: ${wall.toFixed(2)} s${name === "restic" ? "" : ratio}${stored}; peak ${peak} MiB`);
    }
  }
} finally {
  rmSync(top, { recursive: true, force: true });
}

function oneRound(image: string, round: number, steps: Map<string, Map<string, { measured: Measured[]; added: number[] }>>): void {
  const folder = join(top, `round-${round}`);
  const vm = join(folder, "machines", "vm");
  mkdirSync(vm, { recursive: true });
  const disk = join(vm, "disk0.img");
  execFileSync("cp", ["--sparse=always", image, disk]);
  const tools = toolsIn(folder, disk);
  for (const tool of tools) tool.init();
  let turn = round;
  const run = (step: string, command: (tool: Tool) => readonly string[]): void => {
    // who comes first finds caches as the step before left them: each in turn
    const first = turn++ % tools.length;
    for (const tool of [...tools.slice(first), ...tools.slice(0, first)]) {
      const before = sizeOf(tool.store);
      // borg drops half of what it read from memory, where the next would pay for it; so would he for what another has written and not synced
      execFileSync("sync");
      execFileSync("cat", [disk], { stdio: "ignore" });
      const measured = measure(command(tool), folder);
      const at = steps.get(step) ?? new Map<string, { measured: Measured[]; added: number[] }>();
      const list = at.get(tool.name) ?? { measured: [], added: [] };
      list.measured.push(measured);
      list.added.push(sizeOf(tool.store) - before);
      steps.set(step, at.set(tool.name, list));
    }
  };
  run("full", ({ backup }) => backup);
  for (const pattern of patterns) {
    execFileSync(workload, ["mutate", vm, pattern], { stdio: "ignore" });
    rmSync(join(vm, `changed-${pattern}.json`), { force: true });
    run(`increment, ${pattern}, all read`, ({ backup }) => backup);
  }
  run("restore", ({ restore }) => restore);
  run("check, all data", ({ check }) => check);
  execFileSync("cmp", [disk, join(folder, "ours.raw")]);
  rmSync(folder, { recursive: true, force: true });
}

function toolsIn(folder: string, disk: string): Tool[] {
  const node = process.execPath;
  const restic = ["restic", "-q", "-r", join(folder, "restic")];
  const borg = join(folder, "borg");
  const git = (...args: string[]): unknown => execFileSync("git", ["-c", "user.name=B", "-c", "user.email=b@b", ...args], { cwd: folder, stdio: "ignore" });
  return [
    {
      name: "hypersdk",
      store: join(folder, "backups"),
      init() {
        writeFileSync(
          join(folder, "infrastructure.yaml"),
          'version: v2\nschedules:\n  - {name: nightly, cron: "0 2 * * *", vms: ["/datacenter/vm/*"], destination: "file:./backups", incremental: true, verify: none}\n',
        );
        git("init", "-q");
        git("add", "infrastructure.yaml");
        git("commit", "-qm", "a schedule");
        execFileSync(node, [program, "apply", "--auto-approve", "--quiet"], { cwd: folder, stdio: "ignore" });
      },
      backup: [node, program, "run", "nightly", "--quiet"],
      restore: [node, program, "restore", "--vm", "/datacenter/vm/vm", "--to", "ours.raw", "--quiet"],
      check: [node, program, "check", "--read-data", "--quiet"],
    },
    {
      name: "restic",
      store: join(folder, "restic"),
      init: () => void execFileSync("restic", ["-q", "-r", join(folder, "restic"), "init"], { stdio: "ignore" }),
      backup: [...restic, "backup", disk],
      restore: [...restic, "restore", "latest", "--target", join(folder, "theirs")],
      check: [...restic, "check", "--read-data"],
    },
    {
      name: "borg",
      store: borg,
      init: () => void execFileSync("borg", ["init", "-e", "repokey-blake2", borg], { stdio: "ignore" }),
      backup: ["borg", "create", "--chunker-params", "fixed,1048576", "-C", "zstd,1", `${borg}::{now:%Y%m%dT%H%M%S%f}`, disk],
      restore: ["sh", "-c", `mkdir -p borg-out && cd borg-out && borg extract --sparse "${borg}::$(borg list --short --last 1 ${borg})"`],
      check: ["borg", "check", "--verify-data", borg],
    },
  ];
}
