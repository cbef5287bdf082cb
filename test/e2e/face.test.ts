import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { parseAllDocuments } from "yaml";
import { git, hypersdk, program, temporaryFolder, workTree } from "../support/cli.ts";
import { smallest } from "../support/desired.ts";
import { MiB, writeRaw } from "../support/disks.ts";
import { has } from "../support/qemu.ts";
import { result } from "../support/schemas.ts";

const examples = join(import.meta.dirname, "../../examples");
const yaml = smallest.replace("file:///srv/backups", "file:./exports");

async function commands(args: readonly string[] = []): Promise<string[][]> {
  const { stdout } = await hypersdk(temporaryFolder(), [...args, "--help"]);
  const section = /\nCommands:\n([\s\S]*?)\n(?:\n|$)/.exec(stdout)?.[1] ?? "";
  const names = [...section.matchAll(/^ {2}([a-z-]+)/gm)].map((match) => match[1] as string).filter((name) => name !== "help");
  const below = await Promise.all(names.map((name) => commands([...args, name])));
  return [args as string[], ...below.flat()];
}

describe("help", () => {
  it("of every command has two examples, and the program's has the exit codes", async () => {
    const all = await commands();
    expect(all.length).toBeGreaterThan(30);
    for (const args of all) {
      const { stdout, code } = await hypersdk(temporaryFolder(), [...args, "--help"]);
      expect(code).toBe(0);
      const shown = /\nExamples:\n([\s\S]*)$/.exec(stdout)?.[1]?.trim().split("\n") ?? [];
      expect(shown.length, args.join(" ")).toBe(2);
    }
    expect((await hypersdk(temporaryFolder(), ["--help"])).stdout).toContain("the configuration is invalid");
  });
});

describe("answers as JSON", () => {
  it("of every command that reads are one document that its schema knows", async () => {
    const folder = workTree(yaml);
    mkdirSync(join(folder, "machines", "web"), { recursive: true });
    writeRaw(join(folder, "machines", "web", "disk.raw"), { sizeBytes: MiB, islands: [{ offset: 0, length: 4096 }] });
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0 });
    expect(result((await hypersdk(folder, ["run", "nightly", "--json"])).stdout)).toMatchObject({ completed: 1 });
    const reading = [
      ["version"],
      ["validate"],
      ["fmt", "--check"],
      ["plan"],
      ["drift"],
      ["status"],
      ["history"],
      ["audit", "verify"],
      ["state", "list"],
      ["state", "show", "schedule.nightly"],
      ["state", "backup", "copy.db"],
      ["lock", "show"],
      ["schedule", "preview", "nightly"],
      ["simulate"],
      ["doctor"],
      ["verify"],
      ["expire", "--dry-run"],
      ["suspend", "nightly"],
      ["resume", "nightly"],
      ...["schedules", "policies", "protections", "runs", "artifacts", "vms", "providers", "destinations"].map((kind) => ["get", kind]),
    ];
    for (const args of reading) {
      const ran = await hypersdk(folder, [...args, "--json"]);
      expect(ran.code, `${args.join(" ")} ${ran.stderr}`).toBe(0);
      result(ran.stdout);
    }
    for (const args of reading.filter(([name]) => name !== "state"))
      expect((await hypersdk(folder, args)).stdout, args.join(" ")).not.toMatch(/undefined|NaN|\[object/);
  });
});

it("the schema of results has every type that a command gives", () => {
  const folder = join(import.meta.dirname, "../../src/cli");
  const code = readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".ts"))
    .map((name) => readFileSync(join(folder, name), "utf8"))
    .join("\n");
  const given = [...code.matchAll(/io\.result\("([a-z-]+)"/g)].map(([, type]) => type as string);
  expect(given.length).toBeGreaterThan(30);
  const schema = readFileSync(join(import.meta.dirname, "../../schemas/results.schema.json"), "utf8");
  expect([...new Set(given)].filter((type) => !schema.includes(`"${type}"`))).toEqual([]);
});

