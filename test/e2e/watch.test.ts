import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer, get } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import Database from "better-sqlite3";
import { describe, expect, it, onTestFinished } from "vitest";
import { commit, git, hypersdk, start, temporaryFolder, workTree } from "../support/cli.ts";
import { KiB, MiB, writeRaw } from "../support/disks.ts";
import { conforms, result } from "../support/schemas.ts";

const yaml = (more = "", cron = "0 2 1 1 *"): string =>
  `version: v2\nschedules:\n  - {name: nightly, cron: "${cron}", initialExport: immediate, vms: ["/datacenter/vm/*"], destination: "file:./exports", verify: none${more}}\n`;

function machines(folder: string, ...names: string[]): void {
  for (const name of names) {
    mkdirSync(join(folder, "machines", name), { recursive: true });
    writeRaw(join(folder, "machines", name, "disk.raw"), { sizeBytes: 4 * MiB, islands: [{ offset: 0, length: 64 * KiB }] });
  }
}

interface Event {
  readonly type: string;
  readonly reason?: string;
  readonly commit?: string | null;
  readonly serial?: number;
}

interface Watcher {
  readonly pid: number;
  readonly events: () => Event[];
  kill(signal: NodeJS.Signals): void;
  readonly done: ReturnType<typeof hypersdk>;
  /** Waits until so many events of a kind have come. */
  came(type: string, count?: number): Promise<Event>;
}

let watchers = 0;

function watching(folder: string, args: readonly string[] = [], env: Record<string, string> = {}): Watcher {
  const file = join(folder, `events-${watchers++}.jsonl`);
  const child = start(folder, ["watch", "--interval", "1s", "--events", file, ...args], env);
  onTestFinished(() => child.kill("SIGKILL"));
  const events = (): Event[] =>
    existsSync(file)
      ? readFileSync(file, "utf8")
          .split("\n")
          // the kernel shows a write page by page: what stands behind the last line end is on its way
          .slice(0, -1)
          .map((line) => conforms<Event>("events", JSON.parse(line)))
      : [];
  let ended = false;
  child.done.then(() => (ended = true)).catch(() => {});
  return {
    pid: child.pid,
    events,
    kill: child.kill,
    done: child.done,
    async came(type, count = 1) {
      for (let i = 0; i < 600; i++) {
        const found = events().filter((event) => event.type === type);
        if (found.length >= count) return found[count - 1] as Event;
        if (ended) throw new Error(`the watcher ended before ${type} came: ${JSON.stringify(await child.done)}`);
        await sleep(100);
      }
      throw new Error(`no ${type} came: ${JSON.stringify(events())}`);
    },
  };
}

const artifacts = async (folder: string, ...more: string[]): Promise<{ vm: string }[]> =>
  result<{ items: { vm: string }[] }>((await hypersdk(folder, ["get", "artifacts", "--json", ...more])).stdout).items;

/** How often a process has waited for something, and gone on. */
const wakings = (pid: number): number => Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]);

