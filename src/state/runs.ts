import type { Instant } from "../model/instant.ts";
import type { RecordedRun, RunState } from "../model/recorded.ts";
import type { VmPath } from "../model/vm-path.ts";
import type { Db } from "./database.ts";

/** A run as it is journaled: everything that is needed to finish or to clear it after a crash. */
export interface RunRow extends RecordedRun {
  readonly destination: string;
  readonly destinationUrl: string;
  /** Where its point is being written, relative to the destination; undefined before anything was. */
  readonly folder?: string;
  readonly createdAt: Instant;
  readonly errorCode?: string;
  readonly error?: string;
  readonly attempts: number;
}

/** A run with how far it has come; null before it began to read. */
export interface BegunRun extends RunRow {
  readonly startedAt: Instant;
  readonly readBytes: number | null;
  readonly totalBytes: number | null;
}

export type NewRun = Pick<RunRow, "id" | "schedule" | "provider" | "identity" | "vmPath" | "kind" | "fireTime" | "destination" | "destinationUrl">;

const openStates = "('queued', 'running', 'storing', 'verifying')";
const columns = `id, schedule, provider, identity, vm_path, kind, fire_time, state, destination, destination_url, folder, created_at, ended_at, error_code, error,
  (SELECT count(*) FROM attempts WHERE run_id = runs.id) AS attempts`;

export class Runs {
  readonly #db: Db;

  constructor(db: Db) {
    this.#db = db;
  }

