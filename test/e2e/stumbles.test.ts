import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { hypersdk, program, temporaryFolder, workTree } from "../support/cli.ts";
import { smallest } from "../support/desired.ts";
import { bytes, MiB, writeRaw } from "../support/disks.ts";
import { has, sameForQemu } from "../support/qemu.ts";
import { result } from "../support/schemas.ts";

const yaml = smallest.replace("file:///srv/backups", "file:./exports").replace("    vms", "    initialExport: immediate\n    vms");

function tree(text = yaml): string {
  const folder = workTree(text);
  mkdirSync(join(folder, "machines", "web"), { recursive: true });
  writeRaw(join(folder, "machines", "web", "disk.raw"), { sizeBytes: MiB, islands: [{ offset: 0, length: 4096 }] });
  return folder;
}

/** The manifests of all restore points, oldest first: two may be of one second, which is all that a path tells. */
function manifestsOf(folder: string): string[] {
  const exports = join(folder, "exports");
  const instantOf = (path: string): string => (JSON.parse(readFileSync(join(exports, path), "utf8")) as { source: { instant: string } }).source.instant;
  const manifests = readdirSync(exports, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith("manifest.json"));
  return manifests.sort((a, b) => (instantOf(a) < instantOf(b) ? -1 : 1));
}

describe("a repository elsewhere", () => {
  it("may not export into its own checkout, which the next fetch cleans", async () => {
    const folder = tree();
    expect(await hypersdk(temporaryFolder(), ["plan", "--repo", `file://${folder}`])).toMatchObject({
      code: 3,
      stderr: expect.stringContaining("inside the checkout") as string,
    });
  });
});

describe("a repository elsewhere that names a libvirt", () => {
  it.each([
    ["qemu:///system", "/run/libvirt"],
    ["qemu:///session", "/run/user"],
    ["qemu:///session?socket=/srv/evil.sock", "/srv/evil.sock"],
    ["qemu:///session?socket=/run/libvirt/../../srv/evil.sock", "/srv/evil.sock"],
    ["qemu:///session?socket=/run/libvirt/%2e%2e/%2e%2e/srv/evil.sock", "/srv/evil.sock"],
  ])("asks the operator first: %s", async (uri, socket) => {
    const folder = tree(
      yaml.replace(/providers:[\s\S]*?\n(?=\w)/, "").replace("schedules:", `providers: [{name: lab, type: qemu, libvirt: "${uri}"}]\nschedules:`),
    );
    const validate = (...args: string[]): Promise<unknown> => hypersdk(temporaryFolder(), ["validate", "--repo", `file://${folder}`, ...args]);
    const refused = { code: 3, stdout: expect.stringContaining(`the path ${socket} is outside the repository`) as string };
    expect(await validate("--allow-path", "/var")).toMatchObject(refused);
    const allowed = (await validate("--allow-path", socket)) as { stdout: string };
    expect(allowed.stdout).not.toContain(socket);
  });
});

describe("a file of ours with a misspelt version", () => {
  it.each(["version: 2", "verison: v2", "version: v3"])("%s is an error with its place, never somebody else's file", async (line) => {
    const folder = tree(yaml.replace("version: v2", line));
    expect(await hypersdk(folder, ["validate"])).toMatchObject({ code: 3, stdout: expect.stringMatching(/HSE009[\s\S]*infrastructure\.yaml:1/) as string });
  });
});

describe("a destination that is not mounted", () => {
  it.each(["", ", layout: repository"])(
    "loses nothing by an apply: nothing is marked, removed, or written into the empty folder (layout%s)",
    async (layout) => {
      const folder = tree(
        yaml
          .replace("schedules:", `destinations: [{name: backups, url: file:./exports, expiryGrace: 0s${layout}}]\nschedules:`)
          .replace("destination: file:./exports", "destination: backups\n    retention: {keepLast: 1}"),
      );
      const exports = join(folder, "exports");
      expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0 });
      for (let i = 0; i < 2; i++) expect(await hypersdk(folder, ["run", "nightly"])).toMatchObject({ code: 0 });
      renameSync(exports, `${exports}.real`);
      for (const make of [() => {}, () => mkdirSync(exports)]) {
        make();
        const applied = await hypersdk(folder, ["apply", "--auto-approve"]);
        expect(applied).toMatchObject({ code: 0, stdout: expect.stringMatching(/destination\.backups.*is it mounted\?/) as string });
        expect(applied.stdout).toMatch(/2 restore points[^\n]*cannot be looked at: backups is empty/);
        expect(applied.stdout).not.toMatch(/[1-9]\d* (marked|removed|restore points? expire)/);
        expect(applied.stdout).not.toContain("is gone");
        expect(existsSync(exports) ? readdirSync(exports) : []).toEqual([]);
      }
      rmSync(exports, { recursive: true });
      renameSync(`${exports}.real`, exports);
      expect(await hypersdk(folder, ["verify"])).toMatchObject({ code: 0, stdout: expect.stringContaining("3 restore points verified") as string });
      expect((await hypersdk(folder, ["apply", "--auto-approve"])).stdout).toContain("2 restore points marked to expire, 2 removed");
    },
  );
});

