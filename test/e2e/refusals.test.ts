import { execFileSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { makeMachines } from "../../examples/quickstart/make-machines.ts";
import { commit, git, hypersdk, temporaryFolder, workTree } from "../support/cli.ts";
import { smallest } from "../support/desired.ts";
import { MiB, writeRaw } from "../support/disks.ts";
import { result } from "../support/schemas.ts";

const local = smallest.replace("file:///srv/backups", "file:./exports").replace("    vms", "    initialExport: immediate\n    retry: {attempts: 0}\n    vms");
const machine = (folder: string, name = "web"): void => {
  mkdirSync(join(folder, "machines", name), { recursive: true });
  writeRaw(join(folder, "machines", name, "disk.raw"), { sizeBytes: 4 * MiB, islands: [{ offset: 0, length: MiB }] });
};

describe("bad input", () => {
  it.each([
    ["unknown command", ["plant"], 64, "unknown command"],
    ["unknown option", ["plan", "--frobnicate"], 64, "unknown option"],
    ["a time that is none", ["plan", "--at", "tomorrow"], 64, "is no time"],
    ["a target that is none", ["plan", "--target", "x y"], 64, "is no target"],
    ["a plan file that is not there", ["apply", "none.json"], 1, "cannot read none.json"],
    ["a schedule that is not there", ["run", "nigthly"], 1, 'did you mean "nightly"'],
    ["an image that is not there", ["image", "info", "none.qcow2"], 1, "there is no such file"],
    ["a folder as image", ["image", "info", "."], 1, "not a regular file"],
    ["an output of no known format", ["convert", "infrastructure.yaml", "x.bin"], 64, "does not say which format"],
    ["-f of what is not there", ["plan", "-f", "none.yaml"], 10, "none.yaml is not there"],
    ["a repository that is none", ["plan", "--repo", "file:///nowhere/at/all"], 10, "cannot fetch"],
    ["a repository URL that is an option", ["plan", "--repo=--upload-pack=touch x"], 10, "is no repository"],
    ["a repository URL of another transport", ["plan", "--repo", "ext::sh -c whoami"], 10, "is no repository"],
    ["approval that nobody can give", ["apply"], 8, "nobody can answer"],
  ])("%s: exit code and message", async (_, args, code, message) => {
    const folder = workTree(local);
    machine(folder);
    const ran = await hypersdk(folder, args);
    expect(ran).toMatchObject({ code, stderr: expect.stringContaining(message) as string });
    expect(ran.stderr).not.toContain("    at ");
  });

  it("in usage is one JSON document with --json", async () => {
    const ran = await hypersdk(workTree(local), ["plan", "--json", "--frobnicate"]);
    expect(ran.code).toBe(64);
    expect(result(ran.stdout)).toMatchObject({ type: "error", code: "Usage", message: expect.stringContaining("--frobnicate") as string });
  });

  it("outside of any work tree says what to do", async () => {
    expect(await hypersdk(temporaryFolder(), ["plan"])).toMatchObject({ code: 10, stderr: expect.stringContaining("hypersdk init") as string });
  });

  it("as JSON is one document with code and diagnostics", async () => {
    const folder = workTree(local.replace("cron", "corn"));
    const ran = await hypersdk(folder, ["plan", "--json"]);
    expect(ran.code).toBe(3);
    expect(result(ran.stdout)).toMatchObject({ type: "error", code: "ConfigInvalid", diagnostics: [{ code: "HSE007" }, { code: "HSE006" }] });
  });

  it("a field that does not work yet is a warning in validate and exit 3, by name, in plan and apply", async () => {
    const folder = workTree(`${local}    carbon: {zone: DE, maxIntensity: 200, maxDelay: 4h}\n`);
    expect(await hypersdk(folder, ["validate"])).toMatchObject({ code: 0, stdout: expect.stringContaining('"carbon" is not available yet') as string });
    for (const command of [["plan"], ["apply", "--auto-approve"]])
      expect(await hypersdk(folder, command)).toMatchObject({ code: 3, stderr: expect.stringContaining('"carbon" is not available yet') as string });
    expect(existsSync(join(folder, ".hypersdk"))).toBe(false);
  });
});

describe("a saved plan", () => {
  it("is not taken for the value of --auto-approve", async () => {
    const folder = workTree(local);
    machine(folder);
    await hypersdk(folder, ["plan", "-o", "saved.json"]);
    expect(await hypersdk(folder, ["apply", "--auto-approve", "saved.json"])).toMatchObject({
      code: 0,
      stdout: expect.stringContaining("1 export completed") as string,
    });
  });

  it("is carried out when nothing moved, and refused with what moved otherwise", async () => {
    const folder = workTree(local);
    machine(folder);
    await hypersdk(folder, ["plan", "--out", "plan.json"]);
    expect((await hypersdk(folder, ["show", "plan.json"])).stdout).toContain("+ schedule.nightly");
    writeFileSync(join(folder, "infrastructure.yaml"), local.replace("0 2", "0 3"));
    expect(await hypersdk(folder, ["apply", "plan.json"])).toMatchObject({
      code: 6,
      stderr: expect.stringContaining("the files say something else now") as string,
    });
    writeFileSync(join(folder, "infrastructure.yaml"), local);
    expect(await hypersdk(folder, ["apply", "plan.json"])).toMatchObject({ code: 0, stdout: expect.stringContaining("1 export completed") as string });
    expect(await hypersdk(folder, ["apply", "plan.json"])).toMatchObject({ code: 6, stderr: expect.stringContaining("another state") as string });
  });

  it("is in the history when it is refused, whoever refuses it", async () => {
    const folder = workTree(local);
    machine(folder);
    await hypersdk(folder, ["plan", "--out", "plan.json"]);
    writeFileSync(join(folder, "forged.json"), readFileSync(join(folder, "plan.json"), "utf8").replace("0 2 * * *", "1 2 * * *"));
    writeFileSync(join(folder, "infrastructure.yaml"), local.replace("0 2", "0 3"));
    const codes = [];
    for (const args of [["plan.json"], ["forged.json"], []]) codes.push((await hypersdk(folder, ["apply", ...args])).code);
    expect(codes).toEqual([6, 1, 8]);
    const { events } = result<{ events: { type: string; detail: { code?: string } }[] }>((await hypersdk(folder, ["history", "--json"])).stdout);
    expect(
      events
        .filter(({ type }) => type === "plan.refused")
        .map(({ detail }) => detail.code)
        .sort(),
    ).toEqual(["Declined", "PlanInvalid", "PlanStale"]);
    expect(await hypersdk(folder, ["audit", "verify"])).toMatchObject({ code: 0 });
  });

  it("that was edited by hand is refused", async () => {
    const folder = workTree(local);
    machine(folder);
    await hypersdk(folder, ["plan", "--out", "plan.json"]);
    const text = readFileSync(join(folder, "plan.json"), "utf8");
    writeFileSync(join(folder, "edited.json"), text.replace('"priority": 50', '"priority": 99'));
    expect(await hypersdk(folder, ["apply", "edited.json"])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("changed after it was written") as string,
    });
    writeFileSync(join(folder, "cut.json"), text.slice(0, 500));
    expect(await hypersdk(folder, ["show", "cut.json"])).toMatchObject({ code: 1, stderr: expect.stringContaining("is no JSON") as string });
  });
});