describe("watch on a work tree", { timeout: 300_000 }, () => {
  it("applies each change, keeps the last good one beside an invalid one, sees new machines at SIGHUP, and ends at SIGTERM", async () => {
    const folder = workTree(yaml());
    machines(folder, "a", "b");
    const watcher = watching(folder);
    await watcher.came("export_completed", 2);
    writeFileSync(join(folder, "infrastructure.yaml"), yaml("", "61 * * * *"));
    const rejected = await watcher.came("revision_rejected");
    expect(rejected.reason).toMatch(/infrastructure\.yaml:3: cron expression "61 \* \* \* \*"/);
    const status = result<{ attempted: { problem: string }; watcher: { pid: number }; serial: number }>((await hypersdk(folder, ["status", "--json"])).stdout);
    expect(status).toMatchObject({
      serial: 1,
      attempted: { problem: expect.stringContaining("cron expression") as string },
      watcher: { pid: expect.any(Number) as number },
    });
    // suspended while it runs: a new machine is protected, and nothing of it exported
    machines(folder, "c");
    writeFileSync(join(folder, "infrastructure.yaml"), yaml(", suspend: true"));
    expect((await watcher.came("config_applied", 2)).serial).toBe(2);
    writeFileSync(join(folder, "infrastructure.yaml"), yaml(", suspend: false, priority: 51"));
    await watcher.came("config_applied", 3);
    machines(folder, "d");
    watcher.kill("SIGHUP");
    commit(folder);
    await watcher.came("export_completed", 3);
    watcher.kill("SIGTERM");
    expect(await watcher.done).toMatchObject({ code: 0 });
    expect(watcher.events().at(-1)).toMatchObject({ type: "watch_stopped" });
    expect((await hypersdk(folder, ["audit", "verify"])).code).toBe(0);
  });

  it("shows in status how far its exports are, and, after kill -9, which were cut off", async () => {
    const folder = workTree(yaml(", compression: zstd"));
    mkdirSync(join(folder, "machines", "big"), { recursive: true });
    writeRaw(join(folder, "machines", "big", "disk.raw"), { sizeBytes: 256 * MiB, islands: [{ offset: 0, length: 256 * MiB }] });
    const watcher = watching(folder);
    await watcher.came("export_started");
    watcher.kill("SIGSTOP");
    type Status = { running: { vm: string; state: string; readBytes: number; totalBytes: number }[]; runs: unknown[] };
    const status = async (): Promise<Status> => result<Status>((await hypersdk(folder, ["status", "--json"])).stdout);
    expect((await status()).running).toEqual([expect.objectContaining({ vm: "/datacenter/vm/big", state: "storing", totalBytes: 256 * MiB })]);
    const shown = (await hypersdk(folder, ["status"])).stdout;
    expect(shown).toMatch(/running\n {2}nightly {2}\/datacenter\/vm\/big {2}[█░]{16} +\d+% .* of 256 MiB/);
    expect(shown).toMatch(/last runs\n {2}none yet/);
    expect(shown).toMatch(/next runs\n {2}.* nightly {2}in \d+d/);
    watcher.kill("SIGKILL");
    await watcher.done;
    expect((await status()).running).toMatchObject([{ state: "cut off" }]);
    expect((await hypersdk(folder, ["status"])).stdout).toContain("big  its process is gone");
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0 });
    expect((await status()).running).toEqual([]);
  });

  it("takes a file that was cut off while it was saved for no reason to end its schedules; deleting it is one", async () => {
    const folder = workTree(yaml());
    machines(folder, "a");
    const watcher = watching(folder);
    await watcher.came("export_completed");
    const file = join(folder, "infrastructure.yaml");
    const reason = expect.stringMatching(
      /infrastructure\.yaml:1: schedule\.nightly and 1 more stood in this file, and it is no document of hypersdk now/,
    ) as string;
    writeFileSync(file, "");
    expect(await watcher.came("revision_rejected")).toMatchObject({ reason });
    for (const cut of ["", "# nothing\n", "a: [\n", "version\n", "---\n", "\0\0\0\0", "of: another program\n"]) {
      writeFileSync(file, cut);
      const ran = await hypersdk(folder, ["apply", "--auto-approve"]);
      expect(ran).toMatchObject({ code: 3, stderr: expect.stringContaining("HSE029") as string });
    }
    rmSync(file);
    await watcher.came("config_applied", 2);
    watcher.kill("SIGTERM");
    await watcher.done;
    expect(result<{ protections: number }>((await hypersdk(folder, ["status", "--json"])).stdout).protections).toBe(0);
    // to empty it, or to move what it said, is no accident either
    writeFileSync(file, yaml());
    await hypersdk(folder, ["apply", "--auto-approve"]);
    writeFileSync(file, "version: v2\n");
    expect((await hypersdk(folder, ["plan"])).stdout).toContain("- schedule.nightly");
    writeFileSync(join(folder, "other.yaml"), yaml());
    writeFileSync(file, "of: another program\n");
    expect((await hypersdk(folder, ["plan"])).stdout).toContain("0 to remove");
  });

  it("lets a second watcher wait, or end with 5; its lock goes with it", async () => {
    const folder = workTree(yaml());
    machines(folder, "a");
    const first = watching(folder);
    await first.came("watch_started");
    expect(await hypersdk(folder, ["watch"])).toMatchObject({ code: 5, stderr: expect.stringContaining('"watcher" is held by `watch`') as string });
    expect(await hypersdk(folder, ["watch", "--once"])).toMatchObject({ code: 5 });
    const second = watching(folder, ["--lock-timeout", "60s"]);
    await first.came("export_completed");
    first.kill("SIGKILL");
    await second.came("watch_started");
    second.kill("SIGINT");
    expect(await second.done).toMatchObject({ code: 130 });
  });

  it("suspends and resumes while it runs, and a run beside it is an ordinary one", async () => {
    const folder = workTree(yaml());
    machines(folder, "a");
    const watcher = watching(folder);
    await watcher.came("export_completed");
    expect(await hypersdk(folder, ["suspend", "nightly"])).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, ["run", "nightly"])).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, ["resume", "nightly"])).toMatchObject({ code: 0 });
    expect(await artifacts(folder)).toHaveLength(2);
  });

  it("drains at the first signal: what runs is put back, and the next watcher runs it", async () => {
    const folder = workTree(yaml(", retry: {attempts: 5, initialDelay: 5m}"));
    machines(folder, "a");
    writeFileSync(join(folder, "exports"), "no folder");
    const watcher = watching(folder);
    await watcher.came("export_retried");
    watcher.kill("SIGTERM");
    expect(await watcher.done).toMatchObject({ code: 0 });
    rmSync(join(folder, "exports"));
    const next = watching(folder);
    await next.came("export_completed");
    next.kill("SIGTERM");
    await next.done;
    expect(await artifacts(folder)).toHaveLength(1);
  });

  it("a run that was cut off after a later fire time was left out is made all the same", async () => {
    const folder = workTree(yaml(", retry: {attempts: 5, initialDelay: 10m}", "* * * * *"));
    machines(folder, "a");
    writeFileSync(join(folder, "exports"), "no folder");
    const watcher = watching(folder);
    await watcher.came("export_retried");
    // as a minute later, when the next fire time is skipped by overlap
    for (let i = 0; i < 80; i++) {
      const { items } = result<{ items: { state: string }[] }>((await hypersdk(folder, ["get", "runs", "--json"])).stdout);
      if (items.some(({ state }) => state === "skipped")) break;
      await sleep(1000);
    }
    watcher.kill("SIGKILL");
    await watcher.done;
    rmSync(join(folder, "exports"));
    expect(await hypersdk(folder, ["apply", "--auto-approve", "--json"])).toMatchObject({
      code: 0,
      stdout: expect.stringContaining('"completed": 1') as string,
    });
  });

  it("takes a revision over that came while the state was busy for longer than it waits", async () => {
    const folder = workTree(yaml());
    machines(folder, "a");
    const watcher = watching(folder);
    await watcher.came("export_completed");
    const db = new Database(join(folder, ".hypersdk", "state.db"));
    db.exec("BEGIN IMMEDIATE");
    writeFileSync(join(folder, "infrastructure.yaml"), yaml(", priority: 61"));
    // the program waits ten seconds for a busy state
    await watcher.came("pass_failed");
    db.exec("ROLLBACK");
    db.close();
    expect((await watcher.came("config_applied", 2)).serial).toBe(2);
  });

  it("outlives a state that is busy when an export wants to note something", async () => {
    const folder = workTree(yaml(", retry: {attempts: 9, initialDelay: 2s, strategy: linear, jitter: 0}"));
    machines(folder, "a");
    writeFileSync(join(folder, "exports"), "no folder");
    const watcher = watching(folder);
    await watcher.came("export_retried");
    const db = new Database(join(folder, ".hypersdk", "state.db"));
    db.exec("BEGIN IMMEDIATE");
    // the next attempt waits ten seconds for it
    await watcher.came("pass_failed");
    db.exec("ROLLBACK");
    db.close();
    rmSync(join(folder, "exports"));
    await watcher.came("export_completed");
    expect(await artifacts(folder)).toHaveLength(1);
    watcher.kill("SIGTERM");
    expect(await watcher.done).toMatchObject({ code: 0 });
  });

  it("ends when its state is removed under it", async () => {
    const folder = workTree(yaml());
    machines(folder, "a");
    const watcher = watching(folder);
    await watcher.came("export_completed");
    rmSync(join(folder, ".hypersdk"), { recursive: true });
    watcher.kill("SIGHUP");
    expect(await watcher.done).toMatchObject({ code: 1, stderr: expect.stringContaining("was removed or replaced") as string });
  });

  it("adds to an events log whose last line was cut off without harm to its own", async () => {
    const folder = workTree(yaml());
    machines(folder, "a");
    const log = join(folder, "events.jsonl");
    const once = '{"type":"export_completed","message":"cut of';
    writeFileSync(log, once);
    const watcher = start(folder, ["watch", "--events", log]);
    onTestFinished(() => watcher.kill("SIGKILL"));
    const lines = (): string[] => readFileSync(log, "utf8").split("\n");
    for (let i = 0; i < 300 && lines().length < 3; i++) await sleep(100);
    watcher.kill("SIGTERM");
    await watcher.done;
    const [first, second = ""] = lines();
    expect(first).toBe(once);
    expect(conforms<Event>("events", JSON.parse(second)).type).toBe("version");
  });

  it("--once is one pass: exit 0, 7 where an export failed, 3 for an invalid file", async () => {
    const folder = workTree(yaml());
    machines(folder, "a");
    expect(await hypersdk(folder, ["watch", "--once", "--json"])).toMatchObject({ code: 0, stdout: expect.stringContaining('"completed": 1') as string });
    writeFileSync(join(folder, "infrastructure.yaml"), yaml(", rpo: 1h"));
    const warned = await hypersdk(folder, ["watch", "--once"]);
    expect(warned).toMatchObject({ code: 0, stderr: expect.stringContaining("HSW020: infrastructure.yaml:3: an rpo of 1h cannot be met") as string });
    writeFileSync(join(folder, "infrastructure.yaml"), yaml("", "x"));
    expect(await hypersdk(folder, ["watch", "--once", "--events", "events"])).toMatchObject({ code: 3 });
    // the one that looks in the morning sees what became of it
    expect(readFileSync(join(folder, "events"), "utf8")).toContain('"type":"revision_rejected"');
    const refused = await hypersdk(folder, ["watch", "--once", "--json"]);
    expect(result<{ diagnostics: { code: string; line: number }[] }>(refused.stdout).diagnostics).toMatchObject([{ line: 3 }]);
    expect((await hypersdk(folder, ["status"])).stdout).toContain("rejected");
    writeFileSync(
      join(folder, "infrastructure.yaml"),
      `${yaml().replace("nightly", "other").replace("./exports", "./elsewhere").replace("verify: none", "verify: none, retry: {attempts: 0}")}`,
    );
    writeFileSync(join(folder, "elsewhere"), "no folder");
    expect(await hypersdk(folder, ["watch", "--once"])).toMatchObject({ code: 7 });
  });

  it("tells of what never runs: a line, an event and a metric", async () => {
    const folder = workTree(
      `${yaml(", suspend: true")}  - {name: then, cron: "* * * * *", vms: ["/datacenter/vm/*"], destination: "file:./exports", verify: none, dependsOn: [{schedule: nightly, timeout: 1s}]}\n`,
    );
    machines(folder, "a");
    const listen = createServer().listen(0, "127.0.0.1");
    await once(listen, "listening");
    const { port } = listen.address() as AddressInfo;
    // another program has the port: that is no wrong usage, and no other watcher
    expect(await hypersdk(folder, ["watch", "--listen", `127.0.0.1:${port}`])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("something else listens there") as string,
    });
    listen.close();
    const watcher = watching(folder, ["--listen", `127.0.0.1:${port}`]);
    await watcher.came("config_applied");
    // a second one meets the lock first
    expect(await hypersdk(folder, ["watch", "--listen", `127.0.0.1:${port}`])).toMatchObject({ code: 5 });
    execFileSync("sqlite3", [
      "-cmd",
      ".timeout 10000",
      join(folder, ".hypersdk", "state.db"),
      "UPDATE protections SET effective_since = '2026-01-01T00:00:00.000Z'",
    ]);
    watcher.kill("SIGHUP");
    expect(await watcher.came("export_skipped")).toMatchObject({
      reason: expect.stringContaining("the dependency on nightly (completed) was not met") as string,
    });
    // the text is made once a second
    await sleep(1200);
    const metrics = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text();
    expect(metrics).toMatch(/^hypersdk_exports_total\{schedule="then",outcome="skipped"\} [1-9]/m);
    watcher.kill("SIGTERM");
    expect((await watcher.done).stderr).toMatch(/then {2}\/datacenter\/vm\/a {2}skipped: the dependency/);
  });

  it("sleeps while nothing is due", { skip: process.platform !== "linux" }, async () => {
    const folder = workTree(yaml());
    const watcher = watching(folder, ["--interval", "10m"]);
    await watcher.came("config_applied");
    await sleep(1000);
    const before = wakings(watcher.pid);
    await sleep(2000);
    // a timer every ten milliseconds, as for a histogram of the event loop, would make it two hundred
    expect(wakings(watcher.pid) - before).toBeLessThan(50);
  });

  it("tells its health and its metrics", async () => {
    const folder = workTree(yaml());
    machines(folder, "a");
    const free = createServer();
    await new Promise<void>((resolve) => free.listen(0, "127.0.0.1", resolve));
    const { port } = free.address() as AddressInfo;
    free.close();
    const watcher = watching(folder, ["--listen", `127.0.0.1:${port}`]);
    await watcher.came("export_completed");
    await sleep(300);
    expect(await fetched(port, "/healthz")).toMatchObject({ code: 200, body: expect.stringContaining('"alive":true') as string });
    expect(await fetched(port, "/readyz")).toMatchObject({ code: 200, body: expect.stringContaining('"ready":true') as string });
    const { body } = await fetched(port, "/metrics");
    expect(body).toContain('hypersdk_exports_total{schedule="nightly",outcome="completed"} 1');
    expect(body).toMatch(/hypersdk_last_success_timestamp_seconds\{schedule="nightly",vm="\/datacenter\/vm\/a"\} \d{10}/);
    expect(body).toMatch(/hypersdk_next_run_timestamp_seconds\{schedule="nightly"\} \d{10}/);
    expect(body).toContain("hypersdk_queue_depth 0");
    expect(body).toContain("hypersdk_missing_vms 0");
    rmSync(join(folder, "machines/a"), { recursive: true });
    watcher.kill("SIGHUP");
    await watcher.came("drifted");
    await sleep(1200);
    expect((await fetched(port, "/metrics")).body).toContain("hypersdk_missing_vms 1");
    expect(await fetched(port, "/other")).toMatchObject({ code: 404 });
    expect(await hypersdk(folder, ["watch", "--listen", "nowhere:x"])).toMatchObject({ code: 64 });
  });
});

