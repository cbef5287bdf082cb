import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  closeSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import type { Manifest } from "../../src/exports/manifest.ts";
import { hypersdk, ok, start, workTree } from "../support/cli.ts";
import { bytes, KiB, MiB, writeRaw } from "../support/disks.ts";
import { conforms, result } from "../support/schemas.ts";

const yaml = (more = ""): string =>
  `version: v2\nschedules:\n  - {name: nightly, cron: "0 2 * * *", initialExport: immediate, vms: ["/datacenter/vm/*"], destination: "file:./backups", incremental: true, concurrency: 1, verify: stored${more}}\n`;

/** Two machines with a disk of 48 MiB each, most of it the same in both. */
function fleet(more = ""): { readonly folder: string; readonly disk: (vm: string) => string } {
  const folder = workTree(yaml(more));
  for (const [i, vm] of ["db", "web"].entries()) {
    mkdirSync(join(folder, "machines", vm), { recursive: true });
    const path = join(folder, "machines", vm, "disk.raw");
    writeRaw(path, { sizeBytes: 48 * MiB + 512, islands: [{ offset: 0, length: 12 * MiB }] });
    overwrite(path, 40 * MiB, bytes(MiB, 100 + i));
  }
  return { folder, disk: (vm) => join(folder, "machines", vm, "disk.raw") };
}

function overwrite(path: string, offset: number, data: Buffer): void {
  const file = openSync(path, "r+");
  writeSync(file, data, 0, data.length, offset);
  closeSync(file);
}

const objects = (folder: string, kind: string): string[] => {
  try {
    return readdirSync(join(folder, "backups", kind), { recursive: true, encoding: "utf8" }).filter((name) =>
      statSync(join(folder, "backups", kind, name)).isFile(),
    );
  } catch {
    return [];
  }
};
const stored = (folder: string): number => objects(folder, "packs").reduce((sum, name) => sum + statSync(join(folder, "backups/packs", name)).size, 0);
const manifestsOf = (folder: string): Manifest[] =>
  objects(folder, "points")
    .sort()
    .map((name) => conforms<Manifest>("manifest", JSON.parse(readFileSync(join(folder, "backups/points", name), "utf8"))));