describe("in GitHub Actions", () => {
  it("the plan goes to the step's summary and its counts to the outputs, cut where it is too long", async () => {
    const folder = workTree(yaml);
    mkdirSync(join(folder, "machines"));
    writeFileSync(join(folder, "machines", "web.raw"), "x");
    const env = { GITHUB_ACTIONS: "true", GITHUB_STEP_SUMMARY: join(folder, "summary.md"), GITHUB_OUTPUT: join(folder, "output") };
    expect(await hypersdk(folder, ["plan", "--markdown", "plan.md"], env)).toMatchObject({ code: 0 });
    const summary = readFileSync(env.GITHUB_STEP_SUMMARY, "utf8");
    expect(summary).toBe(readFileSync(join(folder, "plan.md"), "utf8"));
    expect(summary).toMatch(/^### Plan: 2 to add, 0 to change[\s\S]*```text\n[\s\S]*\+ schedule\.nightly[\s\S]*```\n$/);
    expect(readFileSync(env.GITHUB_OUTPUT, "utf8")).toBe("changes=2\nexports=0\nexpiries=0\n");
  });
});

describe.skipIf(!has("sqlite3"))("the state", () => {
  it("is a sound database for sqlite3 too", async () => {
    const folder = workTree(yaml);
    mkdirSync(join(folder, "machines"));
    writeFileSync(join(folder, "machines", "web.raw"), "x");
    await hypersdk(folder, ["apply", "--auto-approve"]);
    const sql = (query: string): string => execFileSync("sqlite3", [join(folder, ".hypersdk/state.db"), query], { encoding: "utf8" }).trim();
    expect(sql("PRAGMA integrity_check")).toBe("ok");
    expect(sql("SELECT address FROM resources ORDER BY address")).toBe("provider.local\nschedule.nightly");
    expect(sql("SELECT value FROM meta WHERE key = 'serial'")).toBe("1");
    expect(sql("PRAGMA journal_mode")).toBe("wal");
  });
});

describe("under Node 20", () => {
  it.skipIf(!process.env["NODE_20"] && !hasNode20())("the program says in one line what it needs", () => {
    const ran = spawnSync(process.env["NODE_20"] ?? "/usr/bin/node", [program, "plan"], { encoding: "utf8" });
    expect(ran.status).toBe(1);
    expect(ran.stderr).toMatch(/^hypersdk needs Node 22\.22 or newer, this is 20[^\n]*\n$/);
  });
});

function hasNode20(): boolean {
  return spawnSync("/usr/bin/node", ["--version"], { encoding: "utf8" }).stdout?.startsWith("v20") ?? false;
}

describe("completion", () => {
  it("knows commands, options, schedules and VM paths", async () => {
    const folder = workTree(yaml);
    mkdirSync(join(folder, "machines", "web"), { recursive: true });
    writeFileSync(join(folder, "machines", "web", "disk.raw"), "x");
    const complete = async (...words: string[]): Promise<string[]> => (await hypersdk(folder, ["__complete", ...words])).stdout.trim().split("\n");
    expect(await complete("pl")).toEqual(["plan"]);
    expect(await complete("run", "")).toEqual(["nightly"]);
    expect(await complete("restore", "--vm", "/data")).toEqual(["/datacenter/vm/web"]);
    expect(await complete("apply", "--auto")).toEqual(["--auto-approve"]);
    expect(await complete("state", "ba")).toEqual(["backup"]);
    await hypersdk(folder, ["apply", "--auto-approve"]);
    await hypersdk(folder, ["run", "nightly"]);
    const { stdout } = await hypersdk(folder, ["get", "artifacts", "--json"]);
    const id = /"id":\s*"([0-9a-f]{8})/.exec(stdout)?.[1] as string;
    for (const command of ["restore", "mount", "verify", "hold", "copy"]) expect(await complete(command, id.slice(0, 3))).toEqual([id]);
    expect(await complete("unhold", "")).toEqual([""]);
    await hypersdk(folder, ["hold", id, "--reason", "a test"]);
    expect(await complete("unhold", "")).toEqual([id]);
    const [destination, ...more] = await complete("check", "--destination", "");
    expect([destination, more]).toEqual([expect.stringMatching(/./), []]);
    expect(await complete("copy", id, "")).toEqual([destination]);
    expect(await complete("state", "rebuild", "--from", "")).toEqual([destination]);
    expect(await complete("convert", "--from", "qc")).toEqual(["qcow2"]);
    for (const shell of ["bash", "zsh", "fish"]) expect((await hypersdk(folder, ["completion", shell])).stdout).toContain("__complete");
  });

  it("in bash completes a VM path with spaces, quoted or not", async () => {
    const folder = workTree(yaml);
    mkdirSync(join(folder, "machines", "odd one"), { recursive: true });
    writeFileSync(join(folder, "machines", "odd one", "disk.raw"), "x");
    writeFileSync(join(folder, "complete.sh"), (await hypersdk(folder, ["completion", "bash"])).stdout);
    writeFileSync(join(folder, "hypersdk"), `#!/bin/sh\nexec ${process.execPath} ${program} "$@"\n`, { mode: 0o755 });
    for (const word of ["/datacenter/vm/odd", '"/datacenter/vm/odd', "/datacenter/vm/odd\\ o"]) {
      const script = `compopt() { :; }; . ./complete.sh; COMP_WORDS=(hypersdk restore --vm "$1"); COMP_CWORD=3; _hypersdk; printf '%s\n' "\${COMPREPLY[@]}"`;
      const env = { ...process.env, PATH: `${folder}:${process.env["PATH"]}` };
      expect(execFileSync("bash", ["-c", script, "bash", word], { cwd: folder, env, encoding: "utf8" })).toBe("/datacenter/vm/odd one\n");
    }
  });

  it("help of a command that there is not is an error", async () => {
    expect(await hypersdk(temporaryFolder(), ["help", "nope"])).toMatchObject({ code: 64, stderr: expect.stringContaining("nope") as string });
    expect(await hypersdk(temporaryFolder(), ["help", "plan"])).toMatchObject({ code: 0, stdout: expect.stringContaining("hypersdk plan") as string });
  });
});

describe("what is not applied yet", () => {
  it("is pending in status, and marked in get schedules", async () => {
    const folder = workTree(yaml);
    mkdirSync(join(folder, "machines"));
    const applied = async (): Promise<unknown> =>
      result<{ items: { applied: string }[] }>((await hypersdk(folder, ["get", "schedules", "--json"])).stdout).items.map((each) => each.applied);
    const status = async (): Promise<unknown> => {
      const { pending, next } = result<{ pending: number; next: { at: string }[] }>((await hypersdk(folder, ["status", "--json"])).stdout);
      return [pending > 0, next.map(({ at }) => at.slice(11, 16))];
    };
    expect([await applied(), await status()]).toEqual([["no"], [true, []]]);
    await hypersdk(folder, ["apply", "--auto-approve"]);
    expect([await applied(), await status()]).toEqual([["yes"], [false, ["02:00"]]]);
    writeFileSync(join(folder, "infrastructure.yaml"), yaml.replace("0 2", "0 3"));
    expect([await applied(), await status()]).toEqual([["changed"], [true, ["02:00"]]]);
  });
});

describe("an answer that nobody can have", () => {
  it("is no success", () => {
    const { status, stderr } = spawnSync("sh", ["-c", `${process.execPath} ${program} version > /dev/full`], { encoding: "utf8" });
    expect({ status, stderr }).toEqual({ status: 1, stderr: "error: the output cannot be written: no space left\n" });
  });
});

describe("init", () => {
  it("writes a configuration that is valid and already in canonical form, and never over another", async () => {
    const folder = workTree("# nothing\n");
    expect(await hypersdk(folder, ["init", "infra", "--ci", "github"])).toMatchObject({
      code: 0,
      stdout: expect.stringContaining("wrote ../.github/workflows/hypersdk.yaml\n") as string,
    });
    // a pipeline is read from the top of the repository alone, and finds the configuration from there
    const pipeline = readFileSync(join(folder, ".github/workflows/hypersdk.yaml"), "utf8");
    expect(pipeline).toContain("hypersdk plan --offline --path infra\n");
    for (const [, command = ""] of pipeline.matchAll(/hypersdk ((?:validate|plan).*)/g))
      expect(await hypersdk(folder, command.split(" "))).toMatchObject({ code: 0 });
    expect(await hypersdk(folder, ["validate", "-f", "infra/infrastructure.yaml"])).toMatchObject({
      code: 0,
      stdout: expect.stringContaining("0 warnings") as string,
    });
    expect(await hypersdk(folder, ["fmt", "--check", "-f", "infra/infrastructure.yaml"])).toMatchObject({ code: 0 });
    const refusal = { code: 1, stderr: expect.stringContaining("exists already") as string };
    expect(await hypersdk(folder, ["init", "infra"])).toMatchObject(refusal);
    expect(await hypersdk(folder, ["init", "infra", "--ci", "github"])).toMatchObject(refusal);
    expect(await hypersdk(folder, ["init", "not for a shell", "--ci", "github"])).toMatchObject({ code: 64 });
    expect(existsSync(join(folder, "not for a shell"))).toBe(false);
    // a pipeline may come later
    expect(await hypersdk(folder, ["init", "infra", "--ci", "gitlab"])).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^wrote \S+gitlab-ci.yml\nNext/) as string,
    });
  });

  it("never leads a state into git", async () => {
    const folder = temporaryFolder();
    git(folder, "init", "--quiet");
    expect(await hypersdk(folder, ["init"])).toMatchObject({ code: 0 });
    mkdirSync(join(folder, "machines"));
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0 });
    expect(git(folder, "status", "--porcelain", "--untracked-files=all")).not.toContain("state");
    const plain = workTree(`version: v2\nschedules: [{name: a, cron: "0 0 * * *", vms: ["/x/y"], destination: file:./out}]\n`);
    writeFileSync(join(plain, ".gitignore"), "");
    expect(await hypersdk(plain, ["apply", "--auto-approve"])).toMatchObject({ code: 0 });
    expect(git(plain, "status", "--porcelain", "--untracked-files=all")).not.toContain(".hypersdk");
  });
});

