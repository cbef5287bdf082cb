/** The main job from beginning to end, in a folder of its own: `npm run demo`. `--keep` leaves the folder. */
import { execFileSync, spawnSync } from "node:child_process";
import { copyFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeMachines } from "./make-machines.ts";

const here = import.meta.dirname;
const program = join(here, "..", "..", "bin", "hypersdk.js");
const folder = mkdtempSync(join(tmpdir(), "hypersdk-demo-"));
const env = { ...process.env, GIT_CONFIG_GLOBAL: "/dev/null", HYPERSDK_STATE: "", GITHUB_ACTIONS: "" };

try {
  tell("Two machines: web with one disk, db with two. Each disk is 1 GiB with 104 MiB of data.");
  makeMachines(join(folder, "machines"));
  for (const file of filesBelow("machines")) say(`  ${file}  ${mib(statSync(join(folder, file)).size)}`);

  tell("What should happen to them stands in git.");
  copyFileSync(join(here, "infrastructure.yaml"), join(folder, "infrastructure.yaml"));
  writeFileSync(join(folder, ".gitignore"), "/machines/\n/exports/\n/restored/\n.hypersdk/\n");
  say(readFileSync(join(folder, "infrastructure.yaml"), "utf8").replace(/^/gm, "  ").trimEnd());
  git("init", "--quiet", "--initial-branch=main");
  commit("Export every machine each night");

  tell("The plan: what would change, and what is due.");
  hypersdk("plan");
  tell("The apply: it exports the disks as QCOW2, restores each in memory, and compares.");
  hypersdk("apply", "--auto-approve");
  tell("What came out: disks that any other tool opens, and a manifest that says what they are.");
  for (const file of filesBelow("exports")) say(`  ${file}  ${mib(statSync(join(folder, file)).size)}`);
  tell("A second plan is empty.");
  hypersdk("plan");

  tell("A change is a commit.");
  const file = join(folder, "infrastructure.yaml");
  writeFileSync(file, readFileSync(file, "utf8").replace('"0 2 * * *"', '"30 1 * * *"').replace("{daily: 7, weekly: 4}", "{daily: 14, weekly: 8}"));
  commit("Half an hour earlier, and keep twice as long");
  hypersdk("plan");

  tell("A restore: the data disk of db as raw, held against the source.");
  hypersdk("restore", "--vm", "/datacenter/vm/db", "--disk", "1", "--to", "restored.raw");
  hypersdk("image", "compare", "restored.raw", "machines/db/data.vmdk");
  say(
    `\nAll of this is real; the disks were in ${folder}${process.argv.includes("--keep") ? "" : ", which is removed now (npm run demo -- --keep leaves it)"}.`,
  );
} finally {
  if (!process.argv.includes("--keep")) rmSync(folder, { recursive: true, force: true });
}

function tell(text: string): void {
  say(`\n# ${text}`);
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

function hypersdk(...args: string[]): void {
  say(`\n$ hypersdk ${args.join(" ")}`);
  const { status } = spawnSync(process.execPath, [program, ...args], { cwd: folder, env, stdio: "inherit" });
  if (status !== 0) throw new Error(`hypersdk ${args[0]} ended with ${status}`);
}

function git(...args: string[]): void {
  execFileSync("git", args, { cwd: folder, env, stdio: ["ignore", "ignore", "inherit"] });
}

function commit(message: string): void {
  git("add", ".");
  git("-c", "user.name=You", "-c", "user.email=you@example.com", "commit", "--quiet", "-m", message);
  say(`\n$ git commit -m "${message}"`);
}

function filesBelow(name: string): string[] {
  return readdirSync(join(folder, name), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1))
    .sort();
}

function mib(bytes: number): string {
  return bytes < 1e5 ? `${bytes} bytes` : `${(bytes / 2 ** 20).toFixed(0)} MiB`;
}
