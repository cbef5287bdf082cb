import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { makeMachines } from "../../examples/quickstart/make-machines.ts";
import { hypersdk, ok, workTree } from "../support/cli.ts";
import { has, qemuImg } from "../support/qemu.ts";
import { result } from "../support/schemas.ts";

const yaml = (more: string, destinations = '[{name: backups, url: "file:./backups"}, {name: cellar, url: "file:./cellar", layout: image}]'): string =>
  `version: v2\ndestinations: ${destinations}\nschedules:\n  - {name: nightly, cron: "0 2 * * *", initialExport: immediate, vms: ["/datacenter/vm/*"], destination: backups, incremental: true${more}}\n`;

function machines(more: string): string {
  const folder = workTree(yaml(more));
  makeMachines(join(folder, "machines"), 24);
  return folder;
}

const filesBelow = (folder: string): string[] =>
  readdirSync(folder, { recursive: true, encoding: "utf8" }).filter((path) => statSync(join(folder, path)).isFile());

it("keepImage: latest keeps the newest point as images that any tool opens, and no other", { timeout: 300_000 }, async () => {
  const folder = machines(", keepImage: latest, format: qcow2");
  await ok(folder, ["apply", "--auto-approve"]);
  const images = (): string[] => filesBelow(join(folder, "backups", "nightly")).sort();
  const first = images();
  expect(first.map((path) => path.replace(/\d{8}T\d{6}Z-[0-9a-f]{8}/, "TIME")).sort()).toEqual([
    "datacenter%2Fvm%2Fdb/TIME/disk-0.qcow2",
    "datacenter%2Fvm%2Fdb/TIME/disk-1.qcow2",
    "datacenter%2Fvm%2Fdb/TIME/manifest.json",
    "datacenter%2Fvm%2Fweb/TIME/disk-0.qcow2",
    "datacenter%2Fvm%2Fweb/TIME/manifest.json",
  ]);
  const web = join(folder, "backups/nightly", first.find((path) => path.includes("web") && path.endsWith(".qcow2")) as string);
  await ok(folder, ["restore", "--vm", "/datacenter/vm/web", "--to", "web.raw"]);
  if (has("qemu-img")) qemuImg("compare", "-q", "-f", "qcow2", "-F", "raw", web, join(folder, "web.raw"));
  // the folder is a restore point of its own: nothing else is needed
  await ok(folder, ["restore", web.slice(0, web.lastIndexOf("/")), "--to", "again.raw", "--format", "raw"]);
  expect(readFileSync(join(folder, "again.raw")).equals(readFileSync(join(folder, "web.raw")))).toBe(true);
  await ok(folder, ["run", "nightly"]);
  expect(images().length).toBe(first.length);
  expect(images().filter((path) => first.includes(path))).toEqual([]);
  expect(await ok(folder, ["check", "--read-data"])).toContain("sound");
  expect(await ok(folder, ["plan"])).not.toContain("drift");
});

it("keepImage is refused where it says nothing, or would say too much", async () => {
  for (const [more, message] of [
    [', keepImage: latest, encryption: {key: "${env:KEY}"}', "would lie open"],
    [", destination: cellar, keepImage: latest", "an image already"],
  ] as const) {
    const folder = workTree(yaml(more).replace(more.includes("cellar") ? "destination: backups, incremental: true, " : "no such text", ""));
    expect(await hypersdk(folder, ["validate"])).toMatchObject({ code: 3, stdout: expect.stringContaining(message) as string });
  }
});

it("copy stores points at another destination, in another layout, once, and they restore from there alone", { timeout: 300_000 }, async () => {
  const folder = machines("");
  await ok(folder, ["apply", "--auto-approve"]);
  await ok(folder, ["run", "nightly"]);
  const { copied } = result<{ copied: { point: string; of: string; vm: string }[] }>(await ok(folder, ["copy", "backups", "cellar", "--json"]));
  expect(copied.length).toBe(4);
  expect(await ok(folder, ["copy", "backups", "cellar"])).toContain("0 restore points copied to cellar, 4 there already");
  expect(await ok(folder, ["copy", copied[0]?.point as string, `file://${folder}/third`])).toContain("1 restore point copied");
  expect(await hypersdk(folder, ["copy", copied[0]?.of as string, "backups"])).toMatchObject({ code: 64 });
  expect(await ok(folder, ["verify"])).toContain("9 restore points verified (restore), 0 damaged");
  await ok(folder, ["restore", copied[0]?.of as string, "--to", "before/", "--format", "raw"]);
  rmSync(join(folder, "backups"), { recursive: true });
  await ok(folder, ["restore", copied[0]?.point as string, "--to", "after/", "--format", "raw"]);
  for (const name of readdirSync(join(folder, "before")))
    expect(readFileSync(join(folder, "after", name)).equals(readFileSync(join(folder, "before", name)))).toBe(true);
});