describe("fmt", () => {
  it("orders and spaces, keeps comments, and has nothing more to do afterwards", async () => {
    const folder = workTree(
      'version:    v2\nschedules:\n  # the night\n  - vms: ["/a/*"]   # all\n    cron: "0 2 * * *"\n    name: x\n    destination: file:///srv/x\n',
    );
    expect(await hypersdk(folder, ["fmt", "--check"])).toMatchObject({ code: 2 });
    expect(await hypersdk(folder, ["fmt"])).toMatchObject({ code: 0, stdout: "changed infrastructure.yaml\n" });
    expect(readFileSync(join(folder, "infrastructure.yaml"), "utf8")).toBe(
      'version: v2\nschedules:\n  # the night\n  - name: x\n    cron: "0 2 * * *"\n    vms: ["/a/*"] # all\n    destination: file:///srv/x\n',
    );
    expect(await hypersdk(folder, ["fmt", "--check"])).toMatchObject({ code: 0 });
  });
});

describe("fmt, of what is not all ours or not all right", () => {
  const make = (): { folder: string; at: (name: string) => string } => {
    const folder = workTree("version: v2\nschedules:   []\n");
    return { folder, at: (name) => join(folder, name) };
  };

  it("leaves documents of others as they are, to the last space", async () => {
    const { folder, at } = make();
    const [before, behind] = ["# c\napiVersion: v1\nkind:   ConfigMap\n", "---\nkind:    Other\n"];
    writeFileSync(at("mixed.yaml"), `${before}---\nversion: v2\nschedules:   []\n${behind}`);
    expect(await hypersdk(folder, ["fmt", "-f", "mixed.yaml"])).toMatchObject({ code: 0 });
    expect(readFileSync(at("mixed.yaml"), "utf8")).toBe(`${before}---\nversion: v2\nschedules: []\n${behind}`);
  });

  it.each([
    [
      "an anchor whose name is used twice",
      'version:   v2\npolicies:\n  - {name: p, schedule: one, match: [&x "/v/b"]}\nschedules:\n  - {name: one, cron: "0 2 * * *", vms: [&x "/v/a"], destination: "file:///b"}\nrenames:\n  - {vm: *x, formerly: "/v/old"}\n',
    ],
    [
      "an alias that would come before its anchor",
      "version:   v2\nschedules:\n  - {name: one, cron: '0 2 * * *', vms: [/v/a], destination: &d backups}\ndestinations:\n  - {name: *d, url: 'file:///b'}\n",
    ],
    [
      "a comment above what comes first",
      "version:   v2\nschedules:\n  - cron: '0 2 * * *'\n    # what it is called\n    name: a\n    vms: [/v/a]\n    destination: 'file:///b'\n",
    ],
    ["line ends of another system", "version:   v2\r\nschedules: []\r\n---\r\nkind:   Other\r\n"],
  ])("keeps the meaning of %s, and has nothing more to do afterwards", async (_, text) => {
    const { folder, at } = make();
    writeFileSync(at("odd.yaml"), text);
    expect(await hypersdk(folder, ["fmt", "-f", "odd.yaml"])).toMatchObject({ code: 0, stdout: "changed odd.yaml\n" });
    const after = readFileSync(at("odd.yaml"), "utf8");
    expect(parseAllDocuments(after).map((each) => each.toJS() as unknown)).toEqual(parseAllDocuments(text).map((each) => each.toJS() as unknown));
    expect(after.match(/\r?\n/g)?.every((each) => each === (text.includes("\r") ? "\r\n" : "\n"))).toBe(true);
    expect(await hypersdk(folder, ["fmt", "--check", "-f", "odd.yaml"])).toMatchObject({ code: 0 });
  });

  it("formats what a link leads to, and leaves the link", async () => {
    const { folder, at } = make();
    symlinkSync("infrastructure.yaml", at("link.yaml"));
    expect(await hypersdk(folder, ["fmt", "-f", "link.yaml"])).toMatchObject({ code: 0 });
    expect(lstatSync(at("link.yaml")).isSymbolicLink()).toBe(true);
    expect(readFileSync(at("infrastructure.yaml"), "utf8")).toBe("version: v2\nschedules: []\n");
  });

  it.each([[["fmt"]], [["fmt", "--check"]], [["fmt", "--json"]]])("says what it cannot read: %s", async (args) => {
    const { folder, at } = make();
    writeFileSync(at("broken.yaml"), "version: v2\nschedules: [}\n");
    const { code, stdout, stderr } = await hypersdk(folder, [...args, "-f", "broken.yaml"]);
    expect([code, stderr]).toEqual([3, expect.stringContaining("1 file cannot be formatted")]);
    if (args.includes("--json")) expect(result<{ diagnostics: object[] }>(stdout).diagnostics).toHaveLength(1);
    else expect(stderr).toContain("broken.yaml:2:");
  });
});