describe("a state in a folder that cannot be written", () => {
  it.skipIf(process.getuid?.() !== 0)("is read, and refused where something must be recorded", async () => {
    const folder = workTree(local);
    machine(folder);
    mkdirSync(join(folder, "medium"));
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=20m", "tmpfs", join(folder, "medium")]);
    onTestFinished(() => void execFileSync("umount", [join(folder, "medium")]));
    const state = ["--state", "medium/state.db"];
    expect(await hypersdk(folder, ["apply", "--auto-approve", ...state])).toMatchObject({ code: 0 });
    execFileSync("mount", ["-o", "remount,ro", join(folder, "medium")]);
    expect(await hypersdk(folder, ["plan", ...state])).toMatchObject({ code: 0, stdout: expect.stringContaining("Nothing to do") as string });
    expect(await hypersdk(folder, ["status", ...state])).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, ["suspend", "nightly", ...state])).toMatchObject({ code: 1, stderr: expect.stringContaining("state.db") as string });
  });
});

describe("a repository that several read at once", () => {
  it("gives each a whole revision, and a killed git stops nobody", async () => {
    const origin = workTree(local.replace("file:./exports", `file://${temporaryFolder()}`));
    const home = temporaryFolder();
    const plan = () => hypersdk(home, ["plan", "--repo", `file://${origin}`, "--path", ".", "--allow-path", "/"], { XDG_STATE_HOME: home });
    for (const { code, stderr } of await Promise.all([plan(), plan(), plan(), plan()])) expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const [checkout] = readdirSync(join(home, "hypersdk")).map((id) => join(home, "hypersdk", id, "checkout"));
    for (const name of ["index.lock", "shallow.lock"]) writeFileSync(join(checkout as string, ".git", name), "");
    expect(await plan()).toMatchObject({ code: 0 });
  });
});

