/**
 * CPU of version, plan and apply, over generated work trees of real files: `npm run bench:plan`. With a terraform on the machine,
 * its plan of 1,000 `terraform_data` resources runs interleaved with ours of 1,000 schedules.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Measured, measure, median, say } from "./measure.ts";

const node = process.execPath;
const program = join(import.meta.dirname, "..", "bin", "hypersdk.js");
const top = mkdtempSync(join(tmpdir(), "hypersdk-bench-"));
const rounds = 5;
/** What the goals in seconds were set beside: a machine on which this takes 0.7 s. */
const yamlAlone = `
  import { readdirSync, readFileSync } from "node:fs";
  import { parseAllDocuments } from ${JSON.stringify(import.meta.resolve("yaml"))};
  for (const name of readdirSync(".")) if (name.endsWith(".yaml")) for (const document of parseAllDocuments(readFileSync(name, "utf8"))) document.toJS();
`;
const hypersdk = (folder: string, ...args: string[]): Measured => measure([node, program, ...args], folder, { XDG_CACHE_HOME: join(top, "cache"), HOME: top });

try {
  const bare = median(Array.from({ length: 11 }, () => measure([node, "-e", "0"], top).cpuS));
  const version = median(Array.from({ length: 11 }, () => hypersdk(top, "version").cpuS));
  say(`version: ${ms(version - bare)} CPU over a bare node -e 0 (${ms(bare)}); goal 60 ms`);

  const apply1000 = tree("apply-1000", 1000, 20, 2000);
  const applied = hypersdk(apply1000, "apply", "--auto-approve", "--quiet");
  say(`apply of 1,000 new schedules, 2,000 VMs: ${seconds(applied.cpuS)} CPU; goal 2 s`);

  const sizes = [1000, 5000, 20_000];
  const folders = sizes.map((count) => (count === 1000 ? apply1000 : tree(`plan-${count}`, count, 100, count * 2)));
  for (const folder of folders.slice(1)) hypersdk(folder, "apply", "--auto-approve", "--quiet", "--no-exports");
  const warm: Measured[][] = sizes.map(() => []);
  const cold: Measured[][] = sizes.map(() => []);
  const yardstick: number[] = [];
  for (let round = 0; round < rounds; round++) {
    yardstick.push(measure([node, "--input-type=module", "-e", yamlAlone], folders[1] as string).cpuS - bare);
    for (const [i, folder] of folders.entries()) {
      rmSync(join(top, "cache/hypersdk/parse"), { recursive: true, force: true });
      cold[i]?.push(hypersdk(folder, "plan", "--quiet"));
      warm[i]?.push(hypersdk(folder, "plan", "--quiet"));
    }
  }
  for (const [i, count] of sizes.entries()) {
    say(
      `no-op plan, ${count} schedules, ${count * 2} VMs: cold ${seconds(median((cold[i] ?? []).map(({ cpuS }) => cpuS)))}, cached ${seconds(median((warm[i] ?? []).map(({ cpuS }) => cpuS)))} CPU, peak ${Math.round(median((cold[i] ?? []).map(({ peakMiB }) => peakMiB)))} MiB cold, ${Math.round(median((warm[i] ?? []).map(({ peakMiB }) => peakMiB)))} MiB cached${count === 5000 ? "; goals 1.5 s, 0.8 s, 250 MiB" : ""}`,
    );
  }
  const yaml = median(yardstick);
  const against = (list: Measured[][]): string => (median((list[1] ?? []).map(({ cpuS }) => cpuS)) / yaml).toFixed(2);
  say(
    `\`yaml\` alone, the same 5,000 schedules: ${seconds(yaml)} CPU; the plan takes ${against(cold)} times that cold, ${against(warm)} cached; goals 2.14, 1.14`,
  );
  const cpu = (list: Measured[][], i: number): number => median((list[i] ?? []).map(({ cpuS }) => cpuS)) - bare;
  say(
    `growth from 1,000 to 20,000 schedules: exponent ${(Math.log(cpu(cold, 2) / cpu(cold, 0)) / Math.log(20)).toFixed(2)} cold, ${(Math.log(cpu(warm, 2) / cpu(warm, 0)) / Math.log(20)).toFixed(2)} cached; goal 1.1`,
  );

  terraform(folders[0] as string);
} finally {
  rmSync(top, { recursive: true, force: true });
}

