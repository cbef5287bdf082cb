import { createHash } from "node:crypto";
import { type Fragment, readFile } from "../config/read-file.ts";
import type { Cache } from "../model/ports.ts";
import { cacheFolder } from "./cache-folder.ts";

/**
 * What files parsed to, by the hash of their bytes and of this program's version: YAML takes most of the time of a plan in
 * which nothing changed. Losing it costs time only; it holds nothing that the files do not.
 */
export class ParseCache {
  readonly #cache: Cache | undefined;

  constructor(env: NodeJS.ProcessEnv) {
    this.#cache = cacheFolder("parse", env);
  }

  fragmentOf(file: string, bytes: Buffer, wasNamed: boolean): Fragment {
    if (!this.#cache) return readFile(file, bytes, wasNamed);
    const key = createHash("sha256").update(`4\n${file}\n${wasNamed}\n`).update(bytes).digest("hex");
    try {
      const known = JSON.parse(this.#cache.get(key) ?? "{}") as Fragment;
      if ([known.items, known.defaults, known.later, known.broken, known.diagnostics].every(Array.isArray)) return known;
    } catch {}
    const fragment = readFile(file, bytes, wasNamed);
    this.#cache.put(key, JSON.stringify(fragment));
    return fragment;
  }
}