describe("an image of its own that is renamed", () => {
  it("goes on under its new name, and is restored under it from points that it had before", async () => {
    const folder = workTree(yaml);
    mkdirSync(join(folder, "machines"));
    const at = (name: string): string => join(folder, "machines", name);
    writeRaw(at("single.raw"), { sizeBytes: MiB, islands: [{ offset: 0, length: 4096 }] });
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0 });
    renameSync(at("single.raw"), at("solo.raw"));
    writeFileSync(join(folder, "infrastructure.yaml"), `${yaml}renames: [{vm: /datacenter/vm/solo, formerly: /datacenter/vm/single}]\n`);
    const applied = await hypersdk(folder, ["apply", "--auto-approve"]);
    expect(applied.stdout).toContain("renamed  nightly  /datacenter/vm/solo  (was /datacenter/vm/single)");
    expect(applied.stdout).not.toMatch(/missing|protects/);
    expect(await hypersdk(folder, ["restore", "--vm", "/datacenter/vm/solo", "--to", "back.raw"])).toMatchObject({ code: 0 });
    expect(readFileSync(join(folder, "back.raw")).equals(readFileSync(at("solo.raw")))).toBe(true);
    expect(await hypersdk(folder, ["run", "nightly"])).toMatchObject({ code: 0 });
    expect((await hypersdk(folder, ["plan"])).stdout).toContain("Nothing");
    // another one under the old name is not what was exported from there
    writeRaw(at("single.raw"), { sizeBytes: MiB, islands: [{ offset: 4096, length: 4096 }] });
    writeFileSync(join(folder, "infrastructure.yaml"), readFileSync(join(folder, "infrastructure.yaml"), "utf8").replace("    initialExport: immediate\n", ""));
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, ["restore", "--vm", "/datacenter/vm/single", "--to", "other.raw"])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("is of /datacenter/vm/solo now") as string,
    });
  });
});

describe("a restore point that is lost at its destination", () => {
  it.each(["gone", "altered"])("%s: no other one goes for its sake, by apply or by expire", async (how) => {
    const files = (retention: string): string =>
      yaml
        .replace("schedules:", "destinations: [{name: backups, url: file:./exports, expiryGrace: 0s}]\nschedules:")
        .replace("destination: file:./exports", `destination: backups\n    retention: ${retention}`);
    const folder = tree(files("{keepLast: 5}"));
    const at = (path: string): string => join(folder, "exports", path);
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0 });
    for (let i = 0; i < 2; i++) expect(await hypersdk(folder, ["run", "nightly"])).toMatchObject({ code: 0 });
    const newest = dirname(manifestsOf(folder).at(-1) as string);
    if (how === "gone") rmSync(at(newest), { recursive: true });
    else truncateSync(join(at(newest), readdirSync(at(newest)).find((file) => file.startsWith("disk-")) as string), 0);
    writeFileSync(join(folder, "infrastructure.yaml"), files("{keepLast: 1}"));
    const left = manifestsOf(folder).length;
    for (const args of [
      ["apply", "--auto-approve"],
      ["apply", "--auto-approve"],
      ["expire", "--auto-approve"],
    ]) {
      const { code, stdout, stderr } = await hypersdk(folder, args);
      expect(code).toBe(0);
      expect(stdout + stderr).toMatch(how === "gone" ? /the last restore point is gone/ : /the files of the last restore point are not what was stored/);
    }
    expect(manifestsOf(folder)).toHaveLength(left);
    // a good one, and the rule holds again
    expect(await hypersdk(folder, ["run", "nightly"])).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0 });
    expect(manifestsOf(folder)).toHaveLength(1);
    expect(await hypersdk(folder, ["verify"])).toMatchObject({ code: 0 });
  });
});

describe("the newest restore point, of which something is damaged or gone that a plan does not see", () => {
  it.each([
    ["its manifest", ""],
    ["its manifest", ", layout: repository"],
    ["a pack", ", layout: repository"],
    ["a segment", ", layout: repository"],
  ])("keeps all others from being removed (%s%s)", async (what, layout) => {
    const files = (retention: string): string =>
      yaml
        .replace("schedules:", `destinations: [{name: backups, url: file:./exports, expiryGrace: 0s${layout}}]\nschedules:`)
        .replace("destination: file:./exports", `destination: backups\n    retention: ${retention}`);
    const folder = tree(files("{keepLast: 5}"));
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0 });
    const of = (kind: string): string[] =>
      existsSync(join(folder, "exports", kind)) ? readdirSync(join(folder, "exports", kind), { recursive: true, encoding: "utf8" }) : [];
    expect(await hypersdk(folder, ["run", "nightly"])).toMatchObject({ code: 0 });
    const before = new Set([...of("packs"), ...of("segments")]);
    writeFileSync(join(folder, "machines/web/disk.raw"), bytes(MiB, 99));
    expect(await hypersdk(folder, ["run", "nightly"])).toMatchObject({ code: 0 });
    const { items } = result<{ items: { instant: string; manifest: string }[] }>((await hypersdk(folder, ["get", "artifacts", "--json"])).stdout);
    const newest = items.toSorted((a, b) => (a.instant < b.instant ? -1 : 1)).at(-1);
    if (what === "its manifest") truncateSync(join(folder, "exports", newest?.manifest ?? ""), 0);
    else {
      const kind = what === "a pack" ? "packs" : "segments";
      const brought = of(kind).find((name) => !before.has(name) && statSync(join(folder, "exports", kind, name)).isFile());
      rmSync(join(folder, "exports", kind, brought ?? "none"));
    }
    writeFileSync(join(folder, "infrastructure.yaml"), files("{keepLast: 1}"));
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 7, stderr: expect.stringContaining("is damaged") as string });
    for (const args of [
      ["apply", "--auto-approve"],
      ["expire", "--auto-approve"],
    ]) {
      const { code, stdout, stderr } = await hypersdk(folder, args);
      expect([code, stdout + stderr]).toEqual([0, expect.stringContaining("the last restore point failed its verification")]);
    }
    expect(items.filter(({ manifest }) => existsSync(join(folder, "exports", manifest)))).toHaveLength(3);
    expect(await hypersdk(folder, ["restore", "--vm", "/datacenter/vm/web", "--to", "back.raw", "--quiet"])).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, ["run", "nightly"])).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0, stdout: expect.stringContaining("removed") as string });
    expect(await hypersdk(folder, ["verify"])).toMatchObject({ code: 0, stdout: expect.stringContaining("1 restore point verified") as string });
  });
});