it("an incremental schedule stores what is new once, restores every point byte for byte, and gives space back", { timeout: 300_000 }, async () => {
  const { folder, disk } = fleet();
  const plan = await ok(folder, ["plan"]);
  expect(plan).toContain("the first export of this VM");
  await ok(folder, ["apply", "--auto-approve"]);
  const [first, second] = manifestsOf(folder);
  // the second VM brings only the MiB that the first has not: 8 chunks of 128 KiB
  expect([first, second].map((each) => each?.disks.map((one) => ("newBytes" in one ? one.newBytes : -1))).sort()).toEqual([[13 * MiB], [MiB]].sort());
  expect(objects(folder, "locks")).toEqual([]);

  copyFileSync(disk("web"), join(folder, "web-0.raw"));
  overwrite(disk("web"), 3 * MiB + 5, Buffer.from("changed"));
  overwrite(disk("web"), 47 * MiB, bytes(64 * KiB, 7));
  const before = stored(folder);
  await ok(folder, ["run", "nightly", "--vm", "/datacenter/vm/web"]);
  const newest = manifestsOf(folder).find(({ source }) => source.kind === "manual");
  expect(newest?.disks[0]).toMatchObject({ mode: "incremental", newBytes: 256 * KiB, reason: expect.stringContaining("are not tracked") as string });
  expect(stored(folder) - before).toBeLessThan(264 * KiB);

  await ok(folder, ["verify"]);
  await ok(folder, ["verify", "--level", "checksum"]);
  expect(await ok(folder, ["check", "--read-data"])).toContain("sound");
  await ok(folder, ["restore", "--vm", "/datacenter/vm/web", "--to", "now.raw"]);
  expect(readFileSync(join(folder, "now.raw")).equals(readFileSync(disk("web")))).toBe(true);
  const oldest = JSON.parse(await ok(folder, ["get", "artifacts", "--json"])) as { items: { id: string; vm: string }[] };
  const old = oldest.items.find(({ vm }) => vm === "/datacenter/vm/web") as { id: string };
  await ok(folder, ["restore", old.id, "--to", "old.raw"]);
  expect(readFileSync(join(folder, "old.raw")).equals(readFileSync(join(folder, "web-0.raw")))).toBe(true);
  // by the manifest alone, without state or files of the work tree
  const path = join("backups/points", objects(folder, "points").sort()[0] as string);
  await ok(folder, ["restore", path, "--to", "alone.qcow2"]);

  // nothing to compact while every chunk is used
  expect(await ok(folder, ["compact", "--grace", "0s", "--max-unused", "0%"])).toContain("0 B freed");
  // what a process that was killed was writing goes after the time of grace
  const unfinished = join(folder, "backups/packs/.0123.0f0e.partial");
  writeFileSync(unfinished, Buffer.alloc(5000));
  await ok(folder, ["compact", "--grace", "1h"]);
  expect(existsSync(unfinished)).toBe(true);
  utimesSync(unfinished, Date.now() / 1000 - 7200, Date.now() / 1000 - 7200);
  await ok(folder, ["compact", "--grace", "1h"]);
  expect(existsSync(unfinished)).toBe(false);
  // a held point stays; what is let go is freed by compact, not before
  await ok(folder, ["hold", old.id, "--reason", "audit"]);
  writeFileSync(join(folder, "infrastructure.yaml"), yaml().replace("nightly", "other"));
  await ok(folder, ["apply", "--auto-approve", "--no-exports"]);
  expect(await ok(folder, ["expire", "--schedule", "nightly", "--auto-approve"])).toContain("2 restore points removed");
  const full = stored(folder);
  expect(full).toBeGreaterThan(0);
  // why it stays is said where so much may
  expect(await ok(folder, ["compact", "--dry-run", "--max-unused", "100%"])).toMatch(
    /0 B would be freed.*; .* unused stay in packs of which no more than 100% is/,
  );
  expect(await ok(folder, ["compact", "--grace", "0s", "--max-unused", "0%"])).toContain("moved into new packs");
  expect(stored(folder)).toBeLessThan(full);
  expect(await ok(folder, ["check", "--read-data"])).toContain("sound");
  await ok(folder, ["restore", old.id, "--to", "kept.raw"]);
  expect(readFileSync(join(folder, "kept.raw")).equals(readFileSync(join(folder, "web-0.raw")))).toBe(true);
  await ok(folder, ["unhold", old.id]);
  expect(await hypersdk(folder, ["unhold", old.id])).toMatchObject({ code: 1, stderr: expect.stringContaining("is not held") as string });
  await ok(folder, ["expire", "--schedule", "nightly", "--auto-approve"]);
  // what waits is told of each time, not only when it is condemned
  const compacted = async (): Promise<unknown> => result<{ repositories: unknown[] }>(await ok(folder, ["compact", "--grace", "2h", "--json"])).repositories[0];
  const waits = (await compacted()) as { condemnedBytes: number; freeAt: string };
  expect(waits.condemnedBytes).toBeGreaterThan(0);
  expect(await compacted()).toMatchObject({ freedBytes: 0, condemnedBytes: waits.condemnedBytes, freeAt: waits.freeAt });
  await ok(folder, ["compact", "--grace", "0s"]);
  expect([objects(folder, "packs"), objects(folder, "segments"), objects(folder, "condemned"), objects(folder, "points")]).toEqual([[], [], [], []]);
});

it("what is damaged in a repository is found, named and mended as far as the source still has it", { timeout: 300_000 }, async () => {
  const { folder, disk } = fleet();
  await ok(folder, ["apply", "--auto-approve"]);
  const pack = join(folder, "backups/packs", objects(folder, "packs").sort()[0] as string);
  const content = readFileSync(pack);
  content[1000] = (content[1000] as number) ^ 1;
  writeFileSync(pack, content);
  // the structure holds, the data does not
  expect(await hypersdk(folder, ["check"])).toMatchObject({ code: 0 });
  expect(await hypersdk(folder, ["check", "--read-data"])).toMatchObject({ code: 11, stdout: expect.stringContaining("cannot be restored whole") as string });
  const refused = await hypersdk(folder, ["restore", "--vm", "/datacenter/vm/web", "--to", "web.raw"]);
  expect(refused).toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/its newest, [0-9a-f]{8}, is recorded as damaged: hypersdk verify looks at it again; a restore by its id/) as string,
  });
  const restored = await hypersdk(folder, ["restore", /newest, ([0-9a-f]{8})/.exec(refused.stderr)?.[1] ?? "", "--to", "web.raw"]);
  expect(restored).toMatchObject({ code: 11, stderr: expect.stringContaining("packs/") as string });
  expect(readdirSync(folder).filter((name) => name.includes("web.raw"))).toEqual([]);
  expect(await hypersdk(folder, ["repair"])).toMatchObject({ code: 8 });
  expect(await hypersdk(folder, ["repair", "--auto-approve"])).toMatchObject({ code: 11, stdout: expect.stringContaining("has lost data") as string });
  await ok(folder, ["run", "nightly"]);
  expect(await hypersdk(folder, ["check", "--read-data"])).toMatchObject({
    code: 0,
    stdout: expect.stringContaining("sound") as string,
    stderr: expect.stringContaining("recorded as damaged: hypersdk verify looks again") as string,
  });
  await ok(folder, ["verify"]);
  await ok(folder, ["restore", "--vm", "/datacenter/vm/web", "--to", "web.raw"]);
  expect(readFileSync(join(folder, "web.raw")).equals(readFileSync(disk("web")))).toBe(true);

  // every index gone: the packs know themselves
  for (const name of objects(folder, "index")) rmSync(join(folder, "backups/index", name));
  expect(await hypersdk(folder, ["check"])).toMatchObject({ code: 11 });
  expect(await ok(folder, ["repair", "--auto-approve"])).toContain("0 restore points with lost data");
  expect(await ok(folder, ["check", "--read-data"])).toContain("sound");
});

