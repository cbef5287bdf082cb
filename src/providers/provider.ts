import type { BlockSource } from "../converters/block-source.ts";
import type { Instant } from "../model/instant.ts";
import type { ObservedVm } from "../model/observed.ts";

/**
 * Where VMs come from. What must hold of every implementation (test/contract/provider.ts checks it):
 * - `inventory` reads only; asked twice with nothing changed it gives the same answer, sorted by path. It throws
 *   `ProviderUnreachable` when the provider cannot be asked at all, and never returns a part of the truth silently: what it
 *   could not read is in `problems`.
 * - `snapshot` gives all disks of a VM as of one instant. The caller releases it, whatever happens; releasing twice is fine.
 * - `confirm` throws `SourceChanged` when the disks that were read are not one instant after all.
 * - Failures that may pass are thrown with a transient code; retrying is the caller's work.
 */
export interface Provider {
  readonly name: string;
  readonly type: string;
  inventory(signal?: AbortSignal): Promise<Inventory>;
  snapshot(identity: string, signal?: AbortSignal): Promise<VmSnapshot>;
}

interface Inventory {
  readonly vms: readonly ObservedVm[];
  readonly problems: readonly string[];
}

export interface VmSnapshot {
  /** The instant that all disks belong to: the restore point's time. */
  readonly instant: Instant;
  readonly vm: VmHardware;
  /** In boot order. */
  readonly disks: readonly SnapshotDisk[];
  confirm(): Promise<void>;
  release(): Promise<void>;
}

/** What a provider knows of the machine around the disks. */
interface VmHardware {
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
}
