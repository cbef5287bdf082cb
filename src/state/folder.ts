import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";

/**
 * Makes a folder that is this user's alone, and those that lead to it. In a work tree, it keeps itself out of git: a committed state would
 * travel to places where it is wrong.
 */
export function makeStateFolder(folder: string): void {
  make(resolve(folder));
  if (basename(folder) !== ".hypersdk") return;
  try {
    writeFileSync(join(folder, ".gitignore"), "*\n!infrastructure.schema.json\n", { flag: "wx" });
  } catch {
    // it is there already, or cannot be: a courtesy, on which nothing depends
  }
}

/** Not by `recursive`, which never ends where a file system says ENOENT to every new name, as /proc does. */
function make(folder: string): void {
  if (existsSync(folder)) return;
  make(dirname(folder));
  try {
    mkdirSync(folder, { mode: 0o700 });
  } catch (error) {
    // another process may have been faster
    if (!existsSync(folder)) throw error;
  }
}