describe("watch on a branch of a repository elsewhere", { timeout: 300_000 }, () => {
  /** A bare repository, and a clone to push from. */
  function remote(content: string): {
    readonly url: string;
    readonly bare: string;
    readonly clone: string;
    readonly cwd: string;
    push(content: string, ...args: string[]): string;
  } {
    const cwd = temporaryFolder();
    const [bare, clone] = [join(cwd, "bare.git"), join(cwd, "clone")];
    git(cwd, "init", "--quiet", "--bare", bare);
    git(cwd, "clone", "--quiet", bare, clone);
    const push = (text: string, ...args: string[]): string => {
      writeFileSync(join(clone, "infrastructure.yaml"), text);
      git(clone, "add", "--all");
      git(clone, "commit", "--quiet", "--allow-empty", "-m", "change", ...args);
      git(clone, "push", "--quiet", "--force", "origin", "HEAD:main");
      return git(clone, "rev-parse", "HEAD").trim();
    };
    push(content);
    machines(cwd, "a");
    return { url: `file://${bare}`, bare, clone, cwd, push };
  }
  const outside = (cwd: string, more = ""): string =>
    `${yaml(more).replace("file:./exports", `file://${cwd}/exports`)}providers: [{name: lab, type: local, path: "${cwd}/machines"}]\n`;
  const argsOf = (url: string, cwd: string): string[] => ["--repo", url, "--branch", "main", "--allow-path", cwd];

  it("follows it over an invalid commit, a force-push, a revert, an absence and a return", async () => {
    const { url, bare, clone, cwd, push } = remote("version: v2\n");
    const first = push(outside(cwd));
    const watcher = watching(cwd, argsOf(url, cwd));
    await watcher.came("export_completed");
    const bad = push("version: v2\nschedules: [{name: x}]\n");
    expect(await watcher.came("revision_rejected")).toMatchObject({ commit: bad });
    // force-pushed away from what was rejected
    git(clone, "reset", "--quiet", "--hard", first);
    push(outside(cwd, ", priority: 60"), "--amend");
    expect(await watcher.came("config_applied", 2)).toMatchObject({ serial: 2 });
    git(clone, "revert", "--no-edit", "HEAD");
    push(outside(cwd));
    await watcher.came("config_applied", 3);
    // the branch goes, and the repository, and both come back
    git(bare, "update-ref", "-d", "refs/heads/main");
    await watcher.came("source_lost");
    renameSync(bare, `${bare}.gone`);
    await watcher.came("source_lost", 2);
    renameSync(`${bare}.gone`, bare);
    push(outside(cwd, ", priority: 70"));
    await watcher.came("source_back");
    await watcher.came("config_applied", 4);
    watcher.kill("SIGTERM");
    expect(await watcher.done).toMatchObject({ code: 0 });
    const applied = result<{ revision: { commit: string } }>((await hypersdk(cwd, ["status", "--json", ...argsOf(url, cwd)])).stdout);
    expect(applied.revision.commit).toBe(git(clone, "rev-parse", "HEAD").trim());
  });

  it("refuses a commit of 20,001 files of YAML, and goes on", async () => {
    const { url, clone, cwd, push } = remote("version: v2\n");
    push(outside(cwd));
    const watcher = watching(cwd, argsOf(url, cwd));
    await watcher.came("export_completed");
    const head = git(clone, "rev-parse", "HEAD").trim();
    const files = Array.from({ length: 20_000 }, (_, i) => `M 100644 :1 many/${i}.yaml\n`).join("");
    execFileSync("git", ["fast-import", "--quiet"], {
      cwd: clone,
      input: `blob\nmark :1\ndata 12\nversion: v2\n\ncommit refs/heads/many\ncommitter a <a@b> 1700000000 +0000\ndata 4\nmany\nfrom ${head}\n${files}\n`,
    });
    git(clone, "push", "--quiet", "origin", "many:main");
    expect(await watcher.came("revision_rejected")).toMatchObject({ code: "ConfigInvalid", reason: expect.stringContaining("20001 YAML files") as string });
    machines(cwd, "late");
    watcher.kill("SIGHUP");
    await watcher.came("export_completed", 2);
    const plan = await hypersdk(cwd, ["plan", ...argsOf(url, cwd)]);
    expect(plan).toMatchObject({ code: 3, stderr: expect.stringMatching(/at most 20000 files are read, 12 MiB of them[\s\S]*--path/) as string });
    expect(await hypersdk(cwd, ["status", ...argsOf(url, cwd)])).toMatchObject({ code: 0, stdout: expect.stringContaining("rejected") as string });
  });

  it("refuses what unpacks to more than there is room for, a folder that became a link, and warns of what it passes over", async () => {
    const { url, clone, cwd, push } = remote("version: v2\n");
    push(outside(cwd));
    mkdirSync(join(clone, "vms"));
    git(clone, "mv", "infrastructure.yaml", "vms/infrastructure.yaml");
    git(clone, "commit", "--quiet", "-m", "moved");
    git(clone, "push", "--quiet", "origin", "HEAD:main");
    const args = [...argsOf(url, cwd), "--path", "vms"];
    const watcher = watching(cwd, args);
    await watcher.came("export_completed");
    // 600 MiB of one letter are half a megabyte for git
    execFileSync("sh", ["-c", "head -c 629145600 /dev/zero | tr '\\0' A > big.bin"], { cwd: clone });
    git(clone, "add", "--all");
    git(clone, "commit", "--quiet", "-m", "big");
    git(clone, "push", "--quiet", "origin", "HEAD:main");
    expect(await watcher.came("source_lost")).toMatchObject({ reason: expect.stringContaining("its files have 6291") as string });
    expect(execFileSync("du", ["-sm", cwd, "--exclude=clone", "--exclude=*.git"], { encoding: "utf8" })).toMatch(/^\d\d?\t/);
    git(clone, "rm", "--quiet", "big.bin");
    git(clone, "mv", "vms", "prod");
    symlinkSync("prod", join(clone, "vms"));
    git(clone, "add", "--all");
    git(clone, "commit", "--quiet", "-m", "link");
    git(clone, "push", "--quiet", "origin", "HEAD:main");
    expect(await watcher.came("source_lost", 2)).toMatchObject({ reason: expect.stringContaining('no folder "vms"') as string });
    rmSync(join(clone, "vms"));
    git(clone, "mv", "prod", "vms");
    symlinkSync("infrastructure.yaml", join(clone, "vms", "other.yaml"));
    git(clone, "add", "--all");
    git(clone, "commit", "--quiet", "-m", "back");
    git(clone, "push", "--quiet", "origin", "HEAD:main");
    await watcher.came("source_back");
    expect(await watcher.came("warning")).toMatchObject({ code: "HSW018" });
    expect(result<{ protections: number }>((await hypersdk(cwd, ["status", "--json", ...args])).stdout).protections).toBe(1);
  });

  it("follows the branch, whatever tags and branches are called likewise", async () => {
    const { url, clone, cwd, push } = remote("version: v2\n");
    push(outside(cwd));
    git(clone, "checkout", "--quiet", "-b", "other");
    writeFileSync(join(clone, "infrastructure.yaml"), outside(cwd).replace("nightly", "evil"));
    git(clone, "commit", "--quiet", "--all", "-m", "evil");
    git(clone, "tag", "main");
    git(clone, "push", "--quiet", "origin", "refs/tags/main", "HEAD:refs/heads/x/main");
    const plan = await hypersdk(cwd, ["plan", ...argsOf(url, cwd)]);
    expect([plan.code, plan.stdout.includes("schedule.nightly"), plan.stdout.includes("evil")]).toEqual([0, true, false]);
    expect((await hypersdk(cwd, ["plan", "--repo", url, "--ref", "refs/tags/main", "--allow-path", cwd])).stdout).toContain("schedule.evil");
  });

  it("goes on with the last good revision where a valid one cannot be applied, and says so", async () => {
    const { url, cwd, push } = remote("version: v2\n");
    push(outside(cwd));
    const watcher = watching(cwd, argsOf(url, cwd));
    await watcher.came("export_completed");
    mkdirSync(join(cwd, "foreign"));
    writeFileSync(
      join(cwd, "foreign", "hypersdk-destination.json"),
      readFileSync(join(cwd, "exports", "hypersdk-destination.json"), "utf8").replace(
        /"lineage":\s*"[^"]*"/,
        '"lineage": "11111111-1111-4111-8111-111111111111"',
      ),
    );
    const bad = push(
      outside(cwd).replace(
        "schedules:\n",
        `schedules:\n  - {name: other, cron: "0 3 * * *", vms: ["/datacenter/vm/*"], destination: "file://${cwd}/foreign", verify: none}\n`,
      ),
    );
    expect(await watcher.came("revision_rejected")).toMatchObject({ commit: bad, code: "DestinationForeign" });
    machines(cwd, "late");
    watcher.kill("SIGHUP");
    await watcher.came("export_completed", 2);
    const status = result<{ revision: { commit: string }; attempted: { commit: string; problem: string } }>(
      (await hypersdk(cwd, ["status", "--json", ...argsOf(url, cwd)])).stdout,
    );
    expect([status.revision.commit === bad, status.attempted.commit]).toEqual([false, bad]);
  });

  it("keeps every protection while a provider cannot be reached, and counts machines that vanish as missing, not as unwanted", async () => {
    const { url, cwd } = remote("version: v2\n");
    machines(cwd, "a", "b");
    const { push, clone } = { push: (text: string): void => writeFileSync(join(cwd, "clone", "infrastructure.yaml"), text), clone: join(cwd, "clone") };
    push(outside(cwd));
    git(clone, "add", "--all");
    git(clone, "commit", "--quiet", "-m", "x");
    git(clone, "push", "--quiet", "origin", "HEAD:main");
    const watcher = watching(cwd, argsOf(url, cwd));
    await watcher.came("export_completed", 2);
    renameSync(join(cwd, "machines"), join(cwd, "machines-gone"));
    watcher.kill("SIGHUP");
    await sleep(2500);
    mkdirSync(join(cwd, "machines"));
    renameSync(join(cwd, "machines-gone", "a"), join(cwd, "machines", "a"));
    git(clone, "commit", "--quiet", "--allow-empty", "-m", "y");
    git(clone, "push", "--quiet", "origin", "HEAD:main");
    await watcher.came("revision_found", 2);
    await sleep(1500);
    const { items } = result<{ items: { vmPath: string; state: string }[] }>(
      (await hypersdk(cwd, ["get", "protections", "--json", ...argsOf(url, cwd)])).stdout,
    );
    expect(items.map((each) => JSON.stringify(each)).join()).toMatch(/"missing"/);
    expect(items).toHaveLength(2);
  });

  it("takes only what is signed by a key of the file, of SSH and of OpenPGP", async () => {
    const { url, cwd, clone, push } = remote("version: v2\n");
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "boss", "-f", join(cwd, "boss")]);
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "other", "-f", join(cwd, "other")]);
    writeFileSync(join(cwd, "allowed"), `test@example.com ${readFileSync(join(cwd, "boss.pub"), "utf8")}`);
    const signedBy = (key: string): void => {
      git(clone, "config", "gpg.format", "ssh");
      git(clone, "config", "user.signingkey", join(cwd, `${key}.pub`));
    };
    signedBy("boss");
    push(outside(cwd), "-S");
    const watcher = watching(cwd, [...argsOf(url, cwd), "--verify-signatures", "allowed"]);
    await watcher.came("export_completed");
    const unsigned = push(outside(cwd, ", priority: 10"));
    expect(await watcher.came("revision_rejected")).toMatchObject({ commit: unsigned, code: "SignatureRefused" });
    // the key is added later: the commit is taken without another one
    const allowed = readFileSync(join(cwd, "allowed"), "utf8");
    signedBy("other");
    const foreign = push(outside(cwd, ", priority: 20"), "-S");
    expect(await watcher.came("revision_rejected", 2)).toMatchObject({ commit: foreign });
    writeFileSync(join(cwd, "allowed"), `${allowed}test@example.com ${readFileSync(join(cwd, "other.pub"), "utf8")}`);
    await watcher.came("config_applied", 2);
    signedBy("boss");
    push(outside(cwd, ", priority: 30"), "-S");
    await watcher.came("config_applied", 3);
    watcher.kill("SIGTERM");
    await watcher.done;
    // a work tree is not fooled by what git is told to overlook
    const tree = ["plan", "--state", join(cwd, "tree.db"), "--verify-signatures", join(cwd, "allowed")];
    expect(await hypersdk(clone, tree)).toMatchObject({ code: 0 });
    git(clone, "update-index", "--assume-unchanged", "infrastructure.yaml");
    const signed = readFileSync(join(clone, "infrastructure.yaml"), "utf8");
    writeFileSync(join(clone, "infrastructure.yaml"), signed.replace("nightly", "evil"));
    expect(await hypersdk(clone, tree)).toMatchObject({ code: 10, stderr: expect.stringContaining("is not as the signed commit has it") as string });
    writeFileSync(join(clone, "infrastructure.yaml"), signed);
    git(clone, "update-index", "--no-assume-unchanged", "infrastructure.yaml");
    // OpenPGP
    const home = join(cwd, "gnupg");
    mkdirSync(home, { mode: 0o700 });
    const gpg = (...args: string[]): Buffer =>
      execFileSync("gpg", ["--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", ...args]);
    gpg("--quick-generate-key", "Boss <boss@example.com>", "ed25519", "sign", "never");
    onTestFinished(() => void execFileSync("gpgconf", ["--homedir", home, "--kill", "all"]));
    writeFileSync(join(cwd, "keyring.asc"), gpg("--armor", "--export", "boss@example.com"));
    expect(await hypersdk(cwd, ["plan", ...argsOf(url, cwd), "--verify-signatures", "keyring.asc"])).toMatchObject({
      code: 10,
      stderr: expect.stringContaining("is not signed by a key of") as string,
    });
    git(clone, "config", "gpg.format", "openpgp");
    git(clone, "config", "user.signingkey", "boss@example.com");
    writeFileSync(join(cwd, "gpg-here"), `#!/bin/sh\nexec gpg --homedir '${home}' --batch "$@"\n`, { mode: 0o755 });
    git(clone, "config", "gpg.program", join(cwd, "gpg-here"));
    push(outside(cwd, ", priority: 40"), "-S");
    expect(await hypersdk(cwd, ["plan", ...argsOf(url, cwd), "--verify-signatures", "keyring.asc"])).toMatchObject({ code: 0 });
    expect(await hypersdk(cwd, ["plan", ...argsOf(url, cwd), "--verify-signatures", "allowed"])).toMatchObject({ code: 10 });
  });
});

function fetched(port: number, path: string): Promise<{ readonly code: number | undefined; readonly body: string }> {
  return new Promise((resolve, reject) => {
    get({ host: "127.0.0.1", port, path }, (response) => {
      let body = "";
      response.setEncoding("utf8").on("data", (text: string) => (body += text));
      response.on("end", () => resolve({ code: response.statusCode, body }));
    }).on("error", reject);
  });
}