/** A work tree with schedules of two VMs each, policies, and a real image file for every VM. */
function tree(name: string, schedules: number, policies: number, vms: number): string {
  const folder = join(top, name);
  mkdirSync(join(folder, "machines"), { recursive: true });
  for (let i = 0; i < vms; i++) {
    mkdirSync(join(folder, "machines", `vm-${i}`));
    writeFileSync(join(folder, "machines", `vm-${i}`, "disk.raw"), "data");
  }
  // 2,000 schedules a file stay under the size that is read
  const perFile = 2000;
  for (let from = 0; from < schedules; from += perFile) {
    const list = Array.from({ length: Math.min(perFile, schedules - from) }, (_, k) => {
      const i = from + k;
      return `  - name: schedule-${i}\n    cron: "${i % 60} ${i % 24} * * *"\n    vms: [/datacenter/vm/vm-${2 * i}, /datacenter/vm/vm-${2 * i + 1}]\n    destination: backups\n    retention: {daily: 7, weekly: 4}\n    priority: ${i % 100}\n`;
    });
    writeFileSync(join(folder, `schedules-${from}.yaml`), `version: v2\nschedules:\n${list.join("")}`);
  }
  const rules = Array.from(
    { length: policies },
    (_, i) => `  - {name: policy-${i}, match: /datacenter/vm/vm-${i}?, schedule: schedule-${i}, priority: high}\n`,
  );
  writeFileSync(join(folder, "common.yaml"), `version: v2\ndestinations:\n  - {name: backups, url: "file:./exports"}\npolicies:\n${rules.join("")}`);
  writeFileSync(join(folder, ".gitignore"), "machines/\nexports/\n.hypersdk/\n");
  for (const args of [
    ["init", "--quiet"],
    ["add", "."],
    ["-c", "user.name=b", "-c", "user.email=b@example.com", "commit", "--quiet", "-m", "b"],
  ])
    execFileSync("git", args, { cwd: folder });
  return folder;
}

function terraform(ours: string): void {
  try {
    execFileSync("terraform", ["version"], { stdio: "ignore" });
  } catch {
    say("terraform: not on this machine, not compared");
    return;
  }
  const folder = join(top, "terraform");
  mkdirSync(folder);
  writeFileSync(join(folder, "main.tf"), Array.from({ length: 1000 }, (_, i) => `resource "terraform_data" "r${i}" {\n  input = "value ${i}"\n}\n`).join(""));
  try {
    measure(["terraform", "init", "-input=false"], folder);
    measure(["terraform", "apply", "-auto-approve", "-input=false"], folder);
  } catch (error) {
    say(`terraform: cannot be compared here: ${(error as Error).message.split("\n")[0]}`);
    return;
  }
  const theirs: number[] = [];
  const own: number[] = [];
  // one round is short, and a neighbour's burst hits one of the two
  for (let round = 0; round < 4 * rounds; round++) {
    theirs.push(measure(["terraform", "plan", "-input=false"], folder).cpuS);
    own.push(hypersdk(ours, "plan", "--quiet").cpuS);
  }
  say(
    `no-op plan of 1,000: ours ${seconds(median(own))}, terraform plan ${seconds(median(theirs))} CPU: ${(median(theirs) / median(own)).toFixed(1)} times less; goal 5`,
  );
}

function ms(value: number): string {
  return `${Math.round(value * 1000)} ms`;
}

function seconds(value: number): string {
  return `${value.toFixed(2)} s`;
}
