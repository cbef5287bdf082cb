import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { hypersdk, temporaryFolder, workTree } from "../support/cli.ts";
import { smallest } from "../support/desired.ts";
import { MiB, writeRaw } from "../support/disks.ts";

const yaml = smallest.replace("file:///srv/backups", "file:./exports").replace("    vms", "    initialExport: immediate\n    vms");

function tree(text = yaml): string {
  const folder = workTree(text);
  mkdirSync(join(folder, "machines", "web"), { recursive: true });
  writeRaw(join(folder, "machines", "web", "disk.raw"), { sizeBytes: MiB, islands: [{ offset: 0, length: 4096 }] });
  return folder;
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

describe("a file of ours with a misspelt version", () => {
  it.each(["version: 2", "verison: v2", "version: v3"])("%s is an error with its place, never somebody else's file", async (line) => {
    const folder = tree(yaml.replace("version: v2", line));
    expect(await hypersdk(folder, ["validate"])).toMatchObject({ code: 3, stdout: expect.stringMatching(/HSE009[\s\S]*infrastructure\.yaml:1/) as string });
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
      stdout: expect.stringContaining("2 restore points verified (restore), 1 damaged") as string,
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