describe("-f", () => {
  it("reads a pipe as a file, and what is neither is no empty configuration", async () => {
    const folder = temporaryFolder();
    execFileSync("mkfifo", [join(folder, "pipe")]);
    const writing = writeFile(join(folder, "pipe"), "version: v2\nschedules: [{name: a}]\n");
    const { code, stdout } = await hypersdk(folder, ["validate", "-f", "pipe"]);
    await writing;
    expect([code, stdout]).toEqual([3, expect.stringMatching(/"cron" is missing[\s\S]*pipe:2:/)]);
    expect(await hypersdk(folder, ["plan", "-f", "/dev/null", "--state", "s.db"])).toMatchObject({
      code: 10,
      stderr: expect.stringContaining("/dev/null is no file") as string,
    });
  });
});

describe("examples", () => {
  it.each(["quickstart", "fleet", "whole", "vmbackup"])("%s is valid", async (name) => {
    expect(await hypersdk(temporaryFolder(), ["validate", "-f", join(examples, name)])).toMatchObject({ code: 0 });
  });

  it("the fleet is planned and applied, its policies joined", async () => {
    const folder = temporaryFolder();
    const { cpSync } = await import("node:fs");
    cpSync(join(examples, "fleet"), folder, { recursive: true });
    for (const vm of ["production/shop/db-1", "production/shop/web-1", "production/shop/proxy", "production/shop/scratch-1", "development/ci-1"]) {
      mkdirSync(join(folder, "machines", vm), { recursive: true });
      writeFileSync(join(folder, "machines", vm, "disk.raw"), Buffer.alloc(4096, 1));
    }
    const applied = await hypersdk(folder, ["apply", "--auto-approve", "-f", ".", "--json"]);
    expect(applied).toMatchObject({ code: 0 });
    const { items } = result<{ items: { schedule: string; vm: string }[] }>((await hypersdk(folder, ["get", "protections", "-f", ".", "--json"])).stdout);
    expect(items.map(({ schedule, vm }) => `${schedule} ${vm.slice(15)}`).sort()).toEqual([
      "development-weekly development/ci-1",
      "production-hourly production/shop/db-1",
      "production-hourly production/shop/proxy",
      "production-hourly production/shop/web-1",
      "production-weekly production/shop/db-1",
      "production-weekly production/shop/proxy",
      "production-weekly production/shop/web-1",
    ]);
  });

  it("the VMBackup document is planned", async () => {
    const folder = temporaryFolder();
    expect(await hypersdk(folder, ["plan", "--offline", "-f", join(examples, "vmbackup", "web.yaml")])).toMatchObject({
      code: 0,
      stdout: expect.stringContaining("+ schedule.shop-web") as string,
    });
  });
});
