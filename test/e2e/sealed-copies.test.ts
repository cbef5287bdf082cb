import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { generateIdentity, identityToRecipient } from "age-encryption";
import { expect, it } from "vitest";
import { hypersdk, ok, type Ran, workTree } from "../support/cli.ts";
import { MiB, writeRaw } from "../support/disks.ts";
import { result } from "../support/schemas.ts";

/** Two machines, and three keys. */
function fleet(yaml: string = "version: v2\n"): string {
  const folder = workTree(yaml);
  for (const vm of ["db", "web"]) {
    mkdirSync(join(folder, "machines", vm), { recursive: true });
    writeRaw(disk(folder, vm), { sizeBytes: 2 * MiB + 512, islands: [{ offset: 0, length: MiB }] });
  }
  for (const name of ["a", "b", "c"]) writeFileSync(join(folder, `key-${name}`), `a passphrase that nobody guesses, ${name}`);
  return folder;
}

const disk = (folder: string, vm: string): string => join(folder, "machines", vm, "disk.raw");

/** db is exported to `a` with the key a, web to `b` with the key b, and they are copied to the cellar. */
const twoKeys = (more: { readonly a?: string; readonly b?: string; readonly destinations?: string; readonly schedules?: string } = {}): string =>
  `version: v2
destinations:
  - {name: cellar, url: "file:./cellar", layout: repository}
${more.destinations ?? ""}schedules:
${(["a", "b"] as const).map((name) => `  - {name: ${name}, cron: "0 2 * * *", initialExport: immediate, vms: ["/datacenter/vm/${name === "a" ? "db" : "web"}"], destination: "file:./${name}", incremental: true, encryption: {key: "\${file:key-${name}}"${more[name] ?? ""}}}`).join("\n")}
${more.schedules ?? ""}`;

interface Listed {
  readonly id: string;
  readonly destination: string;
  readonly vm: string;
  readonly instant: string;
  readonly state: string;
}

async function fails(folder: string, args: readonly string[], code: number, message: string): Promise<void> {
  const ran = await hypersdk(folder, args);
  expect([args.join(" "), ran]).toMatchObject([args.join(" "), { code, stderr: expect.stringContaining(message) as string }]);
}

const points = async (folder: string): Promise<Listed[]> => result<{ items: Listed[] }>(await ok(folder, ["get", "artifacts", "--json"])).items;
const slots = (folder: string): string[] => readdirSync(join(folder, "keys"));
/** What opens a repository: `check` with this key alone. */
const openedBy = async (folder: string, name: string, key: string): Promise<boolean> =>
  (await hypersdk(folder, ["check", "--destination", `file://${join(folder, name)}`, "--key-file", key])).code === 0;

