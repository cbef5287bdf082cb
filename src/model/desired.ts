import type { ExportFormat, ImageCompression } from "./image-formats.ts";
import type { EncryptionRef } from "./secret.ts";
import type { VmPath } from "./vm-path.ts";

/** The desired state after reading, defaults and references: what the planner takes. All of it is plain, frozen-by-type data. */
export interface DesiredState {
  readonly providers: readonly ProviderSpec[];
  readonly destinations: readonly DestinationSpec[];
  readonly notifiers: readonly NotifierSpec[];
  readonly schedules: readonly ScheduleSpec[];
  readonly policies: readonly PolicySpec[];
  readonly renames: readonly RenameSpec[];
  /** Exports at once, over all schedules. */
  readonly concurrency: number;
  /** Fields that are accepted by the file format and have no effect in this version: `plan` and `apply` refuse them. */
  readonly notAvailable: readonly NotAvailable[];
}

/** Where something stands: `file` as the user named it, `pointer` the keys and indexes down to it in document `document`. */
export interface Origin {
  readonly file: string;
  readonly document: number;
  readonly pointer: readonly (string | number)[];
}

export interface NotAvailable {
  readonly what: string;
  readonly origin: Origin;
}

export interface ProviderSpec {
  readonly name: string;
  readonly type: string;
  /** The folder of disk images, absolute. */
  readonly path: string;
  /** `path` as it was written, for people and for the recorded state. */
  readonly writtenPath: string;
  /** Of QEMU: the folder with the machines' monitors, and where an export keeps what a guest overwrites meanwhile; absolute, and as written. */
  readonly sockets?: string;
  /** Or a libvirt that runs them. */
  readonly libvirt?: string;
  readonly writtenSockets?: string;
  readonly scratch?: string;
  readonly writtenScratch?: string;
  readonly root: VmPath;
  readonly origin: Origin;
}

/** Where a destination is: enough to open it. */
export type DestinationAddress = Pick<DestinationSpec, "name" | "url" | "encryption" | "otherKeys">;

/** How long a restore point stays after retention has marked it, unless its destination says otherwise. */
export const defaultExpiryGraceMs: number = 7 * 86_400_000;

export interface DestinationSpec {
  readonly name: string;
  readonly url: string;
  readonly layout: "image" | "repository";
  readonly expiryGraceMs: number;
  /** What its schedules say. */
  readonly encryption?: EncryptionRef;
  /** Further keys that may open what is there: where no schedule writes there are copies, with the key of what was copied. Nothing is sealed with them. */
  readonly otherKeys?: readonly EncryptionRef[];
  /** True for a destination that a schedule wrote in place as a URL: its name is that URL. */
  readonly inline: boolean;
  readonly origin: Origin;
}

export interface NotifierSpec {
  readonly name: string;
  readonly type: string;
  readonly origin: Origin;
}

export interface Alert {
  readonly type: "slack" | "email" | "webhook";
  readonly target: string;
  readonly via?: string;
  readonly on: readonly string[];
}

/** A schedule or policy may be read from a folder of documents; the order of those never matters. */
export interface PolicySpec {
  readonly name: string;
  readonly match: readonly string[];
  readonly exclude: readonly string[];
  readonly schedule: string;
  readonly priority?: number;
  readonly rpoMs?: number;
  readonly alerts: readonly Alert[];
  readonly origin: Origin;
}

export interface RenameSpec {
  readonly vm: VmPath;
  readonly formerly: VmPath;
  readonly origin: Origin;
}

export type VerifyLevel = "none" | "stored" | "checksum" | "restore" | "boot";

export interface ScheduleSpec {
  readonly name: string;
  readonly cron: string;
  readonly timezone: string;
  readonly vms: readonly string[];
  readonly exclude: readonly string[];
  /** A destination's name; an inline URL has become a destination of its own. */
  readonly destination: string;
  readonly suspend: boolean;
  readonly initialExport: "scheduled" | "immediate";
  readonly catchUp: "latest" | "skip";
  readonly overlap: "skip" | "queue";
  readonly rpoMs?: number;
  readonly windows: readonly WindowSpec[];
  readonly dependsOn: readonly DependencySpec[];
  readonly retry: RetrySpec;
  readonly concurrency: number;
  readonly priority: number;
  readonly format: ExportFormat;
  readonly compression: ImageCompression;
  /** Only what changed is stored, and, where blocks are tracked, read: all of it again after this long at the latest. */
  readonly incremental?: { readonly fullReadEveryMs: number };
  /** As it is written: the key is a reference. */
  readonly encryption?: { readonly key?: string; readonly recipients: readonly string[] };
  readonly retention?: RetentionSpec;
  readonly verify: VerifyLevel;
  /** What a guest that is started to prove a point must say, and how long it may take. */
  readonly boot?: { readonly marker?: string; readonly timeoutMs?: number };
  /** The newest point also as images beside the repository. */
  readonly keepImage?: "latest";
  readonly alerts: readonly Alert[];
  readonly origin: Origin;
}

/** Times of day as minutes since midnight. */
export interface WindowSpec {
  readonly startMinute: number;
  readonly endMinute: number;
  readonly days: readonly number[];
  readonly timezone: string;
}

export interface DependencySpec {
  readonly schedule: string;
  readonly state: "completed" | "failed" | "any";
  readonly timeoutMs?: number;
}

export interface RetrySpec {
  readonly attempts: number;
  readonly strategy: "linear" | "exponential" | "fibonacci";
  readonly initialDelayMs: number;
  readonly maxDelayMs: number;
  readonly jitter: number;
  readonly on?: readonly string[];
}

/** What to keep. Counts are of buckets; `withinMs` is measured back from the newest good point. */
export interface RetentionSpec {
  readonly keepLast?: number;
  readonly withinMs?: number;
  readonly hourly?: number;
  readonly daily?: number;
  readonly weekly?: number;
  readonly monthly?: number;
  readonly yearly?: number;
}