describe("a destination that has another name in the files", () => {
  it("is found when it moves later, and keeps its time of grace", async () => {
    const files = (name: string, url: string, retention: string): string =>
      yaml
        .replace("schedules:", `destinations: [{name: ${name}, url: "file:${url}", expiryGrace: 30d}]\nschedules:`)
        .replace("destination: file:./exports", `destination: ${name}\n    retention: ${retention}`);
    const folder = tree(files("backups", "./exports", "{keepLast: 5}"));
    const apply = (): Promise<{ code: number | null; stdout: string }> => hypersdk(folder, ["apply", "--auto-approve"]);
    expect(await apply()).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, ["run", "nightly"])).toMatchObject({ code: 0 });
    writeFileSync(join(folder, "infrastructure.yaml"), files("store", "./exports", "{keepLast: 1}"));
    expect(await apply()).toMatchObject({ code: 0, stdout: expect.stringContaining("1 restore point marked to expire") as string });
    const { items } = result<{ items: { expiresAt: string | null }[] }>((await hypersdk(folder, ["get", "artifacts", "--json"])).stdout);
    const days = items.flatMap(({ expiresAt }) => (expiresAt === null ? [] : [Math.round((Date.parse(expiresAt) - Date.now()) / 86_400_000)]));
    expect(days).toEqual([30]);
    renameSync(join(folder, "exports"), join(folder, "elsewhere"));
    writeFileSync(join(folder, "infrastructure.yaml"), files("store", "./elsewhere", "{keepLast: 1}"));
    expect((await hypersdk(folder, ["plan"])).stdout).toMatch(/HSW019 .*2 restore points are at /);
    expect(await apply()).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, ["verify"])).toMatchObject({ code: 0 });
  });
});

describe("two VMs with one path", () => {
  it("leave it to the one that is protected, whatever the providers are called", async () => {
    const providers = (...names: string[]): string =>
      yaml.replace(
        "schedules:",
        `providers:\n${names.map((name) => `  - {name: ${name}, type: local, path: ./${name}, root: /datacenter/vm}\n`).join("")}schedules:`,
      );
    const folder = workTree(providers("middle"));
    for (const [i, name] of ["middle", "after", "before"].entries()) {
      mkdirSync(join(folder, name, "web"), { recursive: true });
      writeRaw(join(folder, name, "web", "disk.raw"), { sizeBytes: MiB, islands: [{ offset: i * 65_536, length: 4096 }] });
    }
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0 });
    writeFileSync(join(folder, "infrastructure.yaml"), providers("after", "before", "middle"));
    const applied = await hypersdk(folder, ["apply", "--auto-approve"]);
    expect(applied.stdout).toMatch(/HSW012 {2}provider\.after: \/datacenter\/vm\/web is also a VM of provider middle: it is not taken twice/);
    expect(applied.stdout).not.toMatch(/VM missing|VM new/);
    expect(await hypersdk(folder, ["run", "nightly"])).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, ["restore", "--vm", "/datacenter/vm/web", "--to", "back.raw", "--quiet"])).toMatchObject({ code: 0 });
    expect(readFileSync(join(folder, "back.raw")).equals(readFileSync(join(folder, "middle/web/disk.raw")))).toBe(true);
  });
});

describe("a work tree that was moved, with its exports", () => {
  it("goes on: its restore points are where they are now, expire there, and a missing one is missed", async () => {
    const named = yaml
      .replace("schedules:", "destinations: [{name: backups, url: file:./exports, expiryGrace: 0s}]\nschedules:")
      .replace("destination: file:./exports", "destination: backups\n    retention: {keepLast: 1}");
    const old = tree(named);
    expect(await hypersdk(old, ["apply", "--auto-approve"])).toMatchObject({ code: 0 });
    expect(await hypersdk(old, ["run", "nightly"])).toMatchObject({ code: 0 });
    const folder = join(temporaryFolder(), "moved");
    renameSync(old, folder);
    expect((await hypersdk(folder, ["plan"])).stdout).toMatch(/HSW019.*2 restore points are at file:.*moved\/exports now/);
    expect(manifestsOf(folder)).toHaveLength(2);
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0 });
    expect(manifestsOf(folder)).toHaveLength(1);
    expect((await hypersdk(folder, ["plan"])).stdout).not.toMatch(/HSW019|drift/);
    rmSync(join(folder, "exports", manifestsOf(folder)[0] as string));
    expect((await hypersdk(folder, ["drift"])).stdout).toContain("is gone");
  });

  it("does not follow a destination that is only named anew: what is at the old place stays, and is nobody's error", async () => {
    const named = yaml
      .replace("schedules:", "destinations: [{name: backups, url: file:./exports, expiryGrace: 0s}]\nschedules:")
      .replace("destination: file:./exports", "destination: backups\n    retention: {keepLast: 1}");
    const folder = tree(named);
    await hypersdk(folder, ["apply", "--auto-approve"]);
    await hypersdk(folder, ["run", "nightly"]);
    writeFileSync(join(folder, "infrastructure.yaml"), named.replace("file:./exports", "file:./elsewhere"));
    const { code, stdout } = await hypersdk(folder, ["apply", "--auto-approve"]);
    expect({ code, stdout }).toEqual({ code: 0, stdout: expect.stringMatching(/no destination of the files has the URL file:.*exports/) as string });
    expect(readdirSync(join(folder, "exports"), { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith("manifest.json"))).toHaveLength(2);
  });
});