it("a copy of what is encrypted is encrypted with the same key, and every command finds it", { timeout: 300_000 }, async () => {
  const folder = fleet();
  writeFileSync(join(folder, "key"), "a passphrase that nobody guesses");
  writeFileSync(
    join(folder, "infrastructure.yaml"),
    `version: v2
destinations:
  - {name: sealed, url: "file:./sealed", layout: repository}
  - {name: cellar, url: "file:./cellar", layout: repository}
schedules:
  - {name: nightly, cron: "0 2 * * *", initialExport: immediate, vms: ["/datacenter/vm/web"], destination: sealed, incremental: true, encryption: {key: "\${file:key}"}}
`,
  );
  await ok(folder, ["apply", "--auto-approve"]);
  expect(await ok(folder, ["copy", "sealed", "cellar"])).toContain("1 restore point copied");
  const config = JSON.parse(readFileSync(join(folder, "cellar/config"), "utf8")) as { encryption?: object };
  expect(config.encryption).toBeDefined();
  await ok(folder, ["run", "nightly"]);
  expect(await ok(folder, ["copy", "sealed", "cellar"])).toContain("1 restore point copied to cellar, 1 there already");
  expect(await ok(folder, ["plan"])).not.toContain("exports will fail");
  for (const command of ["check", "compact"]) expect(await ok(folder, [command])).toContain("cellar: ");
  expect(await ok(folder, ["doctor"])).toMatch(/✓ destination\.cellar .* encrypted, and the key opens it/);
  expect(await ok(folder, ["verify"])).toContain("4 restore points verified");
  const { items } = result<{ items: { id: string; destination: string; instant: string }[] }>(await ok(folder, ["get", "artifacts", "--json"]));
  // retention counts them there, and looks whether what stays is whole before something goes
  const yaml = join(folder, "infrastructure.yaml");
  writeFileSync(
    yaml,
    readFileSync(yaml, "utf8")
      .replaceAll("layout: repository}", "layout: repository, expiryGrace: 0s}")
      .replace("incremental: true", "incremental: true, retention: {keepLast: 1}"),
  );
  await ok(folder, ["apply", "--auto-approve"]);
  await ok(folder, ["apply", "--auto-approve"]);
  expect(await ok(folder, ["check"])).toMatch(/^cellar: 1 restore point,[\s\S]*^sealed: 1 restore point,/m);
  const copies = items.filter(({ destination }) => destination === "cellar").sort((a, b) => (a.instant < b.instant ? 1 : -1));
  rmSync(join(folder, "sealed"), { recursive: true });
  await ok(folder, ["restore", copies[0]?.id as string, "--to", "web.raw"]);
  expect(readFileSync(join(folder, "web.raw")).equals(readFileSync(disk(folder, "web")))).toBe(true);
});

it("copies of what two keys seal are opened with either, kept by retention, and never lie open unasked", { timeout: 300_000 }, async () => {
  const folder = fleet();
  for (const name of ["a", "b"]) writeFileSync(join(folder, `key-${name}`), `a passphrase that nobody guesses, ${name}`);
  writeFileSync(
    join(folder, "infrastructure.yaml"),
    `version: v2
destinations:
  - {name: cellar, url: "file:./cellar", layout: repository, expiryGrace: 0s}
  - {name: unused, url: "file:./unused"}
schedules:
${["a", "b"].map((name) => `  - {name: ${name}, cron: "0 2 * * *", vms: ["/datacenter/vm/${name === "a" ? "db" : "web"}"], destination: "file:./${name}", incremental: true, retention: {keepLast: 1}, encryption: {key: "\${file:key-${name}}"}}`).join("\n")}
  - {name: later, cron: "0 3 * * *", vms: ["/datacenter/vm/web"], destination: unused, incremental: true, encryption: {key: "\${file:key-a}"}}
`,
  );
  await ok(folder, ["apply", "--auto-approve"]);
  for (const target of ["unused", "file:./images"])
    for (const name of ["a", "b"]) {
      await ok(folder, ["run", name]);
      expect(await hypersdk(folder, ["copy", `file:./${name}`, target, "--layout", "image"])).toMatchObject({ code: 64 });
    }
  expect(existsSync(join(folder, "unused"))).toBe(false);
  // the second finds a repository that was sealed with the key of the first, and another command one with either
  for (const name of ["b", "a", "b"]) await ok(folder, ["copy", `file:./${name}`, "cellar"]);
  await ok(folder, ["copy", "cellar", "file:./usb"]);
  expect(await ok(folder, ["verify"])).toContain(" 0 damaged");
  expect(await ok(folder, ["check"])).toMatch(/^cellar: 4 restore points/m);
  const [manifest] = readdirSync(join(folder, "usb/points"), { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".json"));
  await ok(folder, ["verify", join(folder, "usb/points", manifest as string)]);
  await ok(folder, ["apply", "--auto-approve"]);
  await ok(folder, ["apply", "--auto-approve"]);
  expect(await ok(folder, ["check"])).toMatch(/^cellar: 2 restore points/m);
  for (const name of ["a", "b"]) rmSync(join(folder, name), { recursive: true });
  const { items } = result<{ items: { id: string; destination: string; vm: string }[] }>(await ok(folder, ["get", "artifacts", "--json"]));
  const copied = items.find(({ destination, vm }) => destination === "cellar" && vm === "/datacenter/vm/web");
  await ok(folder, ["restore", copied?.id as string, "--to", "web.raw"]);
  expect(readFileSync(join(folder, "web.raw")).equals(readFileSync(disk(folder, "web")))).toBe(true);
});