it("what is left of a disk is salvaged, with zeros where nothing is, and where that was", { timeout: 300_000 }, async () => {
  const { folder, disk } = fleet();
  await ok(folder, ["apply", "--auto-approve"]);
  const { items } = JSON.parse(await ok(folder, ["get", "artifacts", "--json"])) as { items: { id: string; vm: string }[] };
  const id = items.find(({ vm }) => vm.endsWith("/web"))?.id as string;
  const salvage = (to: string, ...more: string[]): ReturnType<typeof hypersdk> => hypersdk(folder, ["restore", id, "--to", to, "--salvage", ...more]);
  expect(await salvage("whole.raw")).toMatchObject({ code: 0, stdout: expect.stringContaining("the content is what was exported (") as string });

  for (const name of objects(folder, "packs")) {
    const pack = join(folder, "backups/packs", name);
    const content = readFileSync(pack);
    for (const at of [1000, 300_000, 400_000]) if (at < content.length / 2) content[at] = (content[at] as number) ^ 1;
    writeFileSync(pack, content);
  }
  const refused = await hypersdk(folder, ["restore", id, "--to", "web.raw"]);
  expect(refused).toMatchObject({ code: 11, stderr: expect.stringContaining("--salvage restores what is there") as string });
  const salvaged = await salvage("web.raw", "--json");
  expect(salvaged.code).toBe(11);
  const { lost } = result<{ disks: { lost: { offset: number; length: number }[] }[] }>(salvaged.stdout).disks[0] as {
    lost: { offset: number; length: number }[];
  };
  expect(lost.length).toBeGreaterThan(1);
  const expected = readFileSync(disk("web"));
  for (const { offset, length } of lost) expected.fill(0, offset, offset + length);
  expect(readFileSync(join(folder, "web.raw")).equals(expected)).toBe(true);
  expect(readFileSync(disk("web")).equals(expected)).toBe(false);

  // other formats too; whom quiet asks for silence is told of a loss all the same
  const quiet = await salvage("web.qcow2", "--quiet");
  expect(quiet).toMatchObject({ code: 11, stdout: "" });
  expect(quiet.stderr.match(/^ {2}\d+ bytes at \d+$/gm)).toEqual(lost.map(({ offset, length }) => `  ${length} bytes at ${offset}`));
  await ok(folder, ["convert", "web.qcow2", "again.raw"]);
  expect(readFileSync(join(folder, "again.raw")).equals(expected)).toBe(true);

  expect(await salvage("web.ova")).toMatchObject({ code: 64, stderr: expect.stringContaining("a package says that it is whole") as string });
  // chunks that are gone altogether: what is damaged was dropped, and then a pack
  expect(await hypersdk(folder, ["repair", "--auto-approve"])).toMatchObject({ code: 11 });
  expect((await salvage("web.raw", "--overwrite")).stderr).toBe(quiet.stderr.replace("web.qcow2: qcow2", "web.raw: raw"));
  expect(readFileSync(join(folder, "web.raw")).equals(expected)).toBe(true);
  for (const name of objects(folder, "packs")) rmSync(join(folder, "backups/packs", name));
  expect(await salvage("web.raw", "--overwrite")).toMatchObject({ code: 11, stderr: expect.stringContaining("lost, and zeros now") as string });
  expect(readFileSync(join(folder, "web.raw")).equals(Buffer.alloc(expected.length))).toBe(true);
});