describe("verify", () => {
  it("goes on after a missing disk, names it as damage and records it", async () => {
    const folder = tree();
    await hypersdk(folder, ["apply", "--auto-approve"]);
    await hypersdk(folder, ["run", "nightly"]);
    const disk = readdirSync(join(folder, "exports"), { recursive: true, encoding: "utf8" }).find((file) => file.endsWith(".qcow2")) as string;
    rmSync(join(folder, "exports", disk));
    expect(await hypersdk(folder, ["verify"])).toMatchObject({
      code: 11,
      stdout: expect.stringMatching(/^1 of 2 restore points verified \(restore\), 1 damaged/m) as string,
    });
    expect((await hypersdk(folder, ["status"])).stdout).toContain("1 damaged");
  });

  it("finds restore points again after the work tree was moved", async () => {
    const folder = tree();
    await hypersdk(folder, ["apply", "--auto-approve"]);
    const moved = `${folder}-moved`;
    renameSync(folder, moved);
    try {
      expect(await hypersdk(moved, ["verify"])).toMatchObject({ code: 0, stdout: expect.stringContaining("0 damaged") as string });
    } finally {
      renameSync(moved, folder);
    }
  });
});

describe("apply", () => {
  it("--auto-approve=safe lets a retention that was applied before do its work", async () => {
    const folder = tree(`${yaml}    retention: {keepLast: 1}\n`);
    await hypersdk(folder, ["apply", "--auto-approve"]);
    await hypersdk(folder, ["run", "nightly"]);
    expect(await hypersdk(folder, ["apply", "--auto-approve=safe"])).toMatchObject({
      code: 0,
      stdout: expect.stringContaining("1 restore point marked to expire") as string,
    });
    writeFileSync(join(folder, "infrastructure.yaml"), readFileSync(join(folder, "infrastructure.yaml"), "utf8").replace("nightly", "other"));
    expect(await hypersdk(folder, ["apply", "--auto-approve=safe"])).toMatchObject({
      code: 8,
      stderr: expect.stringContaining("removes schedule.nightly") as string,
    });
  });

  it("--adopt takes a destination over for good, and says what stays behind", async () => {
    const folder = tree();
    await hypersdk(folder, ["apply", "--auto-approve"]);
    rmSync(join(folder, ".hypersdk"), { recursive: true });
    expect(await hypersdk(folder, ["apply", "--auto-approve", "--adopt", "--no-exports"])).toMatchObject({
      code: 0,
      stderr: expect.stringContaining("1 restore points of the other one stay there") as string,
    });
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0 });
  });

  it("says when the first export comes", async () => {
    const folder = tree(yaml.replace("    initialExport: immediate\n", ""));
    expect((await hypersdk(folder, ["apply", "--auto-approve"])).stdout).toMatch(/The first export comes .* 02:00 UTC; `hypersdk run nightly` exports now/);
    // of several the earliest, whatever they are called
    const two = tree(
      'version: v2\nschedules:\n  - {name: a, cron: "0 0 1 1 *", vms: ["/datacenter/vm/*"], destination: "file:./a"}\n  - {name: b, cron: "0 * * * *", vms: ["/datacenter/vm/*"], destination: "file:./b"}\n',
    );
    expect((await hypersdk(two, ["apply", "--auto-approve"])).stdout).toMatch(/The first export comes .*; `hypersdk run b` exports now/);
  });

  it("refuses a target that names nothing", async () => {
    expect(await hypersdk(tree(), ["plan", "--target", "schedule.nigthly"])).toMatchObject({
      code: 64,
      stderr: expect.stringContaining("did you mean schedule.nightly?") as string,
    });
  });
});

describe("a protection whose only restore point is damaged", () => {
  it("is overdue although its last run succeeded", async () => {
    const folder = tree(`${yaml}    rpo: 1s\n`);
    await hypersdk(folder, ["apply", "--auto-approve"]);
    await new Promise((resolve) => setTimeout(resolve, 1500));
    expect(await hypersdk(folder, ["drift"])).toMatchObject({ code: 2, stdout: expect.stringContaining("overdue") as string });
  });
});

describe("validate", () => {
  it("tells of what is wrong in one entry and in the others at once", async () => {
    const folder = tree(
      `${yaml}    priority: hihg\n  - {name: other, cron: "0 0 31 2 *", vms: [/x], destination: ./exports}\npolicies:\n  - {name: p, match: /x, schedule: nightly}\n`,
    );
    const { stdout } = await hypersdk(folder, ["validate"]);
    expect(["HSE009", "HSE015", "HSE012"].filter((code) => stdout.includes(code))).toHaveLength(3);
    expect(stdout).toContain('did you mean "file:./exports"?');
    expect(stdout).toContain("3 errors");
  });
});

describe("a group of commands", () => {
  it("without a command shows its help", async () => {
    expect(await hypersdk(temporaryFolder(), ["state"])).toMatchObject({ code: 64, stderr: expect.stringContaining("Usage: hypersdk state") as string });
  });
});