it("repair and the keys of a copy have to do with the key that opens it, and with no other of the files", { timeout: 300_000 }, async () => {
  const folder = fleet(twoKeys());
  await ok(folder, ["apply", "--auto-approve"]);
  await ok(folder, ["copy", "file:./b", "cellar"]);
  await ok(folder, ["repair", "--destination", "cellar", "--auto-approve"]);
  expect(await openedBy(folder, "cellar", "key-a")).toBe(false);
  const listed = result<{ keyProblem: string | null; slots: { isUsed: boolean }[] }>(await ok(folder, ["key", "list", "--destination", "cellar", "--json"]));
  expect(listed).toMatchObject({ keyProblem: null, slots: [{ isUsed: true }] });
  const [slot] = slots(join(folder, "cellar"));
  const remove = ["key", "remove", (slot as string).slice(0, 8), "--destination", "cellar"];
  await fails(folder, remove, 64, "the only slot");
  // a key that cannot be had keeps nobody from the others
  renameSync(join(folder, "key-a"), join(folder, "key-a.away"));
  await fails(folder, remove, 64, "the only slot");
  await ok(folder, ["repair", "--destination", "cellar", "--auto-approve"]);
  await ok(folder, ["key", "add", "--destination", "cellar", "--new-key-file", "key-c"]);
  await ok(folder, [
    "key",
    "remove",
    slots(join(folder, "cellar"))
      .find((each) => each !== slot)
      ?.slice(0, 8) as string,
    "--destination",
    "cellar",
  ]);
  expect(slots(join(folder, "cellar"))).toEqual([slot]);
  // of two that do not fit, the one that could not be tried is named
  renameSync(join(folder, "key-b"), join(folder, "key-b.away"));
  renameSync(join(folder, "key-a.away"), join(folder, "key-a"));
  await fails(folder, ["check", "--destination", "cellar"], 10, "key-b");
  expect((await hypersdk(folder, ["plan"])).stderr).not.toContain("cellar");
});

it("who gets slots for one key's copies gets none for another's, and has them in copies of copies", { timeout: 300_000 }, async () => {
  const identities = [await generateIdentity(), await generateIdentity()] as const;
  const [a, b] = await Promise.all(identities.map(async (each) => `, recipients: [${await identityToRecipient(each)}]`));
  const folder = fleet(twoKeys({ a: a as string, b: b as string }));
  for (const [i, identity] of identities.entries()) writeFileSync(join(folder, `identity-${i}`), identity);
  await ok(folder, ["apply", "--auto-approve"]);
  for (const name of ["a", "b"]) await ok(folder, ["copy", `file:./${name}`, "cellar"]);
  await ok(folder, ["copy", "cellar", "file:./usb"]);
  for (const name of ["cellar", "usb"]) {
    expect(slots(join(folder, name)).length).toBe(2);
    expect([await openedBy(folder, name, "identity-0"), await openedBy(folder, name, "identity-1")]).toEqual([true, false]);
  }
});

