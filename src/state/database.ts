import { accessSync, constants, existsSync, readFileSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { umask } from "node:process";
import Database from "better-sqlite3";
import { errnoText, HypersdkError } from "../model/errors.ts";
import { damageIn, type IsSpec } from "./damage.ts";
import { makeStateFolder } from "./folder.ts";
import { initial } from "./migrations/001-initial.ts";
import { lastDisks } from "./migrations/002-last-disks.ts";
import { proved } from "./migrations/003-proved.ts";
import { progress } from "./migrations/004-progress.ts";

export type Db = Database.Database;

/** Numbered from 1; each runs in a transaction of its own and is never changed once released. */
const migrations: readonly string[] = [initial, lastDisks, proved, progress];

/** So long is waited for another process that is in the middle of something. */
const busyMs = 10_000;

/** `PRAGMA application_id` of a state file: "HYPS". */
const applicationId = 0x48595053;

let opened = "";

/**
 * Opens the state file, making or migrating it with `write`. A file that is not ours, is damaged or was made by a newer
 * version is refused and left as it is.
 */
export function openDatabase(path: string, mode: "read" | "write"): Db {
  opened = path;
  refuseWhatIsNoFile(path);
  if (mode === "write") makeFolderOf(path);
  return unusable(path, () => {
    const before = umask(0o077);
    let db: Db;
    try {
      db = mode === "read" && !isWritable(dirname(path)) ? openCopy(path) : new Database(path, { fileMustExist: mode === "read", timeout: busyMs });
    } finally {
      umask(before);
    }
    try {
      const { version, application, isEmpty } = whatIs(db);
      if (application !== applicationId && !(isEmpty && version === 0))
        throw new HypersdkError("StateUnusable", `${path} is a database of another program`, { hint: "name another file with --state" });
      if (version > migrations.length)
        throw new HypersdkError("StateUnusable", `${path} has state version ${version}; this hypersdk knows up to ${migrations.length}`, {
          hint: "use the newer version that wrote it",
        });
      db.pragma("foreign_keys = ON");
      db.pragma("synchronous = FULL");
      if (mode === "read") db.pragma("query_only = ON");
      else {
        beginWal(db);
        migrate(db, version);
      }
      return db;
    } catch (error) {
      db.close();
      throw error;
    }
  });
}

/** As of one instant: another process may be making the file. */
function whatIs(db: Db): { readonly version: number; readonly application: number; readonly isEmpty: boolean } {
  return db.transaction(() => ({
    version: db.pragma("user_version", { simple: true }) as number,
    application: db.pragma("application_id", { simple: true }) as number,
    isEmpty: (db.prepare("SELECT count(*) FROM sqlite_schema").pluck().get() as number) === 0,
  }))();
}

/** SQLite needs its neighbour files even for reading; where they cannot be made, a copy in memory is read. */
function openCopy(path: string): Db {
  for (let attempt = 0; attempt < 5; attempt++) {
    const wal = existsSync(`${path}-wal`) ? statSync(`${path}-wal`).size : 0;
    if (wal > 0)
      throw new HypersdkError("StateUnusable", `the folder of ${path} cannot be written, and a writer has not closed the state`, {
        hint: "give this user the right to write the folder, or read a copy made with `hypersdk state backup`",
      });
    const before = statSync(path, { bigint: true });
    const bytes = readFileSync(path);
    const after = statSync(path, { bigint: true });
    if (before.mtimeNs !== after.mtimeNs || before.size !== after.size) continue;
    // bytes 18 and 19 say WAL; a database in memory has none
    if (bytes.length > 20) bytes[18] = bytes[19] = 1;
    return new Database(bytes);
  }
  throw new HypersdkError("StateUnusable", `the state file ${path} changes faster than it can be read`);
}

function isWritable(folder: string): boolean {
  try {
    accessSync(folder, constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

/** Of two processes that begin a state at once, one finds it busy, and here SQLite does not wait by itself: both hold what the other wants. */
function beginWal(db: Db): void {
  const until = Date.now() + busyMs;
  for (;;) {
    try {
      db.pragma("journal_mode = WAL");
      return;
    } catch (error) {
      if (!isBusy(error) || Date.now() > until) throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
    }
  }
}

function isBusy(error: unknown): boolean {
  return error instanceof Database.SqliteError && error.code.startsWith("SQLITE_BUSY");
}

function migrate(db: Db, version: number): void {
  for (let next = version; next < migrations.length; next++) {
    db.transaction(() => {
      // another process may have been faster
      if ((db.pragma("user_version", { simple: true }) as number) > next) return;
      db.exec(migrations[next] as string);
      db.pragma(`application_id = ${applicationId}`);
      db.pragma(`user_version = ${next + 1}`);
    }).immediate();
  }
}

function refuseWhatIsNoFile(path: string): void {
  if (!existsSync(path)) return;
  if (statSync(path).isDirectory()) throw new HypersdkError("StateUnusable", `the state file ${path} is a folder`, { hint: "name a file with --state" });
}

function makeFolderOf(path: string): void {
  try {
    makeStateFolder(dirname(path));
  } catch (error) {
    throw new HypersdkError("StateUnusable", `cannot make the folder of the state file ${path}: ${errnoText(error)}`, { cause: error });
  }
}

/** Turns what SQLite says about a file into an error that says what to do. */
export function unusable<T>(path: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw stateError(path, error);
  }
}

export function damagedState(path: string, what: string, cause?: unknown): HypersdkError {
  return new HypersdkError("StateUnusable", `the state file ${path} is damaged or no state file: ${what.split("\n").at(-1)}`, {
    cause,
    hint: "restore it from a backup made with `hypersdk state backup`, or move it away and find everything again: `hypersdk state rebuild --from` each destination",
  });
}

/**
 * What is wrong with the state file that was opened last, for who has met something that cannot be: a value that changed under the program
 * looks like a bug of it. Undefined where the file says nothing, or there is none.
 */
export function openedStateDamage(isSpec: IsSpec): HypersdkError | undefined {
  if (opened === "") return undefined;
  try {
    const db = openDatabase(opened, "read");
    try {
      const found = damageIn(db, isSpec);
      return found === undefined ? undefined : damagedState(opened, found);
    } finally {
      db.close();
    }
  } catch (error) {
    return error instanceof HypersdkError ? error : undefined;
  }
}

/** What SQLite says in the middle of some work, of the file that was opened last. */
export function openedStateError(error: unknown): unknown {
  return stateError(opened, error);
}

export function stateError(path: string, error: unknown): unknown {
  const code = error instanceof Database.SqliteError ? error.code : undefined;
  if (code === undefined) return error;
  const { message } = error as Error;
  if (code === "SQLITE_ERROR" && /^no such (table|column)/.test(message)) return damagedState(path, message, error);
  // a memory file beside it that cannot grow
  const isFull = code === "SQLITE_FULL" || code === "SQLITE_IOERR_SHMSIZE";
  const fail = (message: string, hint: string): HypersdkError => new HypersdkError(isFull ? "StateFull" : "StateUnusable", message, { cause: error, hint });
  if (code === "SQLITE_NOTADB" || code.startsWith("SQLITE_CORRUPT")) return damagedState(path, code, error);
  if (isFull) return fail(`no space left for the state file ${path}`, "make room and run the command again: nothing recorded is lost");
  if (code.startsWith("SQLITE_CANTOPEN")) return fail(`cannot open the state file ${path}`, "check that the folder is there and that this user may use it");
  if (code.startsWith("SQLITE_READONLY")) return fail(`the state file ${path} cannot be written`, "give this user the right to write the file and its folder");
  if (code.startsWith("SQLITE_IOERR")) return fail(`the state file ${path} cannot be read or written: ${code}`, "check the disk that holds it");
  if (isBusy(error)) return new HypersdkError("LockHeld", `the state file ${path} is in use by another process`, { cause: error });
  return error;
}