describe("renames", () => {
  it("export the machine of today under the history of yesterday, also when two swap their names", async () => {
    const folder = tree();
    mkdirSync(join(folder, "machines", "db"));
    writeRaw(join(folder, "machines", "db", "disk.raw"), { sizeBytes: MiB, islands: [{ offset: 0, length: 8192 }] }, 99);
    await hypersdk(folder, ["apply", "--auto-approve"]);
    renameSync(join(folder, "machines", "web"), join(folder, "machines", "x"));
    renameSync(join(folder, "machines", "db"), join(folder, "machines", "web"));
    renameSync(join(folder, "machines", "x"), join(folder, "machines", "db"));
    writeFileSync(
      join(folder, "infrastructure.yaml"),
      `${yaml}renames:\n  - {vm: /datacenter/vm/web, formerly: /datacenter/vm/db}\n  - {vm: /datacenter/vm/db, formerly: /datacenter/vm/web}\n`,
    );
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0 });
    execFileSync("sqlite3", [join(folder, ".hypersdk/state.db"), "UPDATE protections SET effective_since = '2026-01-01T00:00:00.000Z', handled_until = NULL"]);
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({
      code: 0,
      stdout: expect.stringContaining("2 exports completed, 0 failed") as string,
    });
    for (const vm of ["web", "db"]) {
      await hypersdk(folder, ["restore", "--vm", `/datacenter/vm/${vm}`, "--to", `${vm}.raw`]);
      expect(readFileSync(join(folder, `${vm}.raw`)).equals(readFileSync(join(folder, "machines", vm, "disk.raw"))), vm).toBe(true);
    }
  });
});

describe("an export", () => {
  it("of a first apply that was told not to export comes with the next", async () => {
    const folder = tree();
    await hypersdk(folder, ["apply", "--auto-approve", "--no-exports"]);
    expect((await hypersdk(folder, ["apply", "--auto-approve"])).stdout).toContain("1 export completed");
  });

  it("that waited while its schedule was given another destination is recorded where it is", async () => {
    const folder = tree();
    await hypersdk(folder, ["apply", "--auto-approve", "--no-exports"]);
    writeFileSync(join(folder, "infrastructure.yaml"), readFileSync(join(folder, "infrastructure.yaml"), "utf8").replace("file:./exports", "file:./elsewhere"));
    expect((await hypersdk(folder, ["apply", "--auto-approve"])).stdout).toContain("1 export completed");
    expect(existsSync(join(folder, "exports"))).toBe(false);
    expect(await hypersdk(folder, ["verify"])).toMatchObject({ code: 0, stdout: expect.stringContaining("1 restore point verified") as string });
    expect(await hypersdk(folder, ["restore", "--vm", "/datacenter/vm/web", "--to", "web.raw"])).toMatchObject({ code: 0 });
  });

  it("that was published before a kill stays, although its schedule is gone since", async () => {
    const folder = tree();
    await hypersdk(folder, ["apply", "--auto-approve"]);
    execFileSync("sqlite3", [join(folder, ".hypersdk/state.db"), "UPDATE runs SET state = 'verifying', ended_at = NULL"]);
    writeFileSync(join(folder, "infrastructure.yaml"), yaml.replace("nightly", "other").replace("    initialExport: immediate\n", ""));
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, ["verify"])).toMatchObject({ code: 0, stdout: expect.stringContaining("1 restore point verified") as string });
  });

  it("of a raw disk that ends between two sectors keeps its tail, for us and for qemu", async () => {
    const folder = tree();
    writeFileSync(join(folder, "machines", "web", "disk.raw"), Buffer.alloc(1_000_100, 7));
    await hypersdk(folder, ["apply", "--auto-approve"]);
    await hypersdk(folder, ["restore", "--vm", "/datacenter/vm/web", "--to", "web.raw"]);
    expect(readFileSync(join(folder, "web.raw")).equals(readFileSync(join(folder, "machines", "web", "disk.raw")))).toBe(true);
    const stored = readdirSync(join(folder, "exports"), { recursive: true, encoding: "utf8" }).find((file) => file.endsWith(".qcow2")) as string;
    if (has("qemu-img")) sameForQemu(join(folder, "exports", stored), "qcow2", join(folder, "machines", "web", "disk.raw"), "raw");
  });

  it("of a machine whose path is longer than a file name works", async () => {
    const folder = tree();
    const deep = join(folder, "machines", ...Array.from({ length: 7 }, (_, i) => `${"ü".repeat(20)}${i}`));
    mkdirSync(deep, { recursive: true });
    writeRaw(join(deep, "disk.raw"), { sizeBytes: MiB, islands: [] });
    expect((await hypersdk(folder, ["apply", "--auto-approve"])).stdout).toContain("2 exports completed, 0 failed");
  });
});

describe("a saved plan", () => {
  it("is never exceeded: what it leaves out is not applied", async () => {
    const folder = tree();
    await hypersdk(folder, ["plan", "--target", "provider.local", "--out", "plan.json"]);
    expect(await hypersdk(folder, ["apply", "plan.json"])).toMatchObject({ code: 0, stdout: expect.stringContaining("Applied: 1 change.") as string });
    expect((await hypersdk(folder, ["state", "list"])).stdout).toBe("provider.local\n");
    expect(await hypersdk(folder, ["get", "artifacts"])).toMatchObject({ stdout: "no artifacts\n" });
  });
});

describe("a destination's marker", () => {
  it("that an earlier full disk left empty does not lock the destination", async () => {
    const folder = tree();
    mkdirSync(join(folder, "exports"));
    writeFileSync(join(folder, "exports", "hypersdk-destination.json"), "");
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0, stdout: expect.stringContaining("1 export completed") as string });
  });
});