it("a copy is sealed with the key of its schedule, and nobody else's recipients get in", { timeout: 300_000 }, async () => {
  const identities = [await generateIdentity(), await generateIdentity()] as const;
  const [one, two] = await Promise.all(identities.map((each) => identityToRecipient(each)));
  // the key of the first is a recipient of the second; a third has the key of the second, and no recipients
  const folder = fleet(
    twoKeys({
      a: `, recipients: [${two}]`,
      b: `, recipients: [${one}]`,
      schedules:
        '  - {name: n, cron: "0 2 * * *", initialExport: immediate, vms: ["/datacenter/vm/web"], destination: "file:./n", incremental: true, encryption: {key: "${file:key-b}"}}\n',
    }).replace("key-a", "identity-0"),
  );
  for (const [i, identity] of identities.entries()) writeFileSync(join(folder, `identity-${i}`), identity);
  await ok(folder, ["apply", "--auto-approve"]);
  await ok(folder, ["copy", "file:./n", "file:./one"]);
  await ok(folder, ["copy", "file:./one", "file:./two"]);
  expect(slots(join(folder, "two")).length).toBe(1);
  await ok(folder, ["copy", "file:./b", "cellar"]);
  await ok(folder, ["copy", "cellar", "file:./usb"]);
  await ok(folder, ["copy", "file:./a", "cellar"]);
  for (const name of ["cellar", "usb"])
    expect([await openedBy(folder, name, "key-b"), await openedBy(folder, name, "identity-0"), await openedBy(folder, name, "identity-1")]).toEqual([
      true,
      true,
      false,
    ]);
});

it("a repository that somebody has put in the place of a copy takes no further one", { timeout: 300_000 }, async () => {
  const identity = await generateIdentity();
  const yaml = twoKeys({
    schedules: '  - {name: later, cron: "0 3 * * *", suspend: true, vms: ["/datacenter/vm/none*"], destination: "file:./evil", incremental: true}\n',
  });
  const folder = fleet(yaml.replace("key-a", "identity"));
  writeFileSync(join(folder, "identity"), identity);
  await ok(folder, ["apply", "--auto-approve"]);
  await ok(folder, ["copy", "file:./a", "cellar"]);
  // who can write there reads the recipient in a slot, and gives it one of his own
  const evil = fleet(twoKeys({ b: `, recipients: [${await identityToRecipient(identity)}]` }));
  await ok(evil, ["apply", "--auto-approve"]);
  rmSync(join(folder, "cellar/packs"), { recursive: true });
  for (const name of ["config", "keys", "points", "segments", "index"]) {
    rmSync(join(folder, "cellar", name), { recursive: true, force: true });
    if (name === "config" || name === "keys") cpSync(join(evil, "b", name), join(folder, "cellar", name), { recursive: true });
  }
  await fails(folder, ["copy", "file:./a", "cellar"], 10, "another key than when it was last written to");
  expect(existsSync(join(folder, "cellar/packs"))).toBe(false);
  await ok(folder, ["copy", "file:./a", "cellar", "--adopt"]);
  await ok(folder, ["run", "a"]);
  await ok(folder, ["copy", "file:./a", "cellar"]);
});

it("a key that is refused, and a place that another writes to, are refused before anything is written there", { timeout: 300_000 }, async () => {
  const folder = fleet(
    twoKeys({
      destinations:
        '  - {name: plain, url: "file:./plain", layout: repository}\n  - {name: also-plain, url: "file:./plain", layout: repository}\n  - {name: safe, url: "file:./safe", layout: repository}\n',
      schedules: `  - {name: p, cron: "0 3 * * *", vms: ["/datacenter/vm/web"], destination: plain, incremental: true}
  - {name: s, cron: "0 3 * * *", suspend: true, vms: ["/datacenter/vm/none*"], destination: safe, incremental: true, encryption: {key: "\${env:NOT_SET}"}}
`,
    }),
  );
  await ok(folder, ["apply", "--auto-approve"]);
  for (const name of ["plain", "also-plain"]) await fails(folder, ["copy", "file:./a", name], 64, `schedule p exports to ${name} unencrypted`);
  await fails(folder, ["copy", "file:./a", "safe"], 10, "NOT_SET");
  for (const name of ["plain", "safe"]) expect(existsSync(join(folder, name))).toBe(false);
  // one that can be had, and not be used
  const inSafe = (key: string): Promise<Ran> => hypersdk(folder, ["copy", "file:./a", "safe"], { NOT_SET: key });
  for (const key of ["short", "AGE-SECRET-KEY-1BROKEN", await identityToRecipient(await generateIdentity())])
    expect(await inSafe(key)).toMatchObject({ code: 10 });
  expect(existsSync(join(folder, "safe"))).toBe(false);
  await ok(folder, ["run", "p"]);
  await fails(folder, ["copy", "file:./a", "plain"], 64, "would lie open");
  // somebody else's, which no key here opens, stays his
  const theirs = fleet(twoKeys().replaceAll("key-b", "key-c"));
  await ok(theirs, ["apply", "--auto-approve"]);
  await fails(folder, ["copy", "file:./a", `file://${theirs}/b`, "--adopt"], 10, "open none of the 1 slots");
  await ok(theirs, ["run", "b"]);
  // with a key for what those of the files do not open, at either end
  await ok(folder, ["copy", "file:./a", `file://${theirs}/b`, "--adopt", "--key-file", "key-c"]);
  await ok(folder, ["copy", "plain", `file://${theirs}/b`, "--key-file", "key-c"]);
  await fails(folder, ["copy", "plain", `file://${theirs}/b`, "--key-file", "key-gone"], 10, "key-gone");
  // and one that has lost its marker is taken where that is said
  rmSync(join(theirs, "b", "hypersdk-destination.json"));
  await fails(folder, ["copy", "file:./b", `file://${theirs}/b`, "--key-file", "key-c"], 6, "--adopt");
  await ok(folder, ["copy", "file:./b", `file://${theirs}/b`, "--key-file", "key-c", "--adopt"]);
  rmSync(join(theirs, "b", "hypersdk-destination.json"));
  expect(await ok(folder, ["copy", "file:./b", `file://${theirs}/b`, "--key-file", "key-c", "--adopt"])).toContain("0 restore points copied");
  await ok(folder, ["copy", "file:./b", `file://${theirs}/b`, "--key-file", "key-c"]);
});

