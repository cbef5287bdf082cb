import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it, onTestFinished } from "vitest";
import type { Manifest } from "../../src/exports/manifest.ts";
import { git, hypersdk, start, temporaryFolder } from "../support/cli.ts";
import { MiB, random, writeRaw } from "../support/disks.ts";
import { result } from "../support/schemas.ts";

/** Ten minutes with `npm run test:soak`, of which the second half without kills, so that memory can be watched. */
const seconds = Number(process.env["SOAK_SECONDS"] ?? 60);
const killSeconds = seconds >= 300 ? seconds / 2 : seconds;
const seed = Number(process.env["SOAK_SEED"] ?? 1);
const minuteMs = 60_000;
const vms = ["a", "b"];

interface RunItem {
  readonly id: string;
  readonly schedule: string;
  readonly vm: string;
  readonly kind: string;
  readonly fireTime: string;
  readonly state: string;
}

it(`a watcher that is killed again and again follows a branch that changes every two seconds, for ${seconds} s`, {
  timeout: (seconds + 240) * 1000,
}, async () => {
  const next = random(seed);
  const cwd = temporaryFolder();
  const [bare, clone] = [join(cwd, "bare.git"), join(cwd, "clone")];
  for (const vm of vms) {
    mkdirSync(join(cwd, "machines", vm), { recursive: true });
    writeRaw(join(cwd, "machines", vm, "disk.raw"), { sizeBytes: 16 * MiB, islands: [{ offset: 0, length: 6 * MiB }] });
  }
  // one schedule that no commit touches, and one that every commit changes
  const valid = (n: number): string => `version: v2
providers: [{name: lab, type: local, path: "${cwd}/machines"}]
schedules:
  - {name: minutely, cron: "* * * * *", vms: ["/datacenter/vm/*"], destination: "file://${cwd}/exports", verify: none, retention: {keepLast: 500}}
${n % 5 === 0 ? "" : `  - {name: other, cron: "${n % 60} 2 * * *", initialExport: immediate, vms: ["/datacenter/vm/a"], destination: "file://${cwd}/exports", verify: none, priority: ${n % 100}}\n`}`;
  // a text without a mark of ours would be somebody else's, and leave an empty configuration, which is a valid one
  const invalid = [
    "version: v2\nschedules: [{name: x}]\n",
    "version: v2\na: [",
    "version: v2\nschedules:\n  - {name: y, cron: nonsense, vms: [], destination: d}\n",
  ];
  git(cwd, "init", "--quiet", "--bare", bare);
  git(cwd, "init", "--quiet", clone);
  let pushed = 0;
  const push = (text: string, ...args: string[]): void => {
    writeFileSync(join(clone, "infrastructure.yaml"), text);
    git(clone, "add", "--all");
    git(clone, "commit", "--quiet", "--allow-empty", "-m", `change ${pushed}`, ...args);
    git(clone, "push", "--quiet", "--force", bare, "HEAD:main");
    pushed++;
  };
  push(valid(1));
  const source = ["--repo", `file://${bare}`, "--branch", "main", "--allow-path", cwd];
  const watcher = (): ReturnType<typeof start> => start(cwd, ["watch", "--interval", "1s", "--quiet", ...source]);
  let current = watcher();
  onTestFinished(() => current.kill("SIGKILL"));

  const beganMs = Date.now();
  // a quarter of a minute behind a fire time at the least, so that there is one, also after a kill
  const firstFireMs = (Math.floor((beganMs + 5000) / minuteMs) + 1) * minuteMs;
  const until = Math.max(beganMs + seconds * 1000, firstFireMs + 15_000);
  let nextKillMs = Date.now() + 8000;
  let restartedMs = beganMs;
  let kills = 0;
  let early: number | undefined;
  for (let nextPushMs = 0; Date.now() < until; await sleep(100)) {
    if (Date.now() >= nextPushMs) {
      nextPushMs = Date.now() + 2000;
      const chance = next();
      if (chance < 0.25) push(invalid[Math.floor(next() * invalid.length)] as string);
      else if (chance < 0.45 && pushed > 3) {
        // force-pushed: the last two commits are another one now
        git(clone, "reset", "--quiet", "--hard", "HEAD~1");
        push(valid(Math.floor(next() * 1000)), "--amend");
      } else if (chance < 0.6 && pushed > 3) {
        // as `git revert` leaves it, also of a commit that changed nothing
        push(git(clone, "show", "HEAD~1:infrastructure.yaml"));
      } else push(valid(Math.floor(next() * 1000)));
    }
    if (Date.now() >= nextKillMs && Date.now() < beganMs + killSeconds * 1000) {
      current.kill("SIGKILL");
      await current.done;
      kills++;
      nextKillMs = Date.now() + 10_000 + next() * 20_000;
      current = watcher();
      restartedMs = Date.now();
    }
    if (early === undefined && killSeconds < seconds && Date.now() > Math.max(restartedMs, beganMs + killSeconds * 1000) + minuteMs)
      early = rssMiB(current.pid);
  }
  const late = rssMiB(current.pid);
  push(valid(1));
  const head = git(clone, "rev-parse", "HEAD").trim();
  for (let i = 0; ; i++) {
    const status = result<{ revision: { commit: string } | null }>((await hypersdk(cwd, ["status", "--json", ...source])).stdout);
    if (status.revision?.commit === head) break;
    if (i > 60) throw new Error(`the watcher did not come to ${head}: ${JSON.stringify(status)}`);
    await sleep(500);
  }
  current.kill("SIGTERM");
  expect(await current.done).toMatchObject({ code: 0 });
  const endedMs = Date.now();
  console.log(`${pushed} commits, ${kills} kills${early === undefined ? "" : `; ${early} MiB after a minute, ${late} MiB at the end`}`);
  expect(kills).toBeGreaterThan(0);
  if (early !== undefined) expect(late - early).toBeLessThan(20);

  expect((await hypersdk(cwd, ["plan", "--summary", ...source])).stdout).toContain("0 to add, 0 to change, 0 to remove");
  expect(await hypersdk(cwd, ["audit", "verify", ...source])).toMatchObject({ code: 0 });
  // each fire time once, in the state and at the destination
  const { items } = result<{ items: RunItem[] }>((await hypersdk(cwd, ["get", "runs", "--json", ...source])).stdout);
  const keys = items.map(({ schedule, vm, kind, fireTime }) => `${schedule} ${vm} ${kind} ${fireTime}`);
  expect(new Set(keys).size).toBe(keys.length);
  const manifests = readdirSync(join(cwd, "exports"), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith("manifest.json"))
    .map((name) => JSON.parse(readFileSync(join(cwd, "exports", name), "utf8")) as Manifest);
  const points = manifests.map(({ source: { schedule, vm, fireTime } }) => `${schedule} ${vm} ${fireTime}`);
  expect(new Set(points).size).toBe(points.length);
  // none lost: of the schedule that nobody touched, every minute from its beginning on
  const minutely = new Map(items.filter(({ schedule }) => schedule === "minutely").map((run) => [`${run.vm} ${run.fireTime}`, run.state]));
  for (let at = Math.floor(beganMs / minuteMs) * minuteMs + 2 * minuteMs; at < endedMs - 10_000; at += minuteMs)
    for (const vm of vms) {
      const key = `/datacenter/vm/${vm} ${new Date(at).toISOString()}`;
      expect([key, minutely.get(key)]).toEqual([key, expect.stringMatching(/^(completed|skipped|running|queued)$/) as string]);
    }
  expect([...minutely.values()]).toContain("completed");
});

function rssMiB(pid: number): number {
  return Math.round(Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) / 1024);
}
