import { createHash } from "node:crypto";
import { readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Fragment, readFile } from "../config/read-file.ts";
import { makeStateFolder } from "../state/folder.ts";
import { toolVersion } from "./tool-version.ts";

/**
 * What files parsed to, by the hash of their bytes and of this program's version: YAML takes most of the time of a plan in
 * which nothing changed. Losing it costs time only; it holds nothing that the files do not.
 */
export class ParseCache {
  readonly #folder: string | undefined;
  readonly #salt: string;

  constructor(env: NodeJS.ProcessEnv) {
    const home = env["XDG_CACHE_HOME"] ?? (env["HOME"] ? join(env["HOME"], ".cache") : undefined);
    this.#folder = env["HYPERSDK_NO_CACHE"] || !home ? undefined : join(home, "hypersdk", "parse");
    // a build of its own has a cache of its own, even with the same version
    this.#salt = `4 ${toolVersion()} ${statSync(new URL(import.meta.url)).mtimeMs}`;
  }

  fragmentOf(file: string, bytes: Buffer, wasNamed: boolean): Fragment {
    if (this.#folder === undefined) return readFile(file, bytes, wasNamed);
    const key = createHash("sha256").update(`${this.#salt}\n${file}\n${wasNamed}\n`).update(bytes).digest("hex");
    const path = join(this.#folder, `${key}.json`);
    try {
      const known = JSON.parse(readFileSync(path, "utf8")) as Fragment;
      if ([known.items, known.defaults, known.later, known.broken, known.diagnostics].every(Array.isArray)) return known;
    } catch {}
    const fragment = readFile(file, bytes, wasNamed);
    try {
      makeStateFolder(this.#folder);
      const temporary = `${path}.${process.pid}`;
      writeFileSync(temporary, JSON.stringify(fragment), { mode: 0o600 });
      renameSync(temporary, path);
    } catch {}
    return fragment;
  }
}
