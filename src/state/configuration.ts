import type { Instant } from "../model/instant.ts";
import type { RecordedDisk, RecordedProtection, RecordedResource, RepositoryBefore } from "../model/recorded.ts";
import type { VmPath } from "../model/vm-path.ts";
import type { Db } from "./database.ts";

interface ProtectionRow {
  schedule: string;
  provider: string;
  identity: string;
  vm_path: string;
  state: "active" | "missing";
  effective_since: string;
  handled_until: string | null;
  last_success_at: string | null;
  last_duration_ms: number | null;
  last_read_bytes: number | null;
  last_stored_bytes: number | null;
  /** Missing in a file of version 1 that is only read. */
  last_disks?: string | null;
}

export type ProtectionId = Pick<RecordedProtection, "schedule" | "provider" | "identity">;

const unmanagedKey = "unmanaged ";
const repositoryIdKey = "repository id ";
const repositoryKeyKey = "repository key ";

/** What was applied: resources, suspensions, protections, and the identity of the state. */
export class Configuration {
  readonly #db: Db;
  readonly #upsertResource;
  readonly #insertProtection;

  constructor(db: Db) {
    this.#db = db;
    this.#upsertResource = db.prepare(
      "INSERT INTO resources (address, spec, file, serial) VALUES (?, ?, ?, ?) ON CONFLICT (address) DO UPDATE SET spec = excluded.spec, file = excluded.file, serial = excluded.serial",
    );
    this.#insertProtection = db.prepare(
      `INSERT INTO protections (schedule, provider, identity, vm_path, state, effective_since, last_success_at)
        SELECT @schedule, @provider, @identity, @vmPath, 'active', @since, max(instant) FROM artifacts
        WHERE schedule = @schedule AND provider = @provider AND identity = @identity AND state = 'good'`,
    );
  }

  meta(key: string): string | undefined {
    return this.#db.prepare("SELECT value FROM meta WHERE key = ?").pluck().get(key) as string | undefined;
  }

  /** Manifests of another state at destinations that were taken over, by URL. */
  unmanaged(): Map<string, readonly string[]> {
    const rows = this.#db.prepare("SELECT key, value FROM meta WHERE key LIKE ?").all(`${unmanagedKey}%`) as { key: string; value: string }[];
    return new Map(rows.map(({ key, value }) => [key.slice(unmanagedKey.length), JSON.parse(value) as string[]]));
  }

  setUnmanaged(url: string, manifestPaths: readonly string[]): void {
    this.setMeta(`${unmanagedKey}${url}`, JSON.stringify(manifestPaths));
  }

  /** The repository that was last written to at a URL, and what stands for its key: another in its place is found out. */
  repositoryAt(url: string): RepositoryBefore {
    const [repositoryId, keyId] = [this.meta(`${repositoryIdKey}${url}`), this.meta(`${repositoryKeyKey}${url}`)];
    return { ...(repositoryId === undefined ? {} : { repositoryId }), ...(keyId === undefined ? {} : { keyId }) };
  }

  setRepositoryAt(url: string, { repositoryId, keyId }: RepositoryBefore): void {
    for (const [key, value] of [
      [`${repositoryIdKey}${url}`, repositoryId],
      [`${repositoryKeyKey}${url}`, keyId],
    ] as const)
      if (value === undefined) this.#db.prepare("DELETE FROM meta WHERE key = ?").run(key);
      else this.setMeta(key, value);
  }

  setMeta(key: string, value: string): void {
    this.#db.prepare("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value").run(key, value);
  }

  resources(): RecordedResource[] {
    return this.#db.prepare("SELECT address, spec, file FROM resources ORDER BY address").all() as RecordedResource[];
  }

  setResource(address: string, spec: string, file: string, serial: number): void {
    this.#upsertResource.run(address, spec, file, serial);
  }

  removeResource(address: string): void {
    this.#db.prepare("DELETE FROM resources WHERE address = ?").run(address);
  }

  protections(): RecordedProtection[] {
    return (this.#db.prepare("SELECT * FROM protections ORDER BY schedule, vm_path, provider").all() as ProtectionRow[]).map(protectionOf);
  }

  /** Where restore points of it are known, as after a rebuild, the newest good one is its last success. */
  beginProtection({ schedule, provider, identity }: ProtectionId, vmPath: VmPath, since: Instant): void {
    this.#insertProtection.run({ schedule, provider, identity, vmPath, since });
  }

  endProtection(id: ProtectionId): void {
    this.#where("DELETE FROM protections", id);
  }

  setProtectionState(id: ProtectionId, state: RecordedProtection["state"]): void {
    this.#where("UPDATE protections SET state = ?", id, state);
  }

  renameProtection(id: ProtectionId, vmPath: VmPath): void {
    this.#where("UPDATE protections SET vm_path = ?", id, vmPath);
  }

  restartProtection(id: ProtectionId, since: Instant): void {
    this.#where("UPDATE protections SET effective_since = ?", id, since);
  }

  restartSchedule(schedule: string, since: Instant): void {
    this.#db.prepare("UPDATE protections SET effective_since = ? WHERE schedule = ?").run(since, schedule);
  }

  /** A fire time has run, failed for good, or was skipped. */
  markHandled(id: ProtectionId, fireTime: Instant): void {
    this.#where("UPDATE protections SET handled_until = max(coalesce(handled_until, ''), ?)", id, fireTime);
  }

  recordSuccess(id: ProtectionId, at: Instant, durationMs: number, readBytes: number, storedBytes: number, disks: readonly RecordedDisk[]): void {
    this.#where(
      "UPDATE protections SET last_success_at = max(coalesce(last_success_at, ''), ?), last_duration_ms = ?, last_read_bytes = ?, last_stored_bytes = ?, last_disks = ?",
      id,
      at,
      durationMs,
      readBytes,
      storedBytes,
      JSON.stringify(disks),
    );
  }

  /** As the last export of a VM recorded them. */
  lastDisks({ schedule, provider, identity }: ProtectionId): readonly RecordedDisk[] {
    const text = this.#db
      .prepare("SELECT last_disks FROM protections WHERE schedule = ? AND provider = ? AND identity = ?")
      .pluck()
      .get(schedule, provider, identity);
    return typeof text === "string" ? (JSON.parse(text) as RecordedDisk[]) : [];
  }

  suspensions(): string[] {
    return this.#db.prepare("SELECT schedule FROM suspensions ORDER BY schedule").pluck().all() as string[];
  }

  suspend(schedule: string, at: Instant): boolean {
    return this.#db.prepare("INSERT OR IGNORE INTO suspensions (schedule, since) VALUES (?, ?)").run(schedule, at).changes > 0;
  }

  resume(schedule: string): boolean {
    return this.#db.prepare("DELETE FROM suspensions WHERE schedule = ?").run(schedule).changes > 0;
  }

  #where(statement: string, { schedule, provider, identity }: ProtectionId, ...values: unknown[]): void {
    this.#db.prepare(`${statement} WHERE schedule = ? AND provider = ? AND identity = ?`).run(...values, schedule, provider, identity);
  }
}

function protectionOf(row: ProtectionRow): RecordedProtection {
  const protection: { -readonly [Key in keyof RecordedProtection]: RecordedProtection[Key] } = {
    schedule: row.schedule,
    provider: row.provider,
    identity: row.identity,
    vmPath: row.vm_path as VmPath,
    state: row.state,
    effectiveSince: row.effective_since as Instant,
  };
  if (row.handled_until !== null) protection.handledUntil = row.handled_until as Instant;
  if (row.last_success_at !== null) protection.lastSuccessAt = row.last_success_at as Instant;
  if (row.last_duration_ms !== null) protection.lastDurationMs = row.last_duration_ms;
  if (row.last_read_bytes !== null) protection.lastReadBytes = row.last_read_bytes;
  if (row.last_stored_bytes !== null) protection.lastStoredBytes = row.last_stored_bytes;
  if (row.last_disks) protection.lastDisks = JSON.parse(row.last_disks) as RecordedDisk[];
  return protection;
}
