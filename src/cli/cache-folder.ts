import { createHash } from "node:crypto";
import { readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Cache } from "../model/ports.ts";
import { makeStateFolder } from "../state/folder.ts";
import { toolVersion } from "./tool-version.ts";

/** What is older is made anew: a configuration that changes every hour would fill the folder. */
const keptMs = 60 * 86_400_000;

/** A cache in a folder of this user's own; undefined where none is wanted, or where there is no place for one. */
export function cacheFolder(name: string, env: NodeJS.ProcessEnv): Cache | undefined {
  const home = env["XDG_CACHE_HOME"] ?? (env["HOME"] ? join(env["HOME"], ".cache") : undefined);
  if (env["HYPERSDK_NO_CACHE"] || !home) return undefined;
  const folder = join(home, "hypersdk", name);
  // a build of its own has a cache of its own, even with the same version
  build ??= `${toolVersion()} ${statSync(new URL(import.meta.url)).mtimeMs}`;
  const pathOf = (key: string): string => join(folder, `${createHash("sha256").update(`${build}\n${key}`).digest("hex")}.json`);
  return {
    get(key) {
      try {
        return readFileSync(pathOf(key), "utf8");
      } catch {
        return undefined;
      }
    },
    put(key, text) {
      try {
        makeStateFolder(folder);
        if (!cleared.has(folder)) removeOld(folder);
        cleared.add(folder);
        const temporary = `${pathOf(key)}.${process.pid}`;
        writeFileSync(temporary, text, { mode: 0o600 });
        renameSync(temporary, pathOf(key));
      } catch {
        // a full disk, or a folder of somebody else: it costs time only
      }
    },
  };
}

let build: string | undefined;
/** Folders that this process has looked through. */
const cleared = new Set<string>();

function removeOld(folder: string): void {
  for (const name of readdirSync(folder)) {
    const path = join(folder, name);
    const stat = statSync(path, { throwIfNoEntry: false });
    if (stat && stat.mtimeMs < Date.now() - keptMs) rmSync(path, { force: true });
  }
}
