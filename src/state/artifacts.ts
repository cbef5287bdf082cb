import type { Instant } from "../model/instant.ts";
import type { RestorePoint } from "../model/recorded.ts";
import type { VmPath } from "../model/vm-path.ts";
import type { Db } from "./database.ts";

export type NewArtifact = Omit<RestorePoint, "held" | "heldReason" | "expiresAt" | "expiryRule" | "state"> & { readonly runId: string };

/** Restore points: what completed exports left at destinations. */
export class Artifacts {
  readonly #db: Db;

  constructor(db: Db) {
    this.#db = db;
  }

  /** Recording a point twice is fine: the first record stays. */
  add(point: NewArtifact, now: Instant, state: "good" | "unproved" = "good"): void {
    // an export that was made anew within the second has written over what was there
    this.#db
      .prepare("DELETE FROM artifacts WHERE destination_url = ? AND manifest_path = ? AND id <> ?")
      .run(point.destinationUrl, point.manifestPath, point.id);
    this.#db
      .prepare(`INSERT INTO artifacts (id, run_id, schedule, provider, identity, vm_path, destination, destination_url, manifest_path, instant, stored_bytes, state, created_at, proved)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'good', ?, ?) ON CONFLICT DO NOTHING`)
      .run(
        point.id,
        point.runId,
        point.schedule,
        point.provider,
        point.identity,
        point.vmPath,
        point.destination,
        point.destinationUrl,
        point.manifestPath,
        point.instant,
        point.storedBytes,
        now,
        state === "good" ? 1 : 0,
      );
  }

  /** What a proof has found. */
  setState(id: string, state: "good" | "bad"): void {
    this.#db.prepare("UPDATE artifacts SET state = ?, proved = 1 WHERE id = ?").run(state, id);
  }

  /** The point whose manifest this is, where one is recorded, is bad. */
  setBadAt(destinationUrl: string, manifestPath: string): void {
    this.#db.prepare("UPDATE artifacts SET state = 'bad', proved = 1 WHERE destination_url = ? AND manifest_path = ?").run(destinationUrl, manifestPath);
  }

  /** Points at a destination that failed a proof. */
  badAt(destinationUrl: string): Pick<RestorePoint, "id" | "manifestPath">[] {
    return this.#db.prepare("SELECT id, manifest_path AS manifestPath FROM artifacts WHERE state = 'bad' AND destination_url = ?").all(destinationUrl) as Pick<
      RestorePoint,
      "id" | "manifestPath"
    >[];
  }

  /** A mark that is there is never moved to an earlier time. */
  mark(id: string, expiresAt: Instant, rule: string): void {
    this.#db
      .prepare("UPDATE artifacts SET expires_at = ?, expiry_rule = ? WHERE id = ? AND (expires_at IS NULL OR expires_at < ?)")
      .run(expiresAt, rule, id, expiresAt);
  }

  withdraw(id: string): void {
    this.#db.prepare("UPDATE artifacts SET expires_at = NULL, expiry_rule = NULL WHERE id = ?").run(id);
  }

  hasAt(destinationUrl: string): boolean {
    return this.#db.prepare("SELECT 1 FROM artifacts WHERE destination_url = ? LIMIT 1").get(destinationUrl) !== undefined;
  }

  get(id: string): RestorePoint | undefined {
    const row = this.#db.prepare("SELECT * FROM artifacts WHERE id = ?").get(id) as RawArtifact | undefined;
    return row && pointOf(row);
  }

  /** Its destination is elsewhere now, with all that is in it. */
  move(id: string, destinationUrl: string): void {
    this.#db.prepare("UPDATE artifacts SET destination_url = ? WHERE id = ?").run(destinationUrl, id);
  }

  /** What is at a URL belongs to the destination that has it, whatever that was called. */
  rename(destinationUrl: string, destination: string): void {
    this.#db.prepare("UPDATE artifacts SET destination = ? WHERE destination_url = ? AND destination <> ?").run(destination, destinationUrl, destination);
  }

  /** @param reason undefined lets go of it */
  setHeld(id: string, reason: string | undefined): void {
    this.#db.prepare("UPDATE artifacts SET held_reason = ? WHERE id = ?").run(reason ?? null, id);
  }

  remove(id: string): void {
    this.#db.prepare("DELETE FROM artifacts WHERE id = ?").run(id);
  }

  /** Oldest first. */
  list(): RestorePoint[] {
    return (this.#db.prepare("SELECT * FROM artifacts ORDER BY instant, id").all() as RawArtifact[]).map(pointOf);
  }
}

interface RawArtifact {
  id: string;
  schedule: string;
  provider: string;
  identity: string;
  vm_path: string;
  destination: string;
  destination_url: string;
  manifest_path: string;
  instant: string;
  stored_bytes: number;
  state: "good" | "bad";
  proved: 0 | 1;
  held_reason: string | null;
  expires_at: string | null;
  expiry_rule: string | null;
}

/** @throws RangeError for a time that is none: what is kept and what goes follows from it, so that nothing may be made of it */
function pointOf(row: RawArtifact): RestorePoint {
  for (const time of [row.instant, row.expires_at]) if (time !== null && Number.isNaN(Date.parse(time))) throw new RangeError(`${time} is no time`);
  return {
    id: row.id,
    schedule: row.schedule,
    provider: row.provider,
    identity: row.identity,
    vmPath: row.vm_path as VmPath,
    destination: row.destination,
    destinationUrl: row.destination_url,
    manifestPath: row.manifest_path,
    instant: row.instant as Instant,
    storedBytes: row.stored_bytes,
    state: row.state === "good" && row.proved === 0 ? "unproved" : row.state,
    held: row.held_reason !== null,
    ...(row.held_reason === null ? {} : { heldReason: row.held_reason }),
    ...(row.expires_at === null ? {} : { expiresAt: row.expires_at as Instant }),
    ...(row.expiry_rule === null ? {} : { expiryRule: row.expiry_rule }),
  };
}