describe("a destination", () => {
  it("that belongs to another state is not written to unless it is adopted", async () => {
    const folder = workTree(local);
    machine(folder);
    await hypersdk(folder, ["apply", "--auto-approve"]);
    rmSync(join(folder, ".hypersdk"), { recursive: true });
    expect(await hypersdk(folder, ["plan"])).toMatchObject({ code: 0, stderr: expect.stringContaining("belongs to state") as string });
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 6 });
    expect(await hypersdk(folder, ["apply", "--auto-approve", "--adopt"])).toMatchObject({ code: 0 });
  });

  it.skipIf(process.getuid?.() !== 0)("without room fails its export clearly, keeps nothing of it, and works again once there is room", async () => {
    const folder = workTree(local.replace("file:./exports", "file:./small/exports"));
    machine(folder);
    mkdirSync(join(folder, "small"));
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=600k", "tmpfs", join(folder, "small")]);
    onTestFinished(() => void execFileSync("umount", [join(folder, "small")]));
    const ran = await hypersdk(folder, ["apply", "--auto-approve"]);
    expect(ran).toMatchObject({ code: 7, stderr: expect.stringContaining("no space left") as string });
    expect(readdirSync(join(folder, "small"), { recursive: true, encoding: "utf8" }).filter((file) => file.includes("disk-"))).toEqual([]);
    execFileSync("mount", ["-o", "remount,size=20m", join(folder, "small")]);
    expect(await hypersdk(folder, ["run", "nightly"])).toMatchObject({ code: 0 });
  });

  it.skipIf(process.getuid?.() !== 0)("without room for the state fails clearly and loses nothing", async () => {
    const folder = workTree(local);
    machine(folder);
    mkdirSync(join(folder, "tiny"));
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=60k", "tmpfs", join(folder, "tiny")]);
    onTestFinished(() => void execFileSync("umount", [join(folder, "tiny")]));
    const state = ["--state", "tiny/state.db"];
    expect(await hypersdk(folder, ["apply", "--auto-approve", ...state])).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/tiny\/state\.db/) as string,
    });
    execFileSync("mount", ["-o", "remount,size=20m", join(folder, "tiny")]);
    expect(await hypersdk(folder, ["apply", "--auto-approve", ...state])).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, ["audit", "verify", ...state])).toMatchObject({ code: 0 });
  });

  it.skipIf(process.getuid?.() === 0)("without permission is named", async () => {
    const folder = workTree(local);
    machine(folder);
    mkdirSync(join(folder, "exports"), { mode: 0o500 });
    onTestFinished(() => chmodSync(join(folder, "exports"), 0o700));
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 7, stderr: expect.stringContaining("no permission") as string });
  });
});

