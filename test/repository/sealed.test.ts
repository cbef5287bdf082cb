import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { generateIdentity, identityToRecipient } from "age-encryption";
import { beforeEach, describe, expect, it } from "vitest";
import type { Destination } from "../../src/destinations/destination.ts";
import { withDigest } from "../../src/model/digest.ts";
import { addSlot, listSlots, unlock } from "../../src/repository/keys.ts";
import { Repository } from "../../src/repository/repository.ts";
import { open, seal } from "../../src/repository/sealing.ts";
import { temporaryFolder } from "../support/cli.ts";
import { bytes, KiB } from "../support/disks.ts";
import { has } from "../support/qemu.ts";
import { clock, contentOf, destinationAt, exportDisk, passphrase } from "./support.ts";

let root: string;
beforeEach(() => {
  root = temporaryFolder();
});

/** A disk whose bytes would be seen: text that does not compress away, and random chunks. */
function disk(): Buffer {
  const content = bytes(700 * KiB, 3);
  content.write("THE SECRET OF THE GUEST", 300_000);
  return content;
}

function files(): string[] {
  return readdirSync(root, { recursive: true, encoding: "utf8" }).filter((path) => statSync(join(root, path)).isFile());
}

function keyed(secret: string, recipients: readonly string[] = []): Destination {
  return { ...destinationAt(root), encryption: { sealing: { secret: () => secret, recipients }, others: [] } };
}

describe("a sealed repository", () => {
  it("tells nothing of disks, names and hashes to who reads the store", async () => {
    const destination = destinationAt(root, true);
    const path = await exportDisk(destination, disk(), "repository", { vm: "payroll" });
    const all = Buffer.concat(files().map((each) => Buffer.concat([Buffer.from(`${each}\n`), readFileSync(join(root, each))]))).toString("latin1");
    for (const word of ["THE SECRET", "payroll", "contentHash", "HSSEGM", "HSINDX"]) expect([word, all.includes(word)]).toEqual([word, false]);
    expect(await contentOf(destination, path)).toEqual(disk());
  });

  it("stores what it has once, and the same disk under other bytes in another repository", async () => {
    const destination = destinationAt(root, true);
    await exportDisk(destination, disk(), "repository");
    const before = readdirSync(join(root, "packs"));
    await exportDisk(destination, disk(), "repository", { vm: "other" });
    expect(readdirSync(join(root, "packs"))).toEqual(before);
  });

  it("is opened by a second passphrase and by an age identity, and not by a wrong one or none", async () => {
    const identity = await generateIdentity();
    const path = await exportDisk(keyed(passphrase, [await identityToRecipient(identity)]), disk(), "repository");
    const destination = keyed(passphrase);
    const { id } = ((await Repository.open(destination)) as Repository).config;
    await addSlot(destination, id, await unlock(destination, id), "another passphrase", clock.now());
    for (const secret of [passphrase, "another passphrase", identity, `# created: today\n${identity}`])
      expect(await contentOf(keyed(secret), path)).toEqual(disk());
    await expect(contentOf(keyed("a wrong passphrase"), path)).rejects.toMatchObject({ code: "KeyRefused" });
    await expect(contentOf(keyed(await generateIdentity()), path)).rejects.toMatchObject({ code: "KeyRefused" });
    await expect(contentOf(destinationAt(root), path)).rejects.toMatchObject({
      code: "KeyRefused",
      message: expect.stringContaining("no key is given") as string,
    });
  });

  it("gives a recipient that is named later its slot with the next export", async () => {
    await exportDisk(keyed(passphrase), disk(), "repository");
    const identity = await generateIdentity();
    const path = await exportDisk(keyed(passphrase, [await identityToRecipient(identity)]), disk(), "repository");
    await exportDisk(keyed(passphrase, [await identityToRecipient(identity)]), disk(), "repository");
    const { id } = ((await Repository.open(keyed(identity))) as Repository).config;
    expect((await listSlots(keyed(identity), id)).map(({ kind }) => kind).sort()).toEqual(["age", "passphrase"]);
    expect(await contentOf(keyed(identity), path)).toEqual(disk());
  });

  it.skipIf(!has("age"))("keeps a slot that age itself opens, and what it holds opens the repository to the reader of the example", async () => {
    const folder = temporaryFolder();
    const identity = await generateIdentity();
    const path = await exportDisk(keyed(identity), disk(), "repository");
    const slot = JSON.parse(readFileSync(join(root, "keys", readdirSync(join(root, "keys"))[0] as string), "utf8")) as { wrapped: string };
    writeFileSync(join(folder, "identity"), identity);
    const masterKey = execFileSync("age", ["-d", "-i", join(folder, "identity")], { input: slot.wrapped, encoding: "utf8" });
    const reader = join(import.meta.dirname, "../../examples/restore-without-hypersdk/restore.mjs");
    execFileSync(process.execPath, [reader, root, path, "0", join(folder, "disk.raw")], { env: { ...process.env, HYPERSDK_MASTER_KEY: masterKey } });
    expect(readFileSync(join(folder, "disk.raw"))).toEqual(disk());
  });

  it("refuses short keys, and files that want what is there sealed when it is not", async () => {
    await expect(exportDisk(keyed("too short"), disk(), "repository")).rejects.toMatchObject({ code: "KeyRefused" });
    expect(files()).toEqual([]);
    await exportDisk(destinationAt(root), disk(), "repository");
    await expect(exportDisk(keyed(passphrase), disk(), "repository")).rejects.toMatchObject({ code: "KeyRefused" });
  });

  it("whose config was changed to unsealed gets nothing, sealed or not", async () => {
    const destination = destinationAt(root, true);
    const path = await exportDisk(destination, disk(), "repository");
    const config = JSON.parse(readFileSync(join(root, "config"), "utf8")) as Record<string, unknown>;
    delete config["encryption"];
    delete config["digest"];
    writeFileSync(join(root, "config"), JSON.stringify(withDigest(config)));
    await expect(exportDisk(destination, disk(), "repository")).rejects.toMatchObject({ code: "KeyRefused" });
    await expect(contentOf(destination, path)).rejects.toMatchObject({ code: "ArtifactDamaged" });
  });

  it("does not open with slots of another repository, or with none", async () => {
    await exportDisk(keyed(passphrase), disk(), "repository");
    const path = join(root, "keys", readdirSync(join(root, "keys"))[0] as string);
    const { digest: _, ...slot } = JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;
    writeFileSync(path, JSON.stringify(withDigest({ ...slot, repository: "another" })));
    // unwrapped before by this process, so that a new one must ask
    execFails(path);
    rmSync(path);
    execFails(path);
  });

  it("does not take what a hostile slot asks for: gigabytes for a guess", async () => {
    await exportDisk(keyed(passphrase), disk(), "repository");
    const path = join(root, "keys", readdirSync(join(root, "keys"))[0] as string);
    const { digest: _, ...slot } = JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;
    const { id } = ((await Repository.open(keyed(passphrase))) as Repository).config;
    const grown = readFileSync(path);
    writeFileSync(path, Buffer.concat([grown, Buffer.alloc(100_000)]));
    expect(await listSlots(keyed(passphrase), id)).toEqual([]);
    for (const forged of [
      { N: 2 ** 30 },
      { r: 2 ** 20 },
      { p: 2 ** 20 },
      { N: 3 },
      { N: -1 },
      { N: 2.5 },
      { r: "8" },
      { r: 0.5 },
      { p: 1.5 },
      { N: 2 ** 16, r: 1 },
      { salt: 7 },
      { kind: "other" },
    ]) {
      writeFileSync(path, JSON.stringify(withDigest({ ...slot, ...forged })));
      expect(await listSlots(keyed(passphrase), id)).toEqual([]);
    }
  });
});