  /** The run of this schedule, VM and fire time: a new one, or the one that an earlier process left. */
  enqueue(run: NewRun, now: Instant): RunRow {
    this.#db
      .prepare(`INSERT INTO runs (id, schedule, provider, identity, vm_path, kind, fire_time, state, destination, destination_url, created_at)
        VALUES (?, ?, ?, ?, ?, ?, ?, 'queued', ?, ?, ?) ON CONFLICT DO NOTHING`)
      .run(run.id, run.schedule, run.provider, run.identity, run.vmPath, run.kind, run.fireTime, run.destination, run.destinationUrl, now);
    return this.#one(
      "schedule = ? AND provider = ? AND identity = ? AND kind = ? AND fire_time = ?",
      run.schedule,
      run.provider,
      run.identity,
      run.kind,
      run.fireTime,
    ) as RunRow;
  }

  get(id: string): RunRow | undefined {
    return this.#one("id = ?", id);
  }

  /** Whether there is a run for a fire time, whatever became of it. */
  isKnown({ schedule, provider, identity }: Pick<RunRow, "schedule" | "provider" | "identity">, fireTime: Instant): boolean {
    const sql = "SELECT 1 FROM runs WHERE schedule = ? AND provider = ? AND identity = ? AND kind = 'scheduled' AND fire_time = ?";
    return this.#db.prepare(sql).get(schedule, provider, identity, fireTime) !== undefined;
  }

  setState(id: string, state: RunState): void {
    this.#db.prepare("UPDATE runs SET state = ? WHERE id = ?").run(state, id);
  }

  /** For a run that waited while its schedule was given another destination. */
  setDestination(id: string, destination: string, destinationUrl: string): void {
    this.#db.prepare("UPDATE runs SET destination = ?, destination_url = ?, folder = NULL WHERE id = ?").run(destination, destinationUrl, id);
  }

  /** Where the run is about to write, so that leftovers are found. */
  setFolder(id: string, folder: string): void {
    this.#db.prepare("UPDATE runs SET folder = ? WHERE id = ?").run(folder, id);
  }

  end(id: string, state: "completed" | "failed" | "cancelled" | "skipped", at: Instant, error?: { readonly code: string; readonly message: string }): void {
    this.#db
      .prepare("UPDATE runs SET state = ?, ended_at = ?, error_code = ?, error = ? WHERE id = ?")
      .run(state, at, error?.code ?? null, error?.message ?? null, id);
  }

  beginAttempt(id: string, at: Instant): void {
    this.#db
      .prepare("INSERT INTO attempts (run_id, number, started_at) SELECT ?, coalesce(max(number), 0) + 1, ? FROM attempts WHERE run_id = ?")
      .run(id, at, id);
    this.setState(id, "running");
  }

  endAttempt(id: string, at: Instant, outcome: string, error: string | undefined): void {
    this.#db.prepare("UPDATE attempts SET ended_at = ?, outcome = ?, error = ? WHERE run_id = ? AND ended_at IS NULL").run(at, outcome, error ?? null, id);
  }

  /** How far the attempt that runs has come. @param totalBytes what it expects to read */
  noteProgress(id: string, readBytes: number, totalBytes: number): void {
    this.#db.prepare("UPDATE attempts SET read_bytes = ?, total_bytes = ? WHERE run_id = ? AND ended_at IS NULL").run(readBytes, totalBytes, id);
  }

  /** Runs with an attempt that has begun and not ended; whether its process lives, the lease says. */
  begun(): BegunRun[] {
    // every column: a reader may look at a state that no writer has migrated yet
    const attempt = this.#db.prepare("SELECT * FROM attempts WHERE run_id = ? AND ended_at IS NULL");
    return this.#many("state IN ('running', 'storing', 'verifying')").flatMap((run) => {
      const row = attempt.get(run.id) as { started_at: Instant; read_bytes?: number | null; total_bytes?: number | null } | undefined;
      return row ? [{ ...run, startedAt: row.started_at, readBytes: row.read_bytes ?? null, totalBytes: row.total_bytes ?? null }] : [];
    });
  }

  open(): RunRow[] {
    return this.#many(`state IN ${openStates}`);
  }

  list(limit: number): RunRow[] {
    return this.#many("1", "created_at DESC, id LIMIT ?", limit);
  }

  /** Open runs, and the ended ones of fire times since `since`, for the planner. */
  forPlanner(since: Instant): RecordedRun[] {
    const rows = this.#db
      .prepare(
        `SELECT id, schedule, provider, identity, vm_path AS vmPath, kind, fire_time AS fireTime, state, created_at AS createdAt, ended_at AS endedAt FROM runs WHERE state IN ${openStates} OR fire_time >= ? ORDER BY id`,
      )
      .all(since);
    return rows as RecordedRun[];
  }

  #one(where: string, ...values: unknown[]): RunRow | undefined {
    const row = this.#db.prepare(`SELECT ${columns} FROM runs WHERE ${where}`).get(...values) as RawRun | undefined;
    return row && runOf(row);
  }

  #many(where: string, order = "created_at, id", ...values: unknown[]): RunRow[] {
    return (this.#db.prepare(`SELECT ${columns} FROM runs WHERE ${where} ORDER BY ${order}`).all(...values) as RawRun[]).map(runOf);
  }
}

interface RawRun {
  id: string;
  schedule: string;
  provider: string;
  identity: string;
  vm_path: string;
  kind: "scheduled" | "manual";
  fire_time: string;
  state: RunState;
  destination: string;
  destination_url: string;
  folder: string | null;
  created_at: string;
  ended_at: string | null;
  error_code: string | null;
  error: string | null;
  attempts: number;
}

function runOf(row: RawRun): RunRow {
  return {
    id: row.id,
    schedule: row.schedule,
    provider: row.provider,
    identity: row.identity,
    vmPath: row.vm_path as VmPath,
    kind: row.kind,
    fireTime: row.fire_time as Instant,
    state: row.state,
    destination: row.destination,
    destinationUrl: row.destination_url,
    createdAt: row.created_at as Instant,
    attempts: row.attempts,
    ...(row.folder === null ? {} : { folder: row.folder }),
    ...(row.ended_at === null ? {} : { endedAt: row.ended_at as Instant }),
    ...(row.error_code === null ? {} : { errorCode: row.error_code }),
    ...(row.error === null ? {} : { error: row.error }),
  };
}