describe("a repository elsewhere", () => {
  const remote = (): { readonly url: string; readonly folder: string } => {
    const folder = workTree(local.replace("file:./exports", "file:///tmp/never-used"));
    return { url: `file://${folder}`, folder };
  };

  it("is read at a branch, a tag and a commit, and a force-push is an ordinary next state", async () => {
    const { url, folder } = remote();
    const home = temporaryFolder();
    const first = git(folder, "rev-parse", "HEAD").trim();
    git(folder, "tag", "v1");
    writeFileSync(join(folder, "infrastructure.yaml"), readFileSync(join(folder, "infrastructure.yaml"), "utf8").replace("nightly", "later"));
    git(folder, "commit", "--quiet", "--amend", "-am", "forced");
    const names = async (...args: string[]): Promise<string[]> => {
      const ran = await hypersdk(home, ["plan", "--json", "--offline", "--repo", url, "--allow-path", "/tmp/never-used", ...args]);
      expect(ran.stderr).toBe("");
      return result<{ plan: { changes: { address: string }[] } }>(ran.stdout)
        .plan.changes.map(({ address }) => address)
        .filter((address) => address.startsWith("schedule"));
    };
    expect(await names("--ref", "v1")).toEqual(["schedule.nightly"]);
    expect(await names("--branch", "main")).toEqual(["schedule.later"]);
    expect(await names("--ref", first)).toEqual(["schedule.nightly"]);
    expect(await hypersdk(home, ["plan", "--repo", url, "--branch", "none"])).toMatchObject({
      code: 10,
      stderr: expect.stringContaining("cannot fetch none") as string,
    });
    expect(await hypersdk(home, ["plan", "--repo", url, "--branch=--output=x"])).toMatchObject({
      code: 10,
      stderr: expect.stringContaining("is no branch") as string,
    });
  });

  it("may name no secret and no folder of this machine that was not allowed", async () => {
    const { url, folder } = remote();
    const home = temporaryFolder();
    expect(await hypersdk(home, ["validate", "--repo", url])).toMatchObject({
      code: 3,
      stdout: expect.stringContaining("--allow-path /tmp/never-used") as string,
    });
    writeFileSync(
      join(folder, "infrastructure.yaml"),
      `${readFileSync(join(folder, "infrastructure.yaml"), "utf8")}notifiers:\n  - {name: x, type: slack, token: "\${env:AWS_SECRET}"}\n`,
    );
    commit(folder);
    expect(await hypersdk(home, ["validate", "--repo", url, "--allow-path", "/tmp/never-used"], { AWS_SECRET: "hunter2" })).toMatchObject({
      code: 3,
      stdout: expect.stringContaining("AWS_SECRET is not allowed") as string,
    });
    expect(await hypersdk(home, ["validate", "--repo", url, "--allow-path", "/tmp/never-used", "--allow-env", "AWS_SECRET"])).toMatchObject({ code: 0 });
  });
});

describe("many machines", () => {
  it("in one folder, each an image of its own, are planned", async () => {
    const folder = workTree(smallest);
    mkdirSync(join(folder, "machines"));
    for (let i = 0; i < 10_000; i++) writeFileSync(join(folder, "machines", `vm-${i}.raw`), "x");
    const ran = await hypersdk(folder, ["plan", "--json"]);
    expect(ran.code).toBe(0);
    expect(result<{ plan: { protections: unknown[] } }>(ran.stdout).plan.protections).toHaveLength(10_000);
  });
});

describe("an image that is cut short", () => {
  it("is refused with exit 11 and leaves no output", async () => {
    const folder = workTree(local);
    makeMachines(join(folder, "machines"), 1);
    const whole = readFileSync(join(folder, "machines/web/web.vmdk"));
    writeFileSync(join(folder, "cut.vmdk"), whole.subarray(0, whole.length - 2000));
    expect(await hypersdk(folder, ["convert", "cut.vmdk", "cut.qcow2"])).toMatchObject({ code: 11, stderr: expect.stringContaining("cut short") as string });
    expect(readdirSync(folder).filter((file) => file.includes("qcow2"))).toEqual([]);
  });
});