describe("a destination's damaged marker", () => {
  it.each(["", ", layout: repository"])("is told of as such, and written anew by --adopt with the layout that is there (layout%s)", async (layout) => {
    const folder = tree(
      yaml
        .replace("schedules:", `destinations: [{name: backups, url: file:./exports${layout}}]\nschedules:`)
        .replace("destination: file:./exports", "destination: backups"),
    );
    await hypersdk(folder, ["apply", "--auto-approve"]);
    const marker = join(folder, "exports", "hypersdk-destination.json");
    const whole = readFileSync(marker, "utf8");
    writeFileSync(marker, whole.replace('"formatVersion"', '"formatVarsion"'));
    expect(await hypersdk(folder, ["run", "nightly"])).toMatchObject({ code: 7, stderr: expect.stringContaining("is damaged") as string });
    expect(await hypersdk(folder, ["run", "nightly", "--adopt"])).toMatchObject({ code: 0, stdout: expect.stringContaining("1 export completed") as string });
    const { lineage, layout: kept } = JSON.parse(whole) as { lineage: string; layout: string };
    expect(JSON.parse(readFileSync(marker, "utf8"))).toMatchObject({ formatVersion: 1, lineage, layout: kept });
    expect((await hypersdk(folder, ["verify"])).code).toBe(0);
    // one that no longer fits, and another layout in the files: what lies there has the say
    writeFileSync(marker, Buffer.alloc(70_000));
    const other = layout === "" ? "repository" : "image";
    const file = join(folder, "infrastructure.yaml");
    writeFileSync(file, readFileSync(file, "utf8").replace(layout, "").replace("file:./exports", `file:./exports, layout: ${other}`));
    await hypersdk(folder, ["apply", "--auto-approve"]);
    expect(await hypersdk(folder, ["run", "nightly", "--adopt"])).toMatchObject({ code: 7, stderr: expect.stringContaining("holds the layout") as string });
    expect(JSON.parse(readFileSync(marker, "utf8"))).toMatchObject({ layout: kept });
  });
});

describe("a secret in plain text", () => {
  it("is refused without being shown", async () => {
    const folder = tree(`${yaml}notifiers:\n  - {name: n, type: slack, token: xoxb-hunter2}\n`);
    for (const args of [["validate"], ["plan"], ["validate", "--json"]]) {
      const { stdout, stderr, code } = await hypersdk(folder, args);
      expect(code).toBe(3);
      expect(stdout + stderr).toContain("HSE019");
      expect(stdout + stderr).not.toContain("hunter2");
    }
  });
});

describe("the rest that a tester found", () => {
  it("ends with clear errors, never as a bug", async () => {
    const folder = tree();
    writeFileSync(join(folder, "empty.db"), "");
    expect(await hypersdk(folder, ["status", "--state", "empty.db"])).toMatchObject({ code: 0 });
    await hypersdk(folder, ["apply", "--auto-approve", "--no-exports"]);
    expect(await hypersdk(folder, ["state", "backup", "/nonexistent/b.db"])).toMatchObject({ code: 1 });
    expect(await hypersdk(folder, ["plan", "--at", "0001-01-01T00:00:00Z"])).toMatchObject({ code: 64 });
    expect(await hypersdk(folder, ["plan"], { GITHUB_ACTIONS: "true", GITHUB_STEP_SUMMARY: "/nonexistent/x" })).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, ["apply", "--auto-approve", "--events", "/dev/full"])).toMatchObject({
      code: 0,
      stdout: expect.stringContaining("1 export completed") as string,
    });
    expect(await hypersdk(folder, ["list"], { HYPERSDK_ARGS: "--quiet" })).toMatchObject({ code: 64 });
    // help of all commands tells of the options of all
    expect(await hypersdk(folder, ["bogus", "plan"], { HYPERSDK_ARGS: "--help" })).toMatchObject({
      code: 0,
      stdout: expect.stringContaining("init [options]") as string,
    });
    expect(await hypersdk(folder, ["state", "list"], { HYPERSDK_ARGS: "--quiet" })).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, ["key", "list"], { HYPERSDK_ARGS: "--state other.db" })).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("repository"),
    });
  });

  it("reads the whole repository for --path .", async () => {
    const folder = tree(yaml.replace("file:./exports", "file:///tmp/never-used"));
    expect((await hypersdk(temporaryFolder(), ["validate", "--repo", `file://${folder}`, "--path", ".", "--allow-path", "/tmp/never-used"])).stdout).toContain(
      "1 schedule",
    );
  });
});

describe("a restore point whose removal was cut off", () => {
  it("is no damage to verify, where one that nobody let go is", async () => {
    const folder = tree(yaml.replace("destination: file:./exports", "destination: file:./exports\n    retention: {keepLast: 1}"));
    await hypersdk(folder, ["apply", "--auto-approve"]);
    await hypersdk(folder, ["run", "nightly"]);
    await hypersdk(folder, ["apply", "--auto-approve"]);
    const [first, last] = manifestsOf(folder) as [string, string];
    rmSync(join(folder, "exports", first));
    // within its time of grace nothing removes it
    expect(await hypersdk(folder, ["verify"])).toMatchObject({ code: 11, stdout: expect.stringContaining("is gone") as string });
    execFileSync("sqlite3", [
      join(folder, ".hypersdk", "state.db"),
      "UPDATE artifacts SET expires_at = '2026-01-01T00:00:00.000Z' WHERE expires_at IS NOT NULL",
    ]);
    expect(await hypersdk(folder, ["verify"])).toMatchObject({ code: 0, stdout: expect.stringContaining("its removal was cut off") as string });
    const { removed, points } = JSON.parse((await hypersdk(folder, ["verify", "--json"])).stdout) as { removed: object[]; points: object[] };
    expect([removed.length, points.length]).toEqual([1, 1]);
    rmSync(join(folder, "exports", last));
    expect(await hypersdk(folder, ["verify"])).toMatchObject({ code: 11, stdout: expect.stringContaining("is gone") as string });
  });

  it("is damage where the manifest is there, and what it names is not", async () => {
    const folder = tree(yaml.replace("destination: file:./exports", "destination: file:./exports\n    retention: {keepLast: 1}"));
    await hypersdk(folder, ["apply", "--auto-approve"]);
    await hypersdk(folder, ["run", "nightly"]);
    await hypersdk(folder, ["apply", "--auto-approve"]);
    execFileSync("sqlite3", [
      join(folder, ".hypersdk", "state.db"),
      "UPDATE artifacts SET expires_at = '2026-01-01T00:00:00.000Z' WHERE expires_at IS NOT NULL",
    ]);
    const [oldest] = manifestsOf(folder) as [string, string];
    const at = join(folder, "exports", dirname(oldest));
    rmSync(join(at, readdirSync(at).find((file) => file.startsWith("disk-")) as string));
    expect(await hypersdk(folder, ["verify"])).toMatchObject({ code: 11, stdout: expect.stringContaining("1 damaged") as string });
  });
});

