import { existsSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import Database from "better-sqlite3";
import { HypersdkError } from "../model/errors.ts";
import { makeStateFolder } from "./folder.ts";

const askAgainMs = 100;

/**
 * Proof that a process lives: an SQLite file of its own that it holds with `BEGIN EXCLUSIVE`. The kernel frees it however the
 * process ends, and honours it across containers that share the folder; a process that is merely stopped keeps it.
 */
export class ProcessLock {
  readonly #path: string;
  readonly #db: Database.Database;

  private constructor(path: string, db: Database.Database) {
    this.#path = path;
    this.#db = db;
  }

  static hold(folder: string, holder: string): ProcessLock {
    makeStateFolder(folder);
    const path = lockPath(folder, holder);
    const db = new Database(path, { timeout: 0 });
    db.exec("BEGIN EXCLUSIVE");
    return new ProcessLock(path, db);
  }

  /**
   * One process at a time in a folder that is ours alone, such as a checkout. Waits for whoever is in it, and lets others of this
   * process go on meanwhile. @throws LockHeld after `timeoutMs`
   */
  static async enter(folder: string, timeoutMs: number, signal?: AbortSignal): Promise<ProcessLock> {
    makeStateFolder(folder);
    const path = lockPath(folder, "in-use");
    for (let waitedMs = 0; ; waitedMs += askAgainMs) {
      const db = new Database(path, { timeout: 0 });
      try {
        db.exec("BEGIN EXCLUSIVE");
        return new ProcessLock(path, db);
      } catch (error) {
        db.close();
        if (waitedMs >= timeoutMs) throw new HypersdkError("LockHeld", `another process works in ${folder}`, { cause: error, hint: "wait until it has ended" });
      }
      await sleep(askAgainMs, undefined, signal ? { signal } : {});
    }
  }

  /** Frees the lock and leaves its file, which another process may be waiting for. */
  leave(): void {
    this.#db.close();
  }

  release(): void {
    this.#db.close();
    removeLock(this.#path);
  }
}

/** True while the process that holds `holder`'s lock lives. A lock that is free is removed. */
export function isAlive(folder: string, holder: string): boolean {
  const path = lockPath(folder, holder);
  if (!existsSync(path)) return false;
  let db: Database.Database;
  try {
    db = new Database(path, { fileMustExist: true, timeout: 0 });
  } catch {
    return false;
  }
  try {
    db.exec("BEGIN EXCLUSIVE");
    db.exec("ROLLBACK");
  } catch (error) {
    return error instanceof Database.SqliteError && error.code.startsWith("SQLITE_BUSY");
  } finally {
    db.close();
  }
  removeLock(path);
  return false;
}

function lockPath(folder: string, holder: string): string {
  return join(folder, `${holder}.lock`);
}

function removeLock(path: string): void {
  rmSync(path, { force: true });
  rmSync(`${path}-journal`, { force: true });
}
