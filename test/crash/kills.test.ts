import { createHash } from "node:crypto";
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { hypersdk, start, workTree } from "../support/cli.ts";
import { bytes, KiB, MiB, random, writeRaw } from "../support/disks.ts";
import { result } from "../support/schemas.ts";

/**
 * One installation for each layout that lives through kill after kill of the built program, in whatever command and at whatever instant
 * chance has it, and is looked at as a whole every ten. CRASH_KILLS=334 with `npm run test:crash`: a thousand in all.
 */
const kills = Number(process.env["CRASH_KILLS"] ?? 6);
const seed = Number(process.env["CRASH_SEED"] ?? 42);
const diskBytes = 12 * MiB;
const vms = ["a", "b"];

type Layout = "image" | "repository" | "sealed";

interface Listed {
  readonly id: string;
  readonly vm: string;
  readonly instant: string;
  readonly manifest: string;
  readonly expiresAt: string | null;
}

class Installation {
  readonly folder: string;
  /** What each disk held from when on, by its hash. */
  readonly versions = new Map<string, { readonly from: number; readonly sha256: string }[]>();
  readonly layout: Layout;
  killed = 0;
  edits = 0;

  constructor(layout: Layout) {
    this.layout = layout;
    this.folder = workTree(this.yaml());
    writeFileSync(join(this.folder, "key"), "the key of the test\n");
    for (const vm of vms) {
      mkdirSync(join(this.folder, "machines", vm), { recursive: true });
      writeRaw(this.disk(vm), { sizeBytes: diskBytes, islands: [{ offset: 0, length: 4 * MiB }] });
      this.note(vm);
    }
  }

  yaml(): string {
    const layout = this.layout === "image" ? "image" : "repository";
    const more = this.layout === "sealed" ? ', encryption: {key: "${file:key}"}' : "";
    return `version: v2
destinations:
  - {name: backups, url: "file:./backups", layout: ${layout}, expiryGrace: 1s}
schedules:
  - {name: nightly, cron: "0 2 1 1 *", priority: ${this.edits % 100}, initialExport: immediate, vms: ["/datacenter/vm/*"], destination: backups${more}, incremental: ${this.layout !== "image"}, verify: stored, retention: {keepLast: 3}}
`;
  }

  disk(vm: string): string {
    return join(this.folder, "machines", vm, "disk.raw");
  }

  note(vm: string): void {
    const seen = this.versions.get(vm) ?? [];
    seen.push({ from: Date.now(), sha256: hashOf(this.disk(vm)) });
    this.versions.set(vm, seen);
  }

  /** Changes some of a disk. The instant of a point has no parts of a second, so a version stays for one. */
  overwrite(vm: string, next: () => number): void {
    const file = openSync(this.disk(vm), "r+");
    const offset = Math.floor((next() * (diskBytes - 300 * KiB)) / 512) * 512;
    writeSync(file, bytes(300 * KiB, Math.floor(next() * 2 ** 31)), 0, 300 * KiB, offset);
    closeSync(file);
    this.note(vm);
  }

  async ok(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await hypersdk(this.folder, args);
    expect([args.join(" "), code, code === 0 ? "" : stdout + stderr]).toEqual([args.join(" "), 0, ""]);
    return stdout;
  }

  async listed(): Promise<Listed[]> {
    return result<{ items: Listed[] }>(await this.ok("get", "artifacts", "--json")).items;
  }

  files(): string[] {
    return readdirSync(join(this.folder, "backups"), { recursive: true, encoding: "utf8", withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name).slice(this.folder.length + 9));
  }
}

const hashOf = (path: string): string => createHash("sha256").update(readFileSync(path)).digest("hex");

/** What may be killed: the arguments, and whether points may go by it. */
function commandOf(installation: Installation, next: () => number): { readonly args: string[]; readonly removes?: boolean } {
  const chance = next();
  if (installation.layout === "image") {
    if (chance < 0.15) return { args: ["expire", "--auto-approve"], removes: true };
    if (chance < 0.25) return { args: ["verify"] };
  } else {
    if (chance < 0.1) return { args: ["expire", "--auto-approve"], removes: true };
    if (chance < 0.25) return { args: ["compact", "--grace", "0s", "--max-unused", "0%"] };
    if (chance < 0.3) return { args: ["check", "--read-data"] };
    if (chance < 0.35) return { args: ["repair", "--auto-approve"] };
  }
  if (chance < 0.5) {
    installation.edits++;
    writeFileSync(join(installation.folder, "infrastructure.yaml"), installation.yaml());
    return { args: ["apply", "--auto-approve"], removes: true };
  }
  if (chance < 0.55) return { args: ["restore", "--vm", "/datacenter/vm/a", "--to", "cut.raw"] };
  for (const vm of vms) if (next() < 0.7) installation.overwrite(vm, next);
  return { args: ["run", "nightly"], removes: true };
}