describe("a slip of the hand", () => {
  it("costs no file that another program made: --out, --markdown and --events replace only their own", async () => {
    const folder = tree();
    const disk = join("machines", "web", "disk.raw");
    const content = readFileSync(join(folder, disk));
    for (const args of [
      ["plan", "--out", disk],
      ["plan", "--markdown", "infrastructure.yaml"],
      ["apply", "--auto-approve", "--events", disk],
      ["plan", "--out", "p.json", "--markdown", "./p.json"],
    ])
      expect(await hypersdk(folder, args)).toMatchObject({ code: 64, stderr: expect.stringMatching(/is there, and was not made by|are both/) as string });
    expect(readFileSync(join(folder, disk)).equals(content)).toBe(true);
    for (let i = 0; i < 2; i++) {
      expect((await hypersdk(folder, ["plan", "--out", "p.json", "--markdown", "p.md"])).code).toBe(0);
      expect((await hypersdk(folder, ["apply", "--auto-approve", "--events", "e.jsonl"])).code).toBe(0);
    }
  });

  it("saves no plan of another time: apply would carry out something else", async () => {
    expect(await hypersdk(tree(), ["plan", "--at", "2026-12-01T00:00:00Z", "--out", "p.json"])).toMatchObject({
      code: 64,
      stderr: expect.stringContaining("another time") as string,
    });
  });
});

describe("a saved plan whose machine is gone since", () => {
  it("exports the others, names it, and fails", async () => {
    const folder = tree();
    mkdirSync(join(folder, "machines", "db"));
    writeRaw(join(folder, "machines", "db", "disk.raw"), { sizeBytes: MiB, islands: [{ offset: 0, length: 4096 }] });
    await hypersdk(folder, ["plan", "--out", "p.json"]);
    renameSync(join(folder, "machines", "db"), join(folder, "gone"));
    expect(await hypersdk(folder, ["apply", "p.json"])).toMatchObject({
      code: 7,
      stdout: expect.stringContaining("1 export completed") as string,
      stderr: expect.stringContaining("/datacenter/vm/db could not be looked at, and is not exported: the plan had it") as string,
    });
  });

  it("calls nothing gone that is there, and was exported or put off meanwhile", async () => {
    const folder = tree();
    await hypersdk(folder, ["apply", "--auto-approve", "--no-exports"]);
    await hypersdk(folder, ["plan", "--out", "p.json"]);
    expect((await hypersdk(folder, ["watch", "--once"])).code).toBe(0);
    for (let i = 0; i < 2; i++) expect(await hypersdk(folder, ["apply", "p.json"])).toMatchObject({ code: 0, stderr: "" });
  });
});

describe("a protected machine that is gone", () => {
  it("is named by run and by status", async () => {
    const folder = tree();
    mkdirSync(join(folder, "machines", "db"));
    writeRaw(join(folder, "machines", "db", "disk.raw"), { sizeBytes: MiB, islands: [{ offset: 0, length: 4096 }] });
    await hypersdk(folder, ["apply", "--auto-approve"]);
    renameSync(join(folder, "machines", "db"), join(folder, "gone"));
    expect(await hypersdk(folder, ["run", "nightly"])).toMatchObject({
      code: 0,
      stderr: expect.stringContaining("warning: /datacenter/vm/db is protected and missing: provider local does not show it") as string,
    });
    expect(await hypersdk(folder, ["run", "nightly", "--vm", "/datacenter/vm/db"])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("/datacenter/vm/db is protected and missing") as string,
    });
    await hypersdk(folder, ["apply", "--auto-approve"]);
    expect((await hypersdk(folder, ["status"])).stdout).toContain("1 missing: /datacenter/vm/db");
    // one that cannot be looked at is unknown, and nobody calls it missing
    renameSync(join(folder, "machines"), join(folder, "away"));
    expect((await hypersdk(folder, ["run", "nightly"])).stderr).not.toContain("and missing");
  });
});

describe("an export that failed", () => {
  it("is named by status and by plan until one is made", async () => {
    const folder = tree();
    const disk = join(folder, "machines", "web", "disk.qcow2");
    rmSync(join(folder, "machines", "web", "disk.raw"));
    execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", disk, "1M"]);
    execFileSync("qemu-io", ["-f", "qcow2", "-c", "write 0 64k", disk], { stdio: "ignore" });
    const whole = readFileSync(disk);
    truncateSync(disk, whole.length - 40_000);
    expect((await hypersdk(folder, ["apply", "--auto-approve"])).code).toBe(7);
    const failing = async (): Promise<object[]> => result<{ failing: object[] }>((await hypersdk(folder, ["status", "--json"])).stdout).failing;
    expect(await failing()).toMatchObject([{ schedule: "nightly", vm: "/datacenter/vm/web", error: expect.any(String) as string }]);
    expect((await hypersdk(folder, ["status"])).stdout).toMatch(/failed, and not made since\n.*✗ nightly {2}\/datacenter\/vm\/web/);
    expect((await hypersdk(folder, ["plan"])).stderr).toContain("the last export of /datacenter/vm/web failed: hypersdk status");
    writeFileSync(disk, whole);
    expect((await hypersdk(folder, ["run", "nightly"])).code).toBe(0);
    expect(await failing()).toEqual([]);
    expect((await hypersdk(folder, ["plan"])).stderr).toBe("");
  });
});