it("a restore that is cut off goes on where it was, and is not fooled by what lies there", { timeout: 300_000 }, async () => {
  const { folder, disk } = fleet();
  const large = join(folder, "machines", "large");
  mkdirSync(large);
  writeRaw(join(large, "disk.raw"), { sizeBytes: 400 * MiB, islands: [{ offset: 8 * MiB, length: 300 * MiB }] });
  await ok(folder, ["apply", "--auto-approve"]);
  const partials = (): string[] => readdirSync(folder).filter((name) => name.endsWith(".partial"));
  const args = ["restore", "--vm", "/datacenter/vm/large", "--to", "large.raw"];
  const first = start(folder, args);
  for (let i = 0; partials().length === 0 || statSync(join(folder, partials()[0] as string)).size < 60 * MiB; i++) {
    if (i > 2000) throw new Error("the restore wrote nothing");
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  first.kill("SIGKILL");
  expect((await first.done).code).toBe(null);
  expect(partials()).toHaveLength(1);
  // bytes where the disk has none: found at the end, whatever else was right
  const cut = join(folder, partials()[0] as string);
  const copy = readFileSync(cut);
  overwrite(cut, MiB, Buffer.from("not of this disk"));
  expect(await hypersdk(folder, args)).toMatchObject({ code: 11, stderr: expect.stringContaining("is not of this disk") as string });
  expect([partials(), readdirSync(folder).includes("large.raw")]).toEqual([[], false]);
  writeFileSync(cut, copy);
  const again = await hypersdk(folder, args);
  expect(again).toMatchObject({ code: 0, stderr: expect.stringMatching(/\d+(\.\d+)? MiB were there from a restore that was cut off/) as string });
  expect(readFileSync(join(folder, "large.raw")).equals(readFileSync(join(large, "disk.raw")))).toBe(true);
  expect(partials()).toEqual([]);
  expect(disk("web")).toContain("web");
});

it("a destination keeps its layout, and an image destination takes no increments", { timeout: 180_000 }, async () => {
  const { folder } = fleet();
  await ok(folder, ["apply", "--auto-approve"]);
  writeFileSync(join(folder, "infrastructure.yaml"), yaml().replace("incremental: true, ", ""));
  await ok(folder, ["apply", "--auto-approve"]);
  expect(await hypersdk(folder, ["run", "nightly"])).toMatchObject({ code: 7, stderr: expect.stringContaining("holds the layout repository") as string });
  writeFileSync(
    join(folder, "infrastructure.yaml"),
    `version: v2\ndestinations:\n  - {name: cellar, url: "file:./cellar", layout: image}\nschedules:\n  - {name: nightly, cron: "0 2 * * *", vms: ["/datacenter/vm/*"], destination: cellar, incremental: true}\n`,
  );
  expect(await hypersdk(folder, ["validate"])).toMatchObject({ code: 3, stdout: expect.stringContaining("HSE026") as string });
});

it.each(["repository", "image"] as const)(
  "with the state file gone, everything is found again in a destination of layout %s, and restored",
  { timeout: 300_000 },
  async (layout) => {
    const { folder, disk } = fleet();
    if (layout === "image") writeFileSync(join(folder, "infrastructure.yaml"), yaml().replace("incremental: true, ", ""));
    await ok(folder, ["apply", "--auto-approve"]);
    copyFileSync(disk("web"), join(folder, "web-0.raw"));
    const before = (JSON.parse(await ok(folder, ["get", "artifacts", "--json"])) as { items: { id: string }[] }).items.map(({ id }) => id).sort();
    const [kept = "", free = ""] = before;
    for (const id of before) await ok(folder, ["hold", id, "--reason", "before the audit"]);
    await ok(folder, ["unhold", free]);
    // a destination that is not there learns of nothing, and is not made
    renameSync(join(folder, "backups"), join(folder, "away"));
    expect(await hypersdk(folder, ["hold", free, "--reason", "not told"])).toMatchObject({
      code: 0,
      stderr: expect.stringContaining("known to the state alone") as string,
    });
    expect(existsSync(join(folder, "backups"))).toBe(false);
    renameSync(join(folder, "away"), join(folder, "backups"));
    rmSync(join(folder, ".hypersdk"), { recursive: true });
    // nothing goes on by itself: a second history would expire what the first one keeps
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 6 });
    rmSync(join(folder, ".hypersdk"), { recursive: true, force: true });
    expect(await ok(folder, ["state", "rebuild", "--from", "file:./backups"])).toContain("2 restore points found");
    expect(await ok(folder, ["state", "rebuild", "--from", "file:./backups"])).toContain("0 restore points found at file:./backups, 2 known before");
    const after = (JSON.parse(await ok(folder, ["get", "artifacts", "--json"])) as { items: { id: string; heldReason: string | null }[] }).items;
    expect(after.map(({ id }) => id).sort()).toEqual(before);
    // what somebody held is held
    expect(after.find(({ id }) => id === kept)?.heldReason).toBe("before the audit");
    expect(after.find(({ id }) => id === free)?.heldReason).toBe(null);
    await ok(folder, ["restore", "--vm", "/datacenter/vm/web", "--to", "web.raw"]);
    expect(readFileSync(join(folder, "web.raw")).equals(readFileSync(join(folder, "web-0.raw")))).toBe(true);
    // what begins again is no first export: the store has what it had
    const begins = await ok(folder, ["plan"]);
    if (layout === "repository") expect(begins).toContain("its changes are not tracked: all is read, what is new is stored");
    expect(begins).not.toContain("the first export");
    writeFileSync(join(folder, "infrastructure.yaml"), readFileSync(join(folder, "infrastructure.yaml"), "utf8").replace("initialExport: immediate, ", ""));
    await ok(folder, ["apply", "--auto-approve"]);
    expect(await ok(folder, ["plan"])).toContain("0 to add, 0 to change, 0 to remove");
    // a state with a history of its own does not become another one
    const other = fleet();
    await ok(other.folder, ["apply", "--auto-approve"]);
    expect(await hypersdk(other.folder, ["state", "rebuild", "--from", `file://${folder}/backups`])).toMatchObject({ code: 6 });
  },
);

