import { hash } from "node:crypto";
import { lstatSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Cache } from "../model/ports.ts";
import { makeStateFolder } from "../state/folder.ts";
import { toolVersion } from "./tool-version.ts";

/** What is older is made anew: a configuration that changes every hour would fill the folder. */
const keptMs = 60 * 86_400_000;

/**
 * A cache in a folder of this user's own; undefined where none is wanted, or where there is no place for one. What a text is kept under and
 * the text itself are held against their hash: one that was cut off or altered is none.
 */
export function cacheFolder(name: string, { HYPERSDK_NO_CACHE, XDG_CACHE_HOME, HOME }: NodeJS.ProcessEnv): Cache | undefined {
  const home = XDG_CACHE_HOME?.startsWith("/") ? XDG_CACHE_HOME : HOME && join(HOME, ".cache");
  if (!home || !["", "0", undefined].includes(HYPERSDK_NO_CACHE)) return undefined;
  const folder = join(home, "hypersdk", name);
  if (![join(home, "hypersdk"), folder].every(isOwn)) return undefined;
  // a build of its own has a cache of its own, even with the same version
  build ??= `${toolVersion()} ${statSync(new URL(import.meta.url)).mtimeMs}`;
  const pathOf = (key: string): string => join(folder, hash("sha256", `${build}\n${key}`));
  const sealOf = (key: string, text: string): string => hash("sha256", `${key}\n${text}`);
  return {
    get(key) {
      try {
        // a pipe would be waited for
        if (!lstatSync(pathOf(key)).isFile()) return undefined;
        const kept = readFileSync(pathOf(key), "utf8");
        const text = kept.slice(sealLength);
        return kept.startsWith(sealOf(key, text)) ? text : undefined;
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
        writeFileSync(temporary, sealOf(key, text) + text, { mode: 0o600 });
        renameSync(temporary, pathOf(key));
      } catch {
        // a full disk, or a folder of somebody else: it costs time only
      }
    },
  };
}

/** What others put there is not believed. */
function isOwn(folder: string): boolean {
  try {
    const stat = lstatSync(folder, { throwIfNoEntry: false });
    return stat === undefined || (stat.isDirectory() && (process.getuid === undefined || stat.uid === process.getuid()));
  } catch {
    return false;
  }
}

const sealLength = 64;
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
