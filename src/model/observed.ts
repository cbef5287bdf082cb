import type { VmPath } from "./vm-path.ts";

/** What the providers and destinations showed when they were asked. */
export interface Observed {
  readonly vms: readonly ObservedVm[];
  /** Providers that could not be reached: their VMs are unknown, which is never a reason to drop anything. */
  readonly unknownProviders: readonly Unknown[];
  /** Single VMs of which nothing can be said, as a provider calls them. */
  readonly unknownVms: readonly { readonly provider: string; readonly identity: string; readonly reason: string }[];
  /** What a provider could not take for a VM and why: a link that leads out, an image in no known format. */
  readonly problems: readonly { readonly provider: string; readonly message: string }[];
  readonly destinations: readonly ObservedDestination[];
  readonly unknownDestinations: readonly Unknown[];
  /** Set where nothing was asked on purpose. */
  readonly isOffline?: true;
}

/** Why nothing is known of a destination at which something must be, and nothing is. */
export function emptiedReason(name: string): string {
  return `${name} is empty, and restore points are recorded there: is it mounted?`;
}

export interface Unknown {
  readonly name: string;
  readonly reason: string;
}

export interface ObservedVm {
  readonly provider: string;
  readonly path: VmPath;
  /** The provider's own name for the VM, stable as long as the VM is the same; the path where it has none. */
  readonly identity: string;
  /** What the provider itself calls it, where `renames` keep an identity of the past. */
  readonly sourceIdentity?: string;
  readonly name: string;
  readonly disks: readonly ObservedDisk[];
  readonly guestType?: string;
  readonly firmware?: "bios" | "efi";
  /** Undefined where the provider cannot tell. */
  readonly isRunning?: boolean;
}

export interface ObservedDisk {
  /** The file, relative to the VM's folder, with `/`. */
  readonly name: string;
  readonly format: string;
  readonly virtualBytes: number;
  /** Bytes that the source holds for it: an upper bound of what an export reads. */
  readonly dataBytes: number;
  /** Where changes are tracked: the marks that are set on it, and how much has changed since each. */
  readonly marks?: readonly { readonly name: string; readonly changedBytes: number }[];
}

export interface ObservedDestination {
  readonly name: string;
  readonly url: string;
  /** The state that writes there; undefined when nothing was written yet. */
  readonly lineage?: string;
  /** How what is there is stored. */
  readonly layout?: "image" | "repository";
  /** Of a repository: whether it is encrypted. */
  readonly isSealed?: boolean;
  /** Why the key that the files name for it cannot be had. */
  readonly keyProblem?: string;
  /** The restore points that are there, by manifest path relative to the destination, with the size of their files; null where files are shared. */
  readonly points: readonly { readonly manifestPath: string; readonly storedBytes: number | null }[];
}