it("a repository whose marker is gone is found again, and one with the config of another has no damaged points", { timeout: 300_000 }, async () => {
  const { folder, disk } = fleet(", retry: {attempts: 0}");
  await ok(folder, ["apply", "--auto-approve"]);
  const states = async (): Promise<string[]> =>
    (JSON.parse(await ok(folder, ["get", "artifacts", "--json"])) as { items: { state: string }[] }).items.map(({ state }) => state);
  const before = await states();
  const [first = ""] = (JSON.parse(await ok(folder, ["get", "artifacts", "--json"])) as { items: { id: string }[] }).items.map(({ id }) => id);
  expect(await hypersdk(folder, ["restore", first, "--at", "2020-01-01", "--to", "old.raw"])).toMatchObject({ code: 64 });

  const other = fleet().folder;
  await ok(other, ["apply", "--auto-approve"]);
  const config = readFileSync(join(folder, "backups/config"));
  for (const wrong of [readFileSync(join(other, "backups/config")), Buffer.from("half of it")]) {
    writeFileSync(join(folder, "backups/config"), wrong);
    expect((await hypersdk(folder, ["verify"])).code).toBe(11);
    expect(await states()).toEqual(before);
  }
  // what belongs to another config is told, and nobody's point is damaged by it; what cannot be mended is no success
  writeFileSync(join(folder, "backups/config"), readFileSync(join(other, "backups/config")));
  expect(await hypersdk(folder, ["check"])).toMatchObject({ code: 11, stdout: expect.stringContaining("it belongs to repository") as string });
  expect(await hypersdk(folder, ["repair", "--auto-approve"])).toMatchObject({
    code: 11,
    stdout: expect.stringMatching(/it belongs to repository[\s\S]*2 problems \(2 of them still there\)/) as string,
  });
  expect(await states()).toEqual(before);
  writeFileSync(join(folder, "backups/config"), config);
  expect(await ok(folder, ["verify"])).toContain("0 damaged");

  rmSync(join(folder, "backups/hypersdk-destination.json"));
  expect(await hypersdk(folder, ["run", "nightly"])).toMatchObject({
    code: 7,
    stderr: expect.stringMatching(/hypersdk-destination.json in .* is gone/) as string,
  });
  const rebuilt = await hypersdk(folder, ["state", "rebuild", "--from", "file:./backups", "--state", "new.db"]);
  expect(rebuilt).toMatchObject({ code: 0, stdout: expect.stringContaining("2 restore points found") as string });
  expect(rebuilt.stderr).toMatch(/hypersdk-destination.json in .* is gone: .* needs --adopt/);
  await ok(folder, ["restore", "--vm", "/datacenter/vm/web", "--to", "web.raw", "--state", "new.db"]);
  expect(readFileSync(join(folder, "web.raw")).equals(readFileSync(disk("web")))).toBe(true);
  await ok(folder, ["run", "nightly", "--adopt"]);
  await ok(folder, ["run", "nightly"]);
  expect(await ok(folder, ["check", "--read-data=all"])).toContain("sound");
});

