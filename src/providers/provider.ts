import type { BlockSource, ByteRange } from "../converters/block-source.ts";
import type { Instant } from "../model/instant.ts";
import type { ObservedVm } from "../model/observed.ts";

/**
 * Where VMs come from. What must hold of every implementation (test/contract/provider.ts checks it):
 * - `inventory` reads only; asked twice with nothing changed it gives the same answer, sorted by path. It throws
 *   `ProviderUnreachable` when the provider cannot be asked at all, and never returns a part of the truth silently: what it
 *   could not read is in `problems`.
 * - `snapshot` gives all disks of a VM as of one instant. The caller releases it, whatever happens; releasing twice is fine.
 * - `confirm` throws `SourceChanged` when the disks that were read are not one instant after all.
 * - Where changes are tracked: what is not known unchanged counts as changed. A mark that is asked for and not kept leaves the marks
 *   before it as they were, so that no change is ever lost, also when the process dies in between.
 * - Failures that may pass are thrown with a transient code; retrying is the caller's work.
 */
export interface Provider {
  readonly name: string;
  readonly type: string;
  /** Whether it may set marks. */
  readonly tracksChanges?: true;
  inventory(signal?: AbortSignal): Promise<Inventory>;
  snapshot(identity: string, options?: SnapshotOptions): Promise<VmSnapshot>;
}

interface SnapshotOptions {
  readonly signal?: AbortSignal;
  /** What the caller prepares meanwhile: where a guest is stopped for the instant, or something is kept for it from then on, that comes after this. */
  readonly ready?: Promise<unknown>;
  /** Wanted where changes are tracked; a provider that tracks none passes it over. */
  readonly track?: TrackRequest;
}

export interface TrackRequest {
  /** Whose marks these are, 8 characters: those of others are left alone. */
  readonly owner: string;
  /** Names the mark that is set, 8 characters, never used before. */
  readonly id: string;
  /** The mark that each disk's changes are asked since, by the disk's name. */
  readonly since: ReadonlyMap<string, string>;
}

interface Inventory {
  readonly vms: readonly ObservedVm[];
  readonly problems: readonly string[];
  /** VMs of which nothing can be said now: they are there, as far as anybody knows. */
  readonly unknown?: readonly { readonly identity: string; readonly reason: string }[];
}

export interface VmSnapshot {
  /** The instant that all disks belong to: the restore point's time. */
  readonly instant: Instant;
  readonly vm: VmHardware;
  /** What a running guest's disks are at that instant: as after a power cut, or with file systems that were asked to stand still. */
  readonly consistency?: "crash" | "file systems";
  /** In boot order. */
  readonly disks: readonly SnapshotDisk[];
  confirm(): Promise<void>;
  /** The export is published: the marks that were set replace those before them. */
  keepMarks?(): Promise<void>;
  release(): Promise<void>;
}

/** What a provider knows of the machine around the disks. */
export interface VmHardware {
  readonly name: string;
  readonly guestType?: string;
  readonly firmware?: "bios" | "efi";
  readonly cpus?: number;
  readonly memoryBytes?: number;
}

export interface SnapshotDisk {
  readonly name: string;
  readonly format: string;
  readonly variant: string;
  readonly source: BlockSource;
  /** Where changes of this disk are tracked and were asked for. */
  readonly tracking?: DiskTracking;
}

export interface DiskTracking {
  /** What to ask with next time; undefined where no mark was set, and the ones before stay. */
  readonly mark?: string;
  /** What may have changed since the mark that was asked for, in any order; a text that says why that cannot be told. */
  readonly changes: { ranges(): AsyncIterable<ByteRange> } | string;
}
