import { mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { hypersdk, start, workTree } from "../support/cli.ts";
import { smallest } from "../support/desired.ts";
import { MiB, writeRaw } from "../support/disks.ts";
import { result } from "../support/schemas.ts";

const yaml = smallest.replace("file:///srv/backups", "file:./exports").replace("    vms", "    initialExport: immediate\n    verify: restore\n    vms");

function fleet(): string {
  const folder = workTree(yaml);
  for (const name of ["a", "b", "c"]) {
    mkdirSync(join(folder, "machines", name), { recursive: true });
    writeRaw(join(folder, "machines", name, "disk.raw"), { sizeBytes: 64 * MiB, islands: [{ offset: 0, length: 24 * MiB }] });
  }
  return folder;
}

const files = (folder: string): string[] =>
  readdirSync(join(folder, "exports"), { recursive: true, encoding: "utf8", withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 9));

describe("one interrupt", () => {
  it("starts nothing new, says what can be resumed, and the next apply resumes it", async () => {
    const folder = fleet();
    const apply = start(folder, ["apply", "--auto-approve", "--parallelism", "1", "--events", "events.jsonl"]);
    await waitForEvent(folder, "export_progress");
    apply.kill("SIGINT");
    const ran = await apply.done;
    expect(ran.code).toBe(130);
    expect(ran.stdout).toMatch(/\d exports? not started, [01] can be resumed: hypersdk apply/);
    const again = result<{ completed: number }>((await hypersdk(folder, ["apply", "--auto-approve", "--json"])).stdout);
    expect(again.completed).toBeGreaterThanOrEqual(2);
    expect(result<{ items: unknown[] }>((await hypersdk(folder, ["get", "artifacts", "--json"])).stdout).items).toHaveLength(3);
    expect(files(folder).filter((file) => file.endsWith(".partial"))).toEqual([]);
  });
});

describe("a run that is killed", () => {
  it("leaves no run in the queue for ever; what another process still waits with stays", async () => {
    const folder = fleet();
    await hypersdk(folder, ["apply", "--auto-approve", "--no-exports"]);
    await hypersdk(folder, ["apply", "--auto-approve"]);
    const run = start(folder, ["run", "nightly", "--parallelism", "1", "--events", "events.jsonl"]);
    await waitForEvent(folder, "export_progress");
    const states = async (): Promise<string[]> =>
      result<{ items: { state: string; kind: string }[] }>((await hypersdk(folder, ["get", "runs", "--json"])).stdout)
        .items.filter(({ kind }) => kind === "manual")
        .map(({ state }) => state)
        .sort();
    run.kill("SIGSTOP");
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0 });
    expect(await states()).toContain("queued");
    run.kill("SIGKILL");
    await run.done;
    expect((await hypersdk(folder, ["apply", "--auto-approve"])).code).toBe(0);
    expect(await states()).not.toContain("queued");
    expect(await states()).toContain("cancelled");
  });

  it("is cleared by the next run of that VM, and left alone by those of others", async () => {
    const folder = fleet();
    await hypersdk(folder, ["apply", "--auto-approve"]);
    const run = start(folder, ["run", "nightly", "--vm", "/datacenter/vm/a", "--events", "events.jsonl"]);
    await waitForEvent(folder, "export_progress");
    run.kill("SIGKILL");
    await run.done;
    const states = async (): Promise<string[]> =>
      result<{ items: { state: string; kind: string; vm: string }[] }>((await hypersdk(folder, ["get", "runs", "--json"])).stdout)
        .items.filter(({ kind, vm }) => kind === "manual" && vm.endsWith("/a"))
        .map(({ state }) => state)
        .sort();
    const [cut] = await states();
    expect(cut).toMatch(/^(running|storing)$/);
    expect(await hypersdk(folder, ["run", "nightly", "--vm", "/datacenter/vm/b"])).toMatchObject({ code: 0 });
    expect(await states()).toEqual([cut]);
    expect(await hypersdk(folder, ["run", "nightly", "--vm", "/datacenter/vm/a"])).toMatchObject({ code: 0 });
    expect(await states()).toEqual(["completed", "failed"]);
    expect(files(folder).filter((file) => file.endsWith(".partial"))).toEqual([]);
  });
});

describe("two processes on one state", () => {
  it("work one after the other, or the second says who holds the lock", async () => {
    const folder = fleet();
    const [one, two] = await Promise.all([
      hypersdk(folder, ["apply", "--auto-approve", "--lock-timeout", "60s", "--json"]),
      hypersdk(folder, ["apply", "--auto-approve", "--lock-timeout", "60s", "--json"]),
    ]);
    expect([one.code, two.code]).toEqual([0, 0]);
    expect(result<{ items: unknown[] }>((await hypersdk(folder, ["get", "artifacts", "--json"])).stdout).items).toHaveLength(3);
  });
});

describe("an interrupt while it waits for a lock", () => {
  it("is an answer in JSON too", async () => {
    const folder = fleet();
    const watcher = start(folder, ["watch", "--events", "events.jsonl"]);
    onTestFinished(() => watcher.kill("SIGKILL"));
    await waitForEvent(folder, "watch_started");
    const second = start(folder, ["watch", "--once", "--json", "--lock-timeout", "60s"]);
    // once the state is open, it listens
    await new Promise((resolve) => setTimeout(resolve, 3000));
    second.kill("SIGTERM");
    const { code, stdout } = await second.done;
    expect(code).toBe(143);
    expect(result<{ code: string }>(stdout)).toMatchObject({ type: "error", code: "Interrupted" });
  });
});

async function waitForEvent(folder: string, type: string): Promise<void> {
  const { existsSync, readFileSync } = await import("node:fs");
  for (let i = 0; i < 600; i++) {
    if (existsSync(join(folder, "events.jsonl")) && readFileSync(join(folder, "events.jsonl"), "utf8").includes(`"${type}"`)) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`no ${type} came`);
}