it("an encrypted repository opens with its key alone, and the key is nowhere else", { timeout: 300_000 }, async () => {
  const passphrase = "a passphrase that nobody guesses";
  const { folder, disk } = fleet(', encryption: {key: "${file:key}"}');
  writeFileSync(join(folder, "key"), `${passphrase}\n`);
  const events = join(folder, "events.jsonl");
  expect(await ok(folder, ["plan", "--out", "plan.json"])).toMatch(/ encryption +key \$\{file:key\}\n/);
  await ok(folder, ["apply", "--auto-approve", "--events", events]);
  await ok(folder, ["check", "--read-data"]);
  await ok(folder, ["restore", "--vm", "/datacenter/vm/web", "--to", "web.raw"]);
  expect(readFileSync(join(folder, "web.raw")).equals(readFileSync(disk("web")))).toBe(true);
  // named by its place, and the files know the key of that
  await ok(folder, ["restore", join("backups", "points", objects(folder, "points")[0] as string), "--to", "placed.raw"]);
  const everything = ["plan.json", "events.jsonl", ".hypersdk/state.db", ...objects(folder, "").map((name) => join("backups", name))];
  for (const name of everything) expect([name, readFileSync(join(folder, name)).includes(passphrase)]).toEqual([name, false]);

  rmSync(join(folder, "key"));
  expect(await ok(folder, ["plan"])).toContain("the key of file:./backups cannot be had here");
  for (const args of [["check"], ["verify"], ["restore", "--vm", "/datacenter/vm/web", "--to", "again.raw"]])
    expect(await hypersdk(folder, args)).toMatchObject({ code: 10, stderr: expect.stringContaining("the key cannot be read") as string });
  const failed = await hypersdk(folder, ["run", "nightly"]);
  expect(failed).toMatchObject({ code: 7, stderr: expect.stringContaining("the key cannot be read") as string });

  writeFileSync(join(folder, "old"), passphrase);
  writeFileSync(join(folder, "new"), "another passphrase");
  const there = ["--destination", `file://${folder}/backups`];
  await ok(folder, ["key", "add", ...there, "--key-file", "old", "--new-key-file", "new"]);
  expect(await hypersdk(folder, ["key", "add", ...there, "--key-file", "old", "--new-key-file", "new"])).toMatchObject({
    code: 1,
    stderr: expect.stringContaining("already, by slot") as string,
  });
  const { slots } = result<{ slots: { id: string; isUsed: boolean }[] }>(await ok(folder, ["key", "list", ...there, "--key-file", "new", "--json"]));
  const id = (isUsed: boolean): string => slots.find((slot) => slot.isUsed === isUsed)?.id as string;
  expect(await hypersdk(folder, ["key", "remove", id(true), ...there, "--key-file", "new"])).toMatchObject({ code: 64 });
  await ok(folder, ["key", "remove", id(false), ...there, "--key-file", "new"]);
  expect(await hypersdk(folder, ["check", ...there, "--key-file", "old"])).toMatchObject({ code: 10, stderr: expect.stringContaining("opens none") as string });
  await ok(folder, ["restore", "--vm", "/datacenter/vm/web", "--to", "again.raw", "--key-file", "new"]);
  expect(readFileSync(join(folder, "again.raw")).equals(readFileSync(disk("web")))).toBe(true);
  rmSync(join(folder, ".hypersdk"), { recursive: true });
  await ok(folder, ["state", "rebuild", "--from", `file://${folder}/backups`, "--key-file", "new"]);
  expect(await ok(folder, ["get", "artifacts"])).toContain("/datacenter/vm/web");
});

it("a repository that somebody has replaced, with a key of his own, gets nothing; one that is not mounted is not begun anew", {
  timeout: 300_000,
}, async () => {
  const { folder } = fleet(', retry: {attempts: 0}, encryption: {key: "${file:key}"}');
  execFileSync("age-keygen", ["-o", join(folder, "key")], { stdio: "ignore" });
  await ok(folder, ["apply", "--auto-approve"]);
  // another hypersdk makes a repository for the same identity: its slot opens, its key is another
  const other = fleet(', encryption: {key: "${file:key}"}').folder;
  copyFileSync(join(folder, "key"), join(other, "key"));
  await ok(other, ["apply", "--auto-approve"]);
  renameSync(join(folder, "backups"), join(folder, "aside"));
  cpSync(join(other, "backups"), join(folder, "backups"), { recursive: true });
  copyFileSync(join(folder, "aside/hypersdk-destination.json"), join(folder, "backups/hypersdk-destination.json"));
  expect(await hypersdk(folder, ["run", "nightly"])).toMatchObject({
    code: 7,
    stderr: expect.stringContaining("another key than when it was last written to") as string,
  });
  rmSync(join(folder, "backups"), { recursive: true });
  mkdirSync(join(folder, "backups"));
  expect(await hypersdk(folder, ["run", "nightly"])).toMatchObject({ code: 7, stderr: expect.stringContaining("is it mounted?") as string });
  expect(await hypersdk(folder, ["verify"])).toMatchObject({ code: 1, stderr: expect.stringContaining("is it mounted?") as string });
  expect(readdirSync(join(folder, "backups"))).toEqual([]);
  rmSync(join(folder, "backups"), { recursive: true });
  renameSync(join(folder, "aside"), join(folder, "backups"));
  await ok(folder, ["run", "nightly"]);
  expect(await ok(folder, ["verify"])).toContain("4 restore points verified (restore), 0 damaged");
});

