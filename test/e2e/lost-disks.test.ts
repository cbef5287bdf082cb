import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { hypersdk, start, workTree } from "../support/cli.ts";
import { bytes, MiB } from "../support/disks.ts";
import { result } from "../support/schemas.ts";

/*
 * What may cost somebody the last point that can be restored, each as it was found.
 */

const files = (schedule: string, destination = ""): string =>
  `version: v2\nproviders: [{name: local, type: local, path: ./machines}]\ndestinations: [{name: d, url: "file:./backups", expiryGrace: 0s${destination}}]\n` +
  `schedules:\n  - {name: n, cron: "0 2 * * *", initialExport: immediate, vms: ["/datacenter/vm/*"], destination: d, ${schedule}}\n`;

interface Point {
  readonly id: string;
  readonly state: string;
  readonly manifest: string;
}

class Site {
  readonly folder: string;

  constructor(schedule: string, destination?: string) {
    this.folder = workTree(files(schedule, destination));
    mkdirSync(join(this.folder, "machines/a"), { recursive: true });
    this.write(1);
  }

  write(seed: number): void {
    writeFileSync(this.disk, bytes(2 * MiB, seed));
  }

  get disk(): string {
    return join(this.folder, "machines/a/disk.raw");
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  async run(...args: string[]): Promise<{ readonly code: number | null; readonly stdout: string; readonly stderr: string }> {
    return hypersdk(this.folder, args);
  }

  async ok(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.run(...args);
    expect([args.join(" "), code, stderr]).toEqual([args.join(" "), 0, expect.any(String) as string]);
    return stdout + stderr;
  }

  async points(): Promise<Point[]> {
    return result<{ items: Point[] }>((await this.run("get", "artifacts", "--json")).stdout).items.slice();
  }

  async isRestored(): Promise<void> {
    rmSync(this.path("back.raw"), { force: true });
    await this.ok("restore", "--vm", "/datacenter/vm/a", "--to", "back.raw");
    expect(readFileSync(this.path("back.raw")).equals(readFileSync(this.disk))).toBe(true);
  }

  packs(): string[] {
    return readdirSync(this.path("backups/packs"), { recursive: true, encoding: "utf8" })
      .map((name) => join(this.path("backups/packs"), name))
      .filter((path) => statSync(path).isFile());
  }

  /** Two points, of which the pack of the second is damaged and known to be. */
  async withDamage(): Promise<void> {
    await this.ok("apply", "--auto-approve");
    const before = new Set(this.packs());
    this.write(2);
    await this.ok("run", "n");
    const [pack = ""] = this.packs().filter((path) => !before.has(path));
    const content = readFileSync(pack);
    content.write("XXXX", 8);
    writeFileSync(pack, content);
    expect((await this.run("verify")).code).toBe(11);
    expect((await this.points()).map(({ state }) => state)).toEqual(["good", "bad"]);
  }
}

describe("a pack that a proof has found damaged", () => {
  it.each([[[]], [["--full"]]])("is built on by no later export (run %j)", async (args) => {
    const site = new Site("incremental: true, verify: stored, retention: {keepLast: 1}");
    await site.withDamage();
    expect(await site.ok("run", "n", ...args)).not.toContain("0 B stored");
    await site.ok("apply", "--auto-approve");
    expect((await site.points()).map(({ state }) => state)).toEqual(["good"]);
    await site.isRestored();
    await site.ok("verify");
  });
});

describe("damage that a check has found", () => {
  it("is known to the state: nothing is built on it", async () => {
    const site = new Site("incremental: true, verify: stored, retention: {keepLast: 1}");
    await site.ok("apply", "--auto-approve");
    const [pack = ""] = site.packs();
    const content = readFileSync(pack);
    content.write("XXXX", 8);
    writeFileSync(pack, content);
    expect((await site.run("check", "--read-data")).code).toBe(11);
    expect((await site.points()).map(({ state }) => state)).toEqual(["bad"]);
    expect(await site.ok("run", "n")).not.toContain("0 B stored");
    await site.isRestored();
    expect(await site.ok("audit", "verify")).toContain("holds");
  });

  it("is told of where the state cannot take it, too", async () => {
    const site = new Site("incremental: true");
    await site.ok("apply", "--auto-approve");
    for (const pack of site.packs()) rmSync(pack);
    writeFileSync(site.path("other.db"), "no state file at all");
    const { code, stdout, stderr } = await site.run("check", "--state", "other.db");
    expect([code, stdout]).toEqual([11, expect.stringContaining("cannot be restored whole")]);
    expect(stderr).toContain("the state does not know what is damaged now");
  });

  it("and a folder in the place of a manifest is told of, and keeps nothing else from being removed", async () => {
    const site = new Site("incremental: true, retention: {keepLast: 1}");
    await site.ok("apply", "--auto-approve");
    for (let i = 0; i < 3; i++) await site.ok("run", "n");
    const [oldest] = await site.points();
    const path = site.path(`backups/${oldest?.manifest}`);
    rmSync(path);
    mkdirSync(join(path, "inside"), { recursive: true });
    await site.run("apply", "--auto-approve", "--no-exports");
    const again = await site.run("apply", "--auto-approve", "--no-exports");
    expect([again.code, again.stdout + again.stderr]).not.toContain(70);
    expect(again.stderr + again.stdout).not.toContain("bug");
    expect((await site.points()).length).toBeLessThanOrEqual(2);
  });
});

describe("a state that is rebuilt", () => {
  it("calls nothing good that nobody has proved, and removes nothing for its sake", async () => {
    const site = new Site("incremental: true, retention: {keepLast: 1}");
    await site.withDamage();
    rmSync(site.path(".hypersdk"), { recursive: true });
    expect(await site.ok("state", "rebuild", "--from", "d")).toContain("hypersdk verify");
    expect((await site.points()).map(({ state }) => state)).toEqual(["unproved", "unproved"]);
    for (let i = 0; i < 2; i++) expect(await site.ok("apply", "--auto-approve", "--no-exports")).not.toMatch(/[1-9]\d* removed/);
    expect((await site.run("verify")).code).toBe(11);
    expect((await site.points()).map(({ state }) => state)).toEqual(["good", "bad"]);
    await site.ok("restore", "--vm", "/datacenter/vm/a", "--to", "first.raw");
    expect(readFileSync(site.path("first.raw")).equals(bytes(2 * MiB, 1))).toBe(true);
  });
});

describe("a hold that the state does not know", () => {
  it("holds all the same: the state was put back from before it", async () => {
    const site = new Site("incremental: true, retention: {keepLast: 5}");
    await site.ok("apply", "--auto-approve");
    for (let i = 0; i < 2; i++) await site.ok("run", "n");
    await site.ok("state", "backup", "before.bak");
    const [oldest] = await site.points();
    await site.ok("hold", oldest?.id ?? "", "--reason", "evidence");
    for (const name of readdirSync(site.path(".hypersdk"))) if (name.startsWith("state.db")) rmSync(site.path(`.hypersdk/${name}`), { recursive: true });
    copyFileSync(site.path("before.bak"), site.path(".hypersdk/state.db"));
    writeFileSync(site.path("infrastructure.yaml"), files("incremental: true, retention: {keepLast: 1}"));
    expect(await site.ok("apply", "--auto-approve")).toContain("is held at d, and stays");
    expect(await site.points()).toHaveLength(2);
    expect(existsSync(site.path(`backups/${oldest?.manifest}`))).toBe(true);
    expect(await site.ok("get", "artifacts")).toContain("held");
  });
});

describe("a state that was put back from before the last export", () => {
  it("tells of the restore points that it does not know, and of none once they are recorded", async () => {
    const site = new Site("incremental: true");
    await site.ok("apply", "--auto-approve");
    await site.ok("state", "backup", "before.bak");
    await site.ok("run", "n");
    for (const name of readdirSync(site.path(".hypersdk"))) if (name.startsWith("state.db")) rmSync(site.path(`.hypersdk/${name}`), { recursive: true });
    copyFileSync(site.path("before.bak"), site.path(".hypersdk/state.db"));
    expect(await site.ok("plan")).toContain("destination.d  1 restore point there is not in this state: `hypersdk state rebuild --from d`");
    expect((await site.run("drift")).code).toBe(10);
    await site.ok("state", "rebuild", "--from", "d");
    expect(await site.points()).toHaveLength(2);
    expect(await site.ok("drift")).toContain("no drift");
  });
});

describe("a state file that is damaged inside", () => {
  it("is called sound by nobody, and copied over no backup", async () => {
    const site = new Site("incremental: true");
    await site.ok("apply", "--auto-approve");
    const state = site.path(".hypersdk/state.db");
    const content = readFileSync(state);
    bytes(8000, 5).copy(content, 40_000);
    writeFileSync(state, content);
    for (const args of [["audit", "verify"], ["doctor"], ["state", "backup", "copy.bak"], ["state", "rebuild", "--from", "d"]]) {
      const { code, stdout, stderr } = await site.run(...args);
      expect([args, code, stdout + stderr]).toEqual([args, 1, expect.stringContaining("damaged")]);
      expect(stdout + stderr).toContain("state rebuild");
    }
    expect(existsSync(site.path("copy.bak"))).toBe(false);
  });
});

describe("verify of many points", () => {
  it("keeps to a schedule and a time, and does not call nothing sound", async () => {
    const site = new Site("incremental: true");
    expect(await site.run("verify")).toMatchObject({ code: 1, stderr: expect.stringContaining("no state file") as string });
    await site.ok("apply", "--auto-approve");
    const between = new Date(Date.now() + 1).toISOString();
    await site.ok("run", "n");
    expect(await site.ok("verify")).toContain("2 restore points verified");
    expect(await site.ok("verify", "--schedule", "n")).toContain("2 restore points verified");
    expect(await site.ok("verify", "--at", between)).toContain("1 restore point verified");
    expect(await site.run("verify", "--schedule", "nope")).toMatchObject({ code: 1, stderr: expect.stringContaining('"nope"') as string });
  });
});

describe("a protected VM that cannot be looked at", () => {
  it("fails what was to export it, by name, also where all of its provider is away", async () => {
    const site = new Site("incremental: true");
    await site.ok("apply", "--auto-approve");
    mkdirSync(site.path("machines/b"));
    writeFileSync(site.path("machines/b/disk.qcow2"), "QFI no more");
    await site.ok("apply", "--auto-approve");
    mkdirSync(site.path("machines/c"));
    writeFileSync(site.path("machines/c/disk.raw"), bytes(MiB, 3));
    await site.ok("apply", "--auto-approve");
    rmSync(site.path("machines/c/disk.raw"));
    writeFileSync(site.path("machines/c/disk.qcow2"), "no image at all");
    const said = /✗ n {2}\/datacenter\/vm\/c could not be looked at, and is not exported: disk.qcow2 holds no qcow2 image/;
    for (const args of [
      ["run", "n"],
      ["apply", "--auto-approve"],
      ["watch", "--once"],
    ])
      expect(await site.run(...args)).toMatchObject({ code: 7, stderr: expect.stringMatching(said) as string });
    const { unseen } = result<{ unseen: object[] }>((await site.run("apply", "--auto-approve", "--json")).stdout);
    expect(unseen).toMatchObject([{ schedule: "n", vmPath: "/datacenter/vm/c" }]);
    expect((await site.run("run", "n", "--vm", "/datacenter/vm/a")).code).toBe(0);
    rmSync(site.path("machines"), { recursive: true });
    expect(await site.run("apply", "--auto-approve")).toMatchObject({
      code: 7,
      stderr: expect.stringContaining("/datacenter/vm/a could not be looked at") as string,
    });
    await site.ok("suspend", "n");
    await site.ok("apply", "--auto-approve");
  });
});

describe("restore --overwrite", () => {
  it("writes nothing into the destination that it reads", async () => {
    const site = new Site("incremental: true");
    await site.ok("apply", "--auto-approve");
    for (const target of ["backups/config", "backups/new.raw", "backups/points/x/y.raw"]) {
      const refused = await site.run("restore", "--vm", "/datacenter/vm/a", "--to", target, "--format", "raw", "--overwrite");
      expect(refused).toMatchObject({ code: 64, stderr: expect.stringContaining("lies in the destination d") as string });
    }
    await site.ok("check", "--read-data");
  });

  it("goes on with a raw file in one process at a time", async () => {
    const site = new Site("incremental: true");
    await site.ok("apply", "--auto-approve");
    const args = ["restore", "--vm", "/datacenter/vm/a", "--to", "x.raw", "--overwrite"];
    const codes = await Promise.all(Array.from({ length: 4 }, async () => (await start(site.folder, args).done).code));
    for (const code of codes) expect([0, 5]).toContain(code);
    expect(codes).toContain(0);
    expect(readFileSync(site.path("x.raw")).equals(readFileSync(site.disk))).toBe(true);
    expect(readdirSync(site.folder).filter((name) => name.endsWith(".partial"))).toEqual([]);
  });
});