/** What must hold right after a kill, and before anything mended it. */
async function holds(installation: Installation, before: readonly Listed[], removes: boolean, when: string): Promise<void> {
  const after = await installation.listed();
  const ids = after.map(({ id }) => id);
  for (const { id, expiresAt } of before) if (!removes || expiresAt === null) expect([when, ids]).toEqual([when, expect.arrayContaining([id]) as string[]]);
  const files = installation.files();
  for (const { manifest, expiresAt } of after) if (expiresAt === null) expect([when, files]).toEqual([when, expect.arrayContaining([manifest]) as string[]]);
  if (installation.layout !== "image" && files.includes("config"))
    expect([when, (await hypersdk(installation.folder, ["check", "--quiet"])).stderr]).toEqual([when, ""]);
}

/** The next run finishes; then everything listed restores to what its machine held, and nothing is left over. */
async function settles(installation: Installation): Promise<void> {
  const { folder, layout } = installation;
  for (const vm of vms) installation.note(vm);
  await installation.ok("apply", "--auto-approve", "--quiet");
  await installation.ok("run", "nightly", "--quiet");
  await installation.ok("audit", "verify");
  await installation.ok("verify");
  if (layout !== "image") {
    expect(await installation.ok("check", "--read-data")).toContain("sound");
    await installation.ok("compact", "--grace", "0s");
  }
  expect(await installation.ok("plan", "--summary")).toContain("0 to add, 0 to change, 0 to remove");
  const points = await installation.listed();
  for (const vm of vms) expect(points.filter((point) => point.vm === `/datacenter/vm/${vm}`).length).toBeGreaterThanOrEqual(2);
  for (const { id, vm, instant } of points) {
    await installation.ok("restore", id, "--to", "restored.raw", "--quiet");
    const at = Date.parse(instant);
    const versions = installation.versions.get(vm.slice(vm.lastIndexOf("/") + 1)) ?? [];
    const possible = versions
      .filter(({ from }, i) => from < at + 1000 && (versions[i + 1]?.from ?? Number.POSITIVE_INFINITY) >= at)
      .map(({ sha256 }) => sha256);
    expect([id, possible]).toEqual([id, expect.arrayContaining([hashOf(join(folder, "restored.raw"))]) as string[]]);
    rmSync(join(folder, "restored.raw"));
  }
  expect(installation.files().filter((file) => file.endsWith(".partial"))).toEqual([]);
}

it.each<Layout>(["image", "repository", "sealed"])(
  "%s: a process that is killed at any instant leaves what opens, loses nothing, and the next run finishes",
  {
    timeout: 3 * 3_600_000,
  },
  async (layout) => {
    const next = random(seed + layout.length);
    const installation = new Installation(layout);
    const { folder } = installation;
    await installation.ok("apply", "--auto-approve", "--quiet");
    let usualMs = 900;
    while (installation.killed < kills) {
      const before = await installation.listed();
      const { args, removes = false } = commandOf(installation, next);
      rmSync(join(folder, "cut.raw"), { force: true });
      const delayMs = 100 + next() * usualMs;
      const startedMs = Date.now();
      const command = start(folder, [...args, "--quiet"]);
      const timer = setTimeout(() => command.kill("SIGKILL"), delayMs);
      const { code, stderr } = await command.done;
      clearTimeout(timer);
      // as long as commands take on this machine now, and a little more
      if (code !== null) usualMs = 0.8 * usualMs + 0.2 * 1.2 * (Date.now() - startedMs);
      else if (delayMs > 0.9 * usualMs) usualMs *= 1.1;
      const when = `${layout}, kill ${installation.killed + 1}, ${args.join(" ")} after ${Math.round(delayMs)} ms`;
      // what was not killed has to succeed
      if (code !== null) expect([when, code, stderr]).toEqual([when, 0, stderr]);
      if (code === null) installation.killed++;
      await holds(installation, before, removes, when);
      if (code === null && (installation.killed % 10 === 0 || installation.killed === kills)) await settles(installation);
    }
  },
);
