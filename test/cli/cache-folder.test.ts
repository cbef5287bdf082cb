import { execFileSync } from "node:child_process";
import { chmodSync, mkdirSync, readdirSync, statSync, utimesSync, writeFileSync } from "node:fs";
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
  const cache = cacheFolder("things", { XDG_CACHE_HOME: home }) as Cache;
  cache.put("a", "first");
  expect(cache.get("a")).toBeUndefined();
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