it("a repository that is gone, or another one, is never passed over, and keeps nobody from the others", { timeout: 300_000 }, async () => {
  const { folder } = fleet();
  writeFileSync(
    join(folder, "infrastructure.yaml"),
    `version: v2
destinations:
  - {name: aaa, url: "file:./backups", layout: repository}
  - {name: bbb, url: "file:./other", layout: repository}
schedules:
  - {name: nightly, cron: "0 2 * * *", initialExport: immediate, vms: ["/datacenter/vm/web"], destination: aaa, incremental: true, retry: {attempts: 0}, verify: none}
  - {name: sealed, cron: "0 3 * * *", initialExport: immediate, vms: ["/datacenter/vm/web"], destination: bbb, incremental: true, verify: none, encryption: {key: "\${file:key}"}}
`,
  );
  writeFileSync(join(folder, "key"), "a passphrase that nobody guesses");
  await ok(folder, ["apply", "--auto-approve"]);
  await ok(folder, ["check"]);
  // a URL finds the key that the files have for it
  expect(await ok(folder, ["check", "--destination", `file://${folder}/other`])).toContain("sound");

  renameSync(join(folder, "backups"), join(folder, "aside"));
  const gone = await hypersdk(folder, ["check"]);
  expect(gone).toMatchObject({ code: 1, stdout: expect.stringContaining("bbb: 1 restore point") as string });
  expect(gone.stderr).toMatch(/aaa: aaa is empty, and restore points are recorded there: is it mounted\?/);
  const proved = await hypersdk(folder, ["verify", "--json"]);
  expect(proved.code).toBe(1);
  expect(result(proved.stdout)).toMatchObject({ points: [{ ok: true }], failed: [{ code: "DestinationUnreachable", vm: "/datacenter/vm/web" }] });
  expect(await hypersdk(folder, ["verify"])).toMatchObject({
    code: 1,
    stdout: expect.stringContaining("1 restore point verified (restore), 0 damaged, 1 could not be looked at") as string,
  });
  const doctor = async (): Promise<[what: string, ok: boolean, text: string][]> =>
    result<{ findings: { what: string; ok: boolean; text: string }[] }>((await hypersdk(folder, ["doctor", "--json"])).stdout)
      .findings.filter(({ what }) => what.startsWith("destination.") || what.startsWith("provider."))
      .map(({ what, ok, text }) => [what, ok, text]);
  expect(await doctor()).toEqual([
    ["provider.local", true, "2 VMs"],
    ["destination.aaa", false, expect.stringContaining("is it mounted?")],
    ["destination.bbb", true, expect.stringMatching(/other: repository [0-9a-f]{8}, encrypted, and the key opens it$/)],
  ]);
  const { repositories, failed } = result<{ repositories: { destination: string }[]; failed: unknown[] }>((await hypersdk(folder, ["check", "--json"])).stdout);
  expect([repositories, failed]).toMatchObject([[{ destination: "bbb" }], [{ destination: "aaa", code: "DestinationUnreachable" }]]);
  renameSync(join(folder, "aside"), join(folder, "backups"));
  renameSync(join(folder, "backups/config"), join(folder, "config"));
  expect(await hypersdk(folder, ["check"])).toMatchObject({ code: 11, stderr: expect.stringContaining("its config is gone") as string });
  expect(await ok(folder, ["plan"])).toMatch(/unknown {2}destination\.aaa .*whose config is gone/);
  renameSync(join(folder, "config"), join(folder, "backups/config"));
  writeFileSync(join(folder, "key"), "another passphrase that opens nothing");
  const refused = await hypersdk(folder, ["check"]);
  expect(refused).toMatchObject({ code: 10, stdout: expect.stringContaining("aaa: 1 restore point") as string });
  expect((await doctor()).slice(1)).toMatchObject([
    ["destination.aaa", true, expect.stringContaining("not encrypted")],
    ["destination.bbb", false, expect.stringContaining("the key opens none of the 1 slots of bbb")],
  ]);
  // the slots can be looked at all the same
  const slots = await hypersdk(folder, ["key", "list"]);
  expect(slots).toMatchObject({ code: 0, stderr: expect.stringContaining("the key opens none of the 1 slots") as string });
  expect(slots.stdout).toContain("passphrase");

  const config = JSON.parse(readFileSync(join(folder, "backups/config"), "utf8")) as { digest: string };
  const { digest: _, ...body } = { ...config, id: "11111111-2222-4333-8444-555555555555" };
  writeFileSync(join(folder, "backups/config"), JSON.stringify({ ...body, digest: createHash("sha256").update(JSON.stringify(body)).digest("hex") }));
  expect(await hypersdk(folder, ["run", "nightly"])).toMatchObject({
    code: 7,
    stderr: expect.stringContaining("is another one than when it was last written to") as string,
  });
});