it("a place that was emptied, but for what says whose it is, gets nothing new", { timeout: 300_000 }, async () => {
  const folder = fleet(
    twoKeys({
      schedules:
        '  - {name: open, cron: "0 2 * * *", initialExport: immediate, vms: ["/datacenter/vm/web"], destination: "file:./open", incremental: true, retry: {attempts: 0}}\n',
    }),
  );
  await ok(folder, ["apply", "--auto-approve"]);
  await ok(folder, ["copy", "file:./a", "cellar"]);
  for (const name of ["cellar", "open"])
    for (const each of readdirSync(join(folder, name))) if (each !== "hypersdk-destination.json") rmSync(join(folder, name, each), { recursive: true });
  await fails(folder, ["copy", "file:./a", "cellar"], 1, "is empty, and restore points are recorded there");
  const ran = await hypersdk(folder, ["run", "open"]);
  expect([ran.code, ran.stdout + ran.stderr]).toEqual([7, expect.stringContaining("is empty, and restore points are recorded there") as string]);
  for (const name of ["cellar", "open"]) expect(readdirSync(join(folder, name))).toEqual(["hypersdk-destination.json"]);
  expect(await ok(folder, ["copy", "file:./a", "cellar", "--adopt"])).toContain("1 restore point copied");
  await ok(folder, ["run", "open", "--adopt"]);
});

it("restore --vm names a copy where the key of what was chosen cannot be had", { timeout: 300_000 }, async () => {
  const folder = fleet(twoKeys());
  await ok(folder, ["apply", "--auto-approve"]);
  await ok(folder, ["copy", "file:./a", "cellar"]);
  await ok(folder, ["copy", "file:./b", "cellar"]);
  renameSync(join(folder, "key-b"), join(folder, "key-b.away"));
  const { code, stderr } = await hypersdk(folder, ["restore", "--vm", "/datacenter/vm/web", "--to", "web.raw"]);
  expect([code, stderr]).toEqual([10, expect.stringMatching(/the next one is [0-9a-f]{8} of schedule b, as of .*, at cellar/) as string]);
  const copied = (await points(folder)).find(({ destination, vm }) => destination === "cellar" && vm === "/datacenter/vm/web");
  await ok(folder, ["restore", copied?.id as string, "--to", "web.raw"]);
  expect(readFileSync(join(folder, "web.raw")).equals(readFileSync(disk(folder, "web")))).toBe(true);
});