/** What another process says to the repository, with the right passphrase. */
function execFails(path: string): void {
  const script = `import { Repository } from "./src/repository/repository.ts"; import { destinationAt } from "./test/repository/support.ts";
    await Repository.open(destinationAt(process.argv[1], true)).then(() => process.exit(9), (error) => process.exit(error.code === "ArtifactDamaged" ? 3 : 4));`;
  const top = join(import.meta.dirname, "../..");
  expect(() => execFileSync(process.execPath, ["--input-type=module", "-e", script, join(path, "../..")], { cwd: top, stdio: "pipe" })).toThrow(
    expect.objectContaining({ status: 3 }) as Error,
  );
}

describe("a sealed object", () => {
  const key = bytes(32, 1);

  it("opens for what it was sealed for, with its key, unchanged, and not otherwise", async () => {
    const sealed = await seal(key, "chunk", Buffer.from("content"));
    expect(await open(key, "chunk", sealed)).toEqual(Buffer.from("content"));
    expect(await open(key, "index", sealed)).toBeUndefined();
    expect(await open(bytes(32, 2), "chunk", sealed)).toBeUndefined();
    for (let bit = 0; bit < sealed.length * 8; bit++) {
      const other = Buffer.from(sealed);
      other[bit >> 3] = (other[bit >> 3] as number) ^ (1 << (bit & 7));
      expect([bit, await open(key, "chunk", other)]).toEqual([bit, undefined]);
    }
    for (let length = 0; length < sealed.length; length++) expect(await open(key, "chunk", sealed.subarray(0, length))).toBeUndefined();
  });

  it("is never the same twice", async () => {
    expect(await seal(key, "chunk", Buffer.from("content"))).not.toEqual(await seal(key, "chunk", Buffer.from("content")));
  });
});