it("a copy lies open where that is asked for, and a longer time of grace is for what is marked, too", { timeout: 300_000 }, async () => {
  const { folder } = fleet();
  const files = (grace: string): void =>
    writeFileSync(
      join(folder, "infrastructure.yaml"),
      `version: v2
destinations:
  - {name: sealed, url: "file:./sealed", layout: repository, expiryGrace: ${grace}}
schedules:
  - {name: nightly, cron: "0 2 * * *", initialExport: immediate, vms: ["/datacenter/vm/web"], destination: sealed, incremental: true, retention: {keepLast: 1}, encryption: {key: "\${file:key}"}}
`,
    );
  files("1h");
  writeFileSync(join(folder, "key"), "a passphrase that nobody guesses");
  await ok(folder, ["apply", "--auto-approve"]);
  await ok(folder, ["run", "nightly"]);
  await ok(folder, ["apply", "--auto-approve"]);
  const goes = async (): Promise<number> => {
    const { items } = result<{ items: { expiresAt: string | null }[] }>(await ok(folder, ["get", "artifacts", "--json"]));
    return Date.parse(items.find(({ expiresAt }) => expiresAt !== null)?.expiresAt ?? "");
  };
  const first = await goes();
  expect(first).toBeGreaterThan(Date.now() + 50 * 60_000);
  files("30d");
  await ok(folder, ["apply", "--auto-approve"]);
  expect(await goes()).toBe(first + 30 * 86_400_000 - 3_600_000);
  files("0s");
  await ok(folder, ["apply", "--auto-approve"]);
  expect(await goes()).toBe(first + 30 * 86_400_000 - 3_600_000);

  const restored = await hypersdk(folder, ["restore", "--vm", "/datacenter/vm/web", "--to", "web.raw"]);
  expect(restored).toMatchObject({
    code: 0,
    stderr: expect.stringMatching(/^\/datacenter\/vm\/web as of \S+Z: point [0-9a-f]{8} of schedule nightly\n/) as string,
  });
  const refused = await hypersdk(folder, ["copy", "sealed", `file://${folder}/open`, "--layout", "image"]);
  expect(refused).toMatchObject({ code: 64, stderr: expect.stringMatching(/is encrypted where it is, and would lie open at[\s\S]*--unencrypted/) as string });
  expect(existsSync(join(folder, "open"))).toBe(false);
  await ok(folder, ["copy", "sealed", `file://${folder}/open`, "--unencrypted"]);
  expect(await hypersdk(folder, ["copy", "sealed", `file://${folder}/open`])).toMatchObject({ code: 64 });
  // named later, without a word of its layout, it is still the repository that it is
  writeFileSync(
    join(folder, "infrastructure.yaml"),
    readFileSync(join(folder, "infrastructure.yaml"), "utf8").replace("schedules:", '  - {name: open, url: "file:./open"}\nschedules:'),
  );
  expect(await ok(folder, ["plan"])).toContain("open holds the layout repository, and the files say image");
  expect(await ok(folder, ["check"])).toMatch(/^open: 2 restore points[\s\S]*^sealed: 2 restore points/m);
});

it("encryption without a key, of images, or in two ways at one destination is refused where it stands", async () => {
  const of = (one: string, other: string): string =>
    `version: v2\nschedules:\n${[one, other].map((more, i) => `  - {name: s${i}, cron: "0 2 * * *", vms: ["/datacenter/vm/*"], destination: "file:./backups"${more}}\n`).join("")}`;
  for (const [one, other, message] of [
    [', incremental: true, encryption: {recipients: ["age1abc"]}', ', incremental: true, encryption: {recipients: ["age1abc"]}', "encryption has no key"],
    [', encryption: {key: "${env:KEY}"}', "", "only a repository is encrypted"],
    [', incremental: true, encryption: {key: "${env:KEY}"}', ", incremental: true", "is encrypted otherwise by schedule s0"],
    [', incremental: true, encryption: {key: "a literal"}', "", "encryption.key"],
  ] as const) {
    const { code, stdout } = await hypersdk(workTree(of(one, other)), ["validate"]);
    expect([message, code, stdout]).toEqual([message, 3, expect.stringContaining(message) as string]);
  }
});
