import { execFileSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { cacheFolder } from "../../src/cli/cache-folder.ts";
import type { Cache } from "../../src/model/ports.ts";
import { hypersdk, temporaryFolder, workTree } from "../support/cli.ts";

it("a cache keeps texts for this user alone, and lets go what is older than 60 days", () => {
  const home = temporaryFolder();
  const folder = join(home, "hypersdk", "things");
  const cache = cacheFolder("things", { XDG_CACHE_HOME: home }) as Cache;
  expect(cache.get("a")).toBeUndefined();
  mkdirSync(folder, { recursive: true });
  for (const [name, days] of [
    ["old.json", 61],
    ["young.json", 59],
  ] as const) {
    writeFileSync(join(folder, name), "{}");
    const at = Date.now() / 1000 - days * 86_400;
    utimesSync(join(folder, name), at, at);
  }
  cache.put("a", "first");
  cache.put("b/../\0", "second");
  expect([cache.get("a"), cache.get("b/../\0")]).toEqual(["first", "second"]);
  expect(readdirSync(folder)).toHaveLength(3);
  expect(readdirSync(folder)).not.toContain("old.json");
  const written = readdirSync(folder).find((name) => name !== "young.json") as string;
  expect(statSync(join(folder, written)).mode & 0o777).toBe(0o600);
});

it("there is none where none is wanted, and one that cannot be written is no cache and no error", () => {
  expect(cacheFolder("things", { XDG_CACHE_HOME: "/x", HYPERSDK_NO_CACHE: "1" })).toBeUndefined();
  expect(cacheFolder("things", {})).toBeUndefined();
  const home = temporaryFolder();
  writeFileSync(join(home, "hypersdk"), "a file");
  expect(cacheFolder("things", { XDG_CACHE_HOME: home })?.get("a")).toBeUndefined();
  expect(cacheFolder("things", { XDG_CACHE_HOME: "relative", HOME: home })?.get("a")).toBeUndefined();
});

it("what was cut off, altered or swapped in a cache is not in it, nor what somebody else put there", () => {
  const home = temporaryFolder();
  const folder = join(home, "hypersdk/things");
  const cache = cacheFolder("things", { XDG_CACHE_HOME: home, HYPERSDK_NO_CACHE: "0" }) as Cache;
  cache.put("a", "first");
  const path = join(folder, readdirSync(folder)[0] as string);
  const kept = readFileSync(path, "utf8");
  for (const text of ["", kept.slice(0, -1), kept.slice(0, 64), kept.replace("first", "worst"), "first", `${"0".repeat(64)}first`]) {
    writeFileSync(path, text);
    expect(cache.get("a")).toBeUndefined();
  }
  cache.put("b", "second");
  const other = join(folder, readdirSync(folder).find((name) => join(folder, name) !== path) as string);
  copyFileSync(other, path);
  expect([cache.get("a"), cache.get("b")]).toEqual([undefined, "second"]);
  if (process.getuid?.() !== 0) return;
  chownSync(folder, 65534, 65534);
  expect(cacheFolder("things", { XDG_CACHE_HOME: home })).toBeUndefined();
});

it("compiled code is kept in a folder of this user's own, and in no other", async () => {
  const cwd = temporaryFolder();
  const code = join(cwd, ".cache/hypersdk/code");
  const files = (): number => (existsSync(code) ? readdirSync(code, { recursive: true }).length : 0);
  const env = { NODE_COMPILE_CACHE: "" };
  expect((await hypersdk(cwd, ["version"], { ...env, HYPERSDK_NO_CACHE: "1" })).code).toBe(0);
  expect(files()).toBe(0);
  expect((await hypersdk(cwd, ["version"], env)).code).toBe(0);
  expect(files()).toBeGreaterThan(2);
  rmSync(code, { recursive: true });
  for (const spoil of [() => mkdirSync(code, { mode: 0o700 }) ?? chmodSync(code, 0o777), () => symlinkSync(cwd, code), () => writeFileSync(code, "")]) {
    spoil();
    expect((await hypersdk(cwd, ["version"], env)).code).toBe(0);
    expect(lstatSync(code).isDirectory() ? files() : 0).toBe(0);
    rmSync(code, { recursive: true });
  }
  expect(readdirSync(cwd)).toEqual([".cache"]);
});

it("a plan says the same of a commit's author, remembered or not, and also when the cache holds nonsense", async () => {
  const cwd = workTree("version: v2\n");
  const authorOf = async (env: Record<string, string> = {}): Promise<unknown> =>
    JSON.parse((await hypersdk(cwd, ["plan", "--json"], env)).stdout).plan.revision.author;
  const author = execFileSync("git", ["log", "-1", "--format=%an <%ae>"], { cwd, encoding: "utf8" }).trim();
  expect([await authorOf({ HYPERSDK_NO_CACHE: "1" }), await authorOf(), await authorOf()]).toEqual([author, author, author]);
  const folder = join(cwd, ".cache/hypersdk/authors");
  expect(readdirSync(folder)).toHaveLength(1);
  chmodSync(join(folder, readdirSync(folder)[0] as string), 0o000);
  expect(await authorOf()).toBe(author);
});
