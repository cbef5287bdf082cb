import { epochMsOf, type Instant } from "../model/instant.ts";
import type { VmPath } from "../model/vm-path.ts";
import type { Turn } from "../schedule/run-queue.ts";

/**
 * What apply would do and why, as plain data: the tree, the Markdown and the JSON are drawn from it, and apply carries out
 * exactly it. The same inputs give the same bytes.
 */
export interface Plan {
  readonly formatVersion: 1;
  readonly at: Instant;
  readonly revision: Revision | null;
  readonly lineage: string;
  readonly serial: number;
  readonly desiredDigest: string;
  readonly inventoryDigest: string;
  readonly changes: readonly Change[];
  readonly unchanged: number;
  readonly protections: readonly ProtectionChange[];
  readonly exports: readonly DueExport[];
  readonly deferred: readonly DeferredExport[];
  readonly skipped: readonly SkippedExport[];
  readonly drift: readonly Drift[];
  readonly expiry: Expiry;
  readonly suspended: readonly string[];
  readonly warnings: readonly PlanWarning[];
}

/** The state of the repository that the files came from. */
export interface Revision {
  readonly commit: string | null;
  readonly branch: string | null;
  readonly author: string | null;
  /** True where the files differ from the commit. */
  readonly dirty: boolean;
}

export type ResourceKind = "schedule" | "policy" | "destination" | "provider" | "notifier";

export type Change = CreateChange | UpdateChange | DeleteChange;

interface ChangeBase {
  /** `schedule.daily-backup` */
  readonly address: string;
  readonly resource: ResourceKind;
  readonly reason: string;
  readonly consequences: Consequences;
}

interface CreateChange extends ChangeBase {
  readonly kind: "create";
  readonly file: string;
  /** Canonical JSON. */
  readonly after: string;
}

interface UpdateChange extends ChangeBase {
  readonly kind: "update";
  readonly file: string;
  readonly before: string;
  readonly after: string;
  readonly fields: readonly FieldChange[];
}

interface DeleteChange extends ChangeBase {
  readonly kind: "delete";
  /** The file in which it stood. */
  readonly file: string;
  readonly before: string;
}

export interface FieldChange {
  readonly field: string;
  readonly before: unknown;
  readonly after: unknown;
}

/** What follows from a change to a schedule. */
export interface Consequences {
  readonly gained: readonly VmPath[];
  readonly lost: readonly VmPath[];
  readonly nextRunBefore?: Instant;
  readonly nextRunAfter?: Instant;
  /** Restore points that its new retention would let go. */
  readonly expirable: number;
  /** Restore points that stay although nothing makes new ones. */
  readonly keepsPoints: number;
}

export type ProtectionChange = {
  readonly schedule: string;
  readonly provider: string;
  readonly identity: string;
  readonly vmPath: VmPath;
} & (
  | { readonly kind: "begin"; readonly reason: string }
  | { readonly kind: "end"; readonly reason: string }
  | { readonly kind: "missing" }
  | { readonly kind: "found" }
  | { readonly kind: "renamed"; readonly from: VmPath }
  /** The schedule's cron or timezone changed, so that fire times before now are not its own. */
  | { readonly kind: "restarted"; readonly reason: string }
);

/** What a due, a deferred and a skipped export have in common. */
export interface PlannedExport {
  readonly schedule: string;
  readonly provider: string;
  readonly identity: string;
  readonly vmPath: VmPath;
  readonly fireTime: Instant;
  /** The first fire time that was not served: `fireTime`, unless that superseded others. */
  readonly waitingSince: Instant;
  readonly destination: string;
  readonly priority: number;
}

export interface DiskMode {
  readonly name: string;
  readonly mode: "full" | "incremental";
  readonly reason: string;
  /** Of an increment whose changed blocks are known. */
  readonly changedBytes?: number;
}

