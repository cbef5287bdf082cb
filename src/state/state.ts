import { chmodSync, existsSync, statSync } from "node:fs";
import { errnoText, HypersdkError } from "../model/errors.ts";
import { epochMsOf, type Instant, instantOf } from "../model/instant.ts";
import type { Clock, Random } from "../model/ports.ts";
import type { Recorded, RecordedRun } from "../model/recorded.ts";
import { Artifacts } from "./artifacts.ts";
import { AuditLog } from "./audit.ts";
import { Configuration } from "./configuration.ts";
import { damageIn, type IsSpec } from "./damage.ts";
import { type Db, damagedState, openDatabase, stateError, unusable } from "./database.ts";
import { exportScope, type Lease, Leases } from "./leases.ts";
import { ProcessLock } from "./process-lock.ts";
import { Runs } from "./runs.ts";

/** The lineage of a state that has no file yet. */
const newLineage = "new";

/** How far back ended runs are shown to the planner: the longest wait that a dependency may have is one cron period. */
const dependencyHorizonMs = 400 * 86_400_000;

/** The state file, open. Everything durable that hypersdk knows. */
export class State {
  readonly path: string;
  readonly configuration: Configuration;
  readonly runs: Runs;
  readonly artifacts: Artifacts;
  readonly audit: AuditLog;
  readonly leases: Leases;
  readonly #db: Db;
  readonly #lock: ProcessLock | undefined;
  readonly #inode: number | undefined;
  /** Leases that could not be given back yet. */
  #ended: Lease[] = [];

  private constructor(path: string, db: Db, holder: string, lock: ProcessLock | undefined) {
    this.path = path;
    this.#db = db;
    this.#lock = lock;
    this.#inode = statSync(path, { throwIfNoEntry: false })?.ino;
    this.configuration = new Configuration(db);
    this.runs = new Runs(db);
    this.artifacts = new Artifacts(db);
    this.audit = new AuditLog(db);
    this.leases = new Leases(db, lockFolder(path), holder);
  }

  /** For readers; undefined when there is no state file yet. */
  static openForReading(path: string): State | undefined {
    if (!existsSync(path)) return undefined;
    const db = openDatabase(path, "read");
    // a process that died, or had no room, while it made the file has recorded nothing
    if ((db.pragma("user_version", { simple: true }) as number) > 0) return new State(path, db, "reader", undefined);
    db.close();
    return undefined;
  }

  /** For writers; makes the file where there is none. */
  static openForWriting(path: string, random: Random): State {
    const db = openDatabase(path, "write");
    return unusable(path, () => {
      const holder = random.uuid();
      const state = new State(path, db, holder, ProcessLock.hold(lockFolder(path), holder));
      db.transaction(() => {
        state.leases.dropDead();
        if (state.configuration.meta("lineage") !== undefined) return;
        state.configuration.setMeta("lineage", random.uuid());
        state.configuration.setMeta("serial", "0");
      }).immediate();
      try {
        chmodSync(path, 0o600);
      } catch (error) {
        state.close();
        throw new HypersdkError("StateUnusable", `the permissions of the state file ${path} cannot be set: ${errnoText(error)}`, {
          cause: error,
          hint: "run as the user to whom it belongs, or name another with --state",
        });
      }
      return state;
    });
  }

  get lineage(): string {
    return this.configuration.meta("lineage") ?? newLineage;
  }

  get serial(): number {
    return Number(this.configuration.meta("serial") ?? 0);
  }

  /**
   * Goes on where a state that is lost left off, so that what it wrote is this one's own. In a transaction.
   * @throws DestinationForeign when this state has a history of its own
   */
  continueLineage(lineage: string): void {
    if (lineage === this.lineage) return;
    if (this.artifacts.list().length > 0 || this.runs.open().length > 0)
      throw new HypersdkError(
        "DestinationForeign",
        `this state (${this.lineage.slice(0, 8)}) has restore points of its own, the destination belongs to ${lineage.slice(0, 8)}`,
        {
          hint: "name a new state file with --state, or take the destination over with apply --adopt",
        },
      );
    this.configuration.setMeta("lineage", lineage);
  }

  /** Whether the file that is open is still the one that others find under its name. */
  isInPlace(): boolean {
    return statSync(this.path, { throwIfNoEntry: false })?.ino === this.#inode;
  }

