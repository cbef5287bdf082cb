import type { Instant } from "./instant.ts";
import type { VmPath } from "./vm-path.ts";

/** What the state file knows, as the planner takes it. */
export interface Recorded {
  readonly lineage: string;
  readonly serial: number;
  readonly resources: readonly RecordedResource[];
  readonly protections: readonly RecordedProtection[];
  readonly points: readonly RestorePoint[];
  /** Runs that have not ended, and the latest ended one of each schedule and fire time that a dependency may ask for. */
  readonly runs: readonly RecordedRun[];
  /** Schedules that `hypersdk suspend` holds back. */
  readonly suspended: readonly string[];
  /** Manifests of another state at each URL that was taken over from it: they stay there, and nobody here manages them. */
  readonly unmanaged?: ReadonlyMap<string, readonly string[]>;
}

export interface RecordedResource {
  readonly address: string;
  /** Canonical JSON of what was applied. */
  readonly spec: string;
  readonly file: string;
}

type ProtectionState = "active" | "missing";

export interface RecordedProtection {
  readonly schedule: string;
  readonly provider: string;
  readonly identity: string;
  readonly vmPath: VmPath;
  readonly state: ProtectionState;
  readonly effectiveSince: Instant;
  /** The latest fire time that was run, skipped or superseded. */
  readonly handledUntil?: Instant;
  readonly lastSuccessAt?: Instant;
  readonly lastDurationMs?: number;
  readonly lastReadBytes?: number;
  readonly lastStoredBytes?: number;
  /** As the last export recorded them. */
  readonly lastDisks?: readonly RecordedDisk[];
}

export interface RecordedDisk {
  readonly name: string;
  readonly virtualBytes: number;
  /** What its provider is asked with for the changes since. */
  readonly mark?: string;
  readonly wholeReadAt?: Instant;
}

/** Good: proved as its schedule asks. Bad: found damaged, or not starting. Unproved: published, and its proof has not ended. */
type PointState = "good" | "bad" | "unproved";

export interface RestorePoint {
  readonly id: string;
  readonly schedule: string;
  readonly provider: string;
  readonly identity: string;
  readonly vmPath: VmPath;
  readonly destination: string;
  readonly destinationUrl: string;
  /** The manifest's path, relative to the destination. */
  readonly manifestPath: string;
  readonly instant: Instant;
  readonly storedBytes: number;
  readonly state: PointState;
  readonly held: boolean;
  /** Why somebody holds it. */
  readonly heldReason?: string;
  /** Set while retention has let it go: it may be deleted from then on. */
  readonly expiresAt?: Instant;
  readonly expiryRule?: string;
}

export type RunState = "queued" | "running" | "storing" | "verifying" | "completed" | "failed" | "cancelled" | "skipped";

export interface RecordedRun {
  readonly id: string;
  readonly schedule: string;
  readonly provider: string;
  readonly identity: string;
  readonly vmPath: VmPath;
  readonly kind: "scheduled" | "manual";
  readonly fireTime: Instant;
  readonly state: RunState;
  /** When it was seen first. */
  readonly createdAt?: Instant;
  readonly endedAt?: Instant;
}

/** What is remembered of a repository: another in its place is found out. Undefined where nothing is. */
export interface RepositoryBefore {
  readonly repositoryId?: string;
  /** Stands for its key, where it is sealed. */
  readonly keyId?: string;
}