it("copy stores again what is damaged or gone where it was copied to", { timeout: 300_000 }, async () => {
  const folder = machines("");
  await ok(folder, ["apply", "--auto-approve"]);
  const usb = `file://${folder}/usb`;
  const copy = ["copy", "backups", usb];
  expect(await ok(folder, copy)).toContain("2 restore points copied");
  // the largest pack holds what both machines are made of
  const packs = join(folder, "usb", "packs");
  const [largest] = readdirSync(packs).sort((a, b) => statSync(join(packs, b)).size - statSync(join(packs, a)).size);
  const bytes = readFileSync(join(packs, largest as string));
  for (let at = 1000; at < bytes.length; at += 20_000) bytes[at] = (bytes[at] as number) ^ 0x10;
  writeFileSync(join(packs, largest as string), bytes);
  const damaged = await hypersdk(folder, ["verify"]);
  expect(damaged.code).toBe(11);
  const bad = Number(/(\d+) damaged/.exec(damaged.stdout)?.[1]);
  expect(bad).toBeGreaterThan(0);
  expect(await ok(folder, copy)).toContain(`${bad} restore point${bad === 1 ? "" : "s"} copied to ${usb}, ${2 - bad} there already`);
  // what was sent again heals the bad one as well
  expect(await ok(folder, ["verify"])).toContain("0 damaged");
  expect(await ok(folder, copy)).toContain("0 restore points copied");
  rmSync(join(folder, "usb"), { recursive: true });
  expect(await hypersdk(folder, copy)).toMatchObject({ code: 1, stderr: expect.stringContaining("--adopt") as string });
  expect(await ok(folder, [...copy, "--adopt"])).toContain("2 restore points copied");
});

it("a newest point that is gone names the one that can be restored instead", { timeout: 300_000 }, async () => {
  const folder = machines("");
  await ok(folder, ["apply", "--auto-approve"]);
  await ok(folder, ["copy", "backups", "cellar"]);
  // what is at the same place is gone as well
  await ok(folder, ["run", "nightly"]);
  rmSync(join(folder, "backups"), { recursive: true });
  const restore = ["restore", "--vm", "/datacenter/vm/web", "--to", "web.raw"];
  const { code, stderr } = await hypersdk(folder, restore);
  expect(code).not.toBe(0);
  const id = /the next one is ([0-9a-f]{8}) of schedule nightly, as of .*, at cellar: name its id/.exec(stderr)?.[1] as string;
  await ok(folder, ["restore", id, "--to", "web.raw"]);
});

it("copy goes between an open and an encrypted repository with the keys of both", { timeout: 300_000 }, async () => {
  const folder = workTree(
    yaml("", '[{name: backups, url: "file:./backups"}, {name: safe, url: "file:./safe"}]') +
      '  - {name: later, cron: "0 3 * * *", suspend: true, vms: ["/datacenter/vm/none*"], destination: safe, incremental: true, encryption: {key: "${file:key}"}}\n',
  );
  writeFileSync(join(folder, "key"), "a passphrase that nobody guesses\n");
  makeMachines(join(folder, "machines"), 24);
  await ok(folder, ["apply", "--auto-approve"]);
  expect(await ok(folder, ["copy", "backups", "safe"])).toContain("2 restore points copied to safe");
  for (const path of filesBelow(join(folder, "safe")).filter((each) => each.startsWith("points/")))
    expect(readFileSync(join(folder, "safe", path)).includes("datacenter")).toBe(false);
  expect(await ok(folder, ["verify"])).toContain("4 restore points verified (restore), 0 damaged");
});

describe.skipIf(!has("qemu-system-x86_64"))("verify: boot", () => {
  it("starts what was stored and waits for what it says; one that says something else fails its run, and stays", { timeout: 240_000 }, async () => {
    const folder = machines(", verify: {level: boot, marker: HYPERSDK-BOOT db, timeout: 1m}, retry: {attempts: 0}");
    const applied = await hypersdk(folder, ["apply", "--auto-approve"]);
    // web says its own name: its point is stored and its run fails
    expect([applied.code, applied.stdout + applied.stderr]).toEqual([7, expect.stringMatching(/web.*has not said "HYPERSDK-BOOT db"/) as string]);
    const points = JSON.parse(await ok(folder, ["get", "artifacts", "--json"])) as { items: { vm: string; state: string }[] };
    expect(points.items.map(({ vm, state }) => `${vm} ${state}`).sort()).toEqual(["/datacenter/vm/db good", "/datacenter/vm/web unproved"]);
    expect(await ok(folder, ["verify", "--vm", "/datacenter/vm/web", "--level", "boot", "--marker", "HYPERSDK-BOOT web"])).toContain(
      "1 restore point verified (boot), 0 not started",
    );
    const silent = await hypersdk(folder, ["verify", "--vm", "/datacenter/vm/web", "--level", "boot", "--timeout", "3s"]);
    expect(silent).toMatchObject({ code: 11, stdout: expect.stringContaining('has not said "login:"') as string });
    expect(await hypersdk(folder, ["verify", "--marker", "x"])).toMatchObject({ code: 64 });
  });
});