  recorded(now: Instant): Recorded {
    return unusable(this.path, () => ({
      lineage: this.lineage,
      serial: this.serial,
      resources: this.configuration.resources(),
      protections: this.configuration.protections(),
      points: this.artifacts.list(),
      runs: this.#runsAsTheyAre(now),
      suspended: this.configuration.suspensions(),
      unmanaged: this.configuration.unmanaged(),
    }));
  }

  /** A run whose process is gone is one that waits: the next apply clears what it left and starts it anew. */
  #runsAsTheyAre(now: Instant): RecordedRun[] {
    const runs = this.runs.forPlanner(instantOf(epochMsOf(now) - dependencyHorizonMs));
    if (!runs.some(({ state }) => state === "running" || state === "storing" || state === "verifying")) return runs;
    const alive = this.leases.alive();
    return runs.map((run) => {
      const isGoing = run.state === "running" || run.state === "storing" || run.state === "verifying";
      return isGoing && !alive.has(exportScope(run)) ? { ...run, state: "queued" as const } : run;
    });
  }

  /** One transaction that writes only while `lease` is held. */
  write<T>(lease: Lease, work: () => T): T {
    return unusable(this.path, () =>
      this.#db
        .transaction(() => {
          this.leases.check(lease);
          return work();
        })
        .immediate(),
    );
  }

  /** One transaction for what needs no lease: suspending, breaking a lock. */
  writeUnlocked<T>(work: () => T): T {
    return unusable(this.path, () => this.#db.transaction(work).immediate());
  }

  /** Takes a lease, waiting up to `timeoutMs` for whoever holds it. @throws LockHeld with the holder */
  async take(scope: string, operation: string, timeoutMs: number, clock: Clock, random: Random, signal?: AbortSignal): Promise<Lease> {
    if (this.#ended.length > 0) this.#releaseEnded();
    const deadlineMs = epochMsOf(clock.now()) + timeoutMs;
    for (;;) {
      const taken = unusable(this.path, () => this.leases.take(scope, random.uuid(), operation, clock.now()));
      if (taken.ok) return taken.lease;
      const { heldBy } = taken;
      if (epochMsOf(clock.now()) >= deadlineMs) {
        throw new HypersdkError("LockHeld", `"${scope}" is held by \`${heldBy.operation}\` (pid ${heldBy.pid} on ${heldBy.host}) since ${heldBy.since}`, {
          hint: `wait for it with --lock-timeout, or if it hangs: hypersdk force-unlock ${heldBy.holder}`,
        });
      }
      await clock.sleep(200, signal);
    }
  }

  /** Gives a lease back. Where the state is full or busy, with the next one that is taken: whoever held it has ended, one way or the other. */
  release(lease: Lease): void {
    this.#ended.push(lease);
    try {
      this.#releaseEnded();
    } catch (error) {
      if (!isOfTheState(error)) throw error;
    }
  }

  #releaseEnded(): void {
    this.writeUnlocked(() => {
      for (const lease of this.#ended) this.leases.release(lease);
    });
    this.#ended = [];
  }

  /** A consistent copy, made while others go on. */
  async backup(target: string): Promise<void> {
    if (existsSync(target)) throw new HypersdkError("AlreadyExists", `${target} exists already`);
    try {
      await this.#db.backup(target);
    } catch (error) {
      const known = stateError(target, error);
      throw known instanceof HypersdkError ? known : new HypersdkError("Failed", `cannot write ${target}: ${(error as Error).message}`, { cause: error });
    }
    chmodSync(target, 0o600);
  }

  /** Reads all of the file. @throws StateUnusable where it is damaged */
  refuseDamaged(isSpec: IsSpec): void {
    const found = unusable(this.path, () => damageIn(this.#db, isSpec));
    if (found !== undefined) throw damagedState(this.path, found);
  }

  close(): void {
    this.#db.close();
    this.#lock?.release();
  }
}

/** A state that is busy or full: it may be free, or have room, a moment later. */
export function isOfTheState(error: unknown): error is HypersdkError {
  return error instanceof HypersdkError && (error.code === "LockHeld" || error.code === "StateFull");
}

function lockFolder(path: string): string {
  return `${path}.locks`;
}

/** What the planner is given when there is no state file yet. */
export const emptyRecorded: Recorded = { lineage: newLineage, serial: 0, resources: [], protections: [], points: [], runs: [], suspended: [] };