export interface DueExport extends PlannedExport {
  /** What the provider calls the VM now; `identity` is what its history goes by. */
  readonly sourceIdentity: string;
  readonly mode: "full" | "incremental";
  /** Why as much is read as is read. */
  readonly modeReason: string;
  /** Each disk of an incremental export of a VM that was exported before. */
  readonly diskModes: readonly DiskMode[];
  /** Whether the schedule asks for increments. */
  readonly isIncremental: boolean;
  readonly reason: string;
  readonly disks: number;
  readonly virtualBytes: number;
  /** Bytes that are to be read, before they are rounded to chunks: what has changed where that is known, what the source holds elsewhere. */
  readonly dataBytes: number;
  /** From the last run of this protection; null where there was none. */
  readonly estimatedDurationMs: number | null;
  readonly estimatedStoredBytes: number | null;
}

export interface DeferredExport extends PlannedExport {
  readonly waitsFor: "window" | "dependency" | "running";
  readonly reason: string;
  /** When it may start, where that is known. */
  readonly until: Instant | null;
  /** When it is given up: at its next fire time, which supersedes it, or when the timeout of a dependency is over. */
  readonly deadline: Instant;
}

/** A fire time that will never run, recorded so that nobody waits for it. */
export interface SkippedExport extends PlannedExport {
  readonly reason: string;
}

/** Its place among those that wait. */
export function turnOf({ priority, waitingSince, schedule, vmPath, identity }: PlannedExport): Turn {
  return { priority, waitingSinceMs: epochMsOf(waitingSince), tie: `${schedule}\n${vmPath}\n${identity}` };
}

export type Drift =
  | { readonly kind: "vm-missing" | "vm-new" | "vm-changed" | "overdue"; readonly schedule: string; readonly vmPath: VmPath; readonly message: string }
  | LostPoint
  | UnknownThing;

/** `provider.lab`, `destination.backups` or `lab: web`, and why nothing is known of it. */
export interface UnknownThing {
  readonly kind: "unknown";
  readonly what: string;
  readonly message: string;
}

/** A restore point that is recorded and is not there, or not as it was stored. */
export interface LostPoint {
  readonly kind: "point-missing" | "point-altered";
  readonly point: string;
  readonly destination: string;
  readonly schedule: string;
  readonly vmPath: VmPath;
  readonly message: string;
}

export interface Expiry {
  /** Restore points that retention lets go from now on; they may be deleted after `expiresAt`. */
  readonly mark: readonly ExpiryMark[];
  /** Marked before, kept by the rules of today. */
  readonly withdraw: readonly { readonly point: string; readonly reason: string }[];
  /** Their time of grace is over. */
  readonly remove: readonly ExpiryMark[];
  readonly blocked: readonly { readonly schedule: string; readonly vmPath: VmPath; readonly points: number; readonly reason: string }[];
}

export interface ExpiryMark {
  readonly point: string;
  readonly schedule: string;
  readonly vmPath: VmPath;
  readonly destination: string;
  readonly instant: Instant;
  readonly storedBytes: number;
  readonly expiresAt: Instant;
  readonly rule: string;
}

export interface PlanWarning {
  readonly code: string;
  readonly message: string;
  readonly address: string | null;
}

/** True where a plan has nothing for apply to do; drift alone is something to look at. */
export function isEmpty(plan: Plan): boolean {
  const { mark, withdraw, remove } = plan.expiry;
  return plan.changes.length + plan.protections.length + mark.length + withdraw.length + remove.length + plan.exports.length + plan.skipped.length === 0;
}

/** True where desired, recorded and observed state differ: due exports alone are no difference. */
export function hasDifference(plan: Plan): boolean {
  const { mark, withdraw, remove } = plan.expiry;
  return plan.changes.length + plan.protections.length + mark.length + withdraw.length + remove.length > 0 || plan.drift.some(({ kind }) => kind !== "unknown");
}

/** Changes of protections that no change of a schedule explains. */
export function unexplainedProtections({ protections, changes }: Plan): ProtectionChange[] {
  const explained = new Set(changes.filter(({ resource }) => resource === "schedule").map(({ address }) => address.slice("schedule.".length)));
  return protections.filter(({ schedule, kind }) => kind === "missing" || kind === "found" || kind === "renamed" || !explained.has(schedule));
}