describe("a state with a page that is damaged", () => {
  it("is named as such by every command, wherever it is read", async () => {
    const folder = tree();
    await hypersdk(folder, ["apply", "--auto-approve"]);
    const state = join(folder, ".hypersdk", "state.db");
    const whole = readFileSync(state);
    for (let page = 2; page * 4096 < whole.length; page++) {
      const damaged = Buffer.from(whole);
      damaged.fill(0xa5, page * 4096, page * 4096 + 4096);
      writeFileSync(state, damaged);
      for (const args of [["plan"], ["apply", "--auto-approve"], ["run", "nightly"], ["verify"], ["status"], ["suspend", "nightly"]]) {
        const { code, stderr } = await hypersdk(folder, args);
        expect([page, args, code, stderr]).toEqual([page, args, expect.not.toSatisfy((each) => each === 70), expect.not.stringContaining("bug")]);
      }
      for (const name of ["state.db-wal", "state.db-shm"]) rmSync(join(folder, ".hypersdk", name), { force: true });
    }
  });
});

describe("a current folder that is removed", () => {
  it("is told of in one line", () => {
    const gone = join(temporaryFolder(), "gone");
    mkdirSync(gone);
    const script = 'rmdir "$PWD" && exec "$1" "$2" "$3"';
    const run = (command: string) => spawnSync("bash", ["-c", script, "bash", process.execPath, program, command], { cwd: gone, encoding: "utf8" });
    expect(run("plan")).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(/^error: the current folder is not there any more\n +change to another/) as string,
    });
    mkdirSync(gone);
    expect(run("version")).toMatchObject({ status: 0, stderr: "" });
  });
});

describe("a state in which a value is not what was written", () => {
  it.each([
    ["spec of resources", "UPDATE resources SET spec = replace(spec, '\"cron\":', '\"cron\"z') WHERE address LIKE 'schedule.%'", "plan"],
    ["spec of resources", "UPDATE resources SET spec = replace(spec, '\"cron\":', '\"aron\":') WHERE address LIKE 'schedule.%'", "status"],
    ["spec of resources", "UPDATE resources SET spec = replace(spec, '0 2 *', '0 x *') WHERE address LIKE 'schedule.%'", "status"],
    ["spec of resources", "UPDATE resources SET spec = '[]' WHERE address LIKE 'schedule.%'", "plan"],
    ["instant of artifacts", "UPDATE artifacts SET instant = replace(instant, 'T', 'D')", "apply"],
    ["value of meta", "UPDATE meta SET value = 'x' || value WHERE key = 'applied_revision'", "status"],
    ["detail of events", "UPDATE events SET detail = 'x' || detail WHERE seq = 2", "history"],
  ])("is damaged, and no bug of the program: %s", async (place, sql, command) => {
    const folder = tree();
    await hypersdk(folder, ["apply", "--auto-approve"]);
    await hypersdk(folder, ["run", "nightly"]);
    await hypersdk(folder, ["apply", "--auto-approve"]);
    execFileSync("sqlite3", [join(folder, ".hypersdk", "state.db"), sql]);
    const seen = await hypersdk(folder, [command, ...(command === "apply" ? ["--auto-approve"] : [])]);
    expect(seen).toMatchObject({ code: 1, stderr: expect.stringContaining(`is damaged or no state file: ${place} is not what was written`) as string });
    expect(seen.stderr).toContain("state rebuild");
    // who only looks says the same, and a copy of it replaces no sound one
    expect((await hypersdk(folder, ["doctor"])).stdout).toContain(`${place} is not what was written`);
    expect(await hypersdk(folder, ["state", "backup", "copy.db"])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining(`${place} is not what was written`) as string,
    });
    expect(existsSync(join(folder, "copy.db"))).toBe(false);
  });
});

describe("events on a pipe whose reader takes his time", () => {
  it("arrive, all of them", async () => {
    const folder = tree();
    for (let i = 0; i < 60; i++) {
      mkdirSync(join(folder, "machines", `vm-${i}`));
      writeRaw(join(folder, "machines", `vm-${i}`, "disk.raw"), { sizeBytes: MiB / 16, islands: [{ offset: 0, length: 4096 }] });
    }
    // bash waits for a process substitution that it is told to wait for
    const script = `exec 3> >(sleep 3; cat > events); "$1" "$2" apply --auto-approve --quiet --events - 2>&3; code=$?; exec 3>&-; wait $!; exit $code`;
    execFileSync("bash", ["-c", script, "bash", process.execPath, program], { cwd: folder, env: { ...process.env, HOME: folder }, stdio: "ignore" });
    const events = readFileSync(join(folder, "events"), "utf8").trim().split("\n");
    expect(events.filter((line) => line.includes('"export_completed"')).length).toBe(61);
    expect(events.filter((line) => line.startsWith("{")).every((line) => JSON.parse(line))).toBe(true);
  });
});

describe("a git that shows signatures with every commit", () => {
  it("spoils no author", async () => {
    const folder = tree();
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", join(folder, "key")]);

    const as = ["-c", "user.name=t", "-c", "user.email=t@e", "-c", "gpg.format=ssh", "-c", `user.signingkey=${join(folder, "key")}`];
    execFileSync("git", [...as, "commit", "--quiet", "--allow-empty", "-S", "-m", "signed"], { cwd: folder });
    execFileSync("git", ["config", "log.showSignature", "true"], { cwd: folder });
    const { plan } = result<{ plan: { revision: { author: string } } }>((await hypersdk(folder, ["plan", "--json"])).stdout);
    expect(plan.revision.author).toBe("t <t@e>");
  });
});
