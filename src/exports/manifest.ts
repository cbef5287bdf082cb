import { isAsWritten } from "../model/digest.ts";
import { HypersdkError } from "../model/errors.ts";
import type { ImageCompression, ImageFormat } from "../model/image-formats.ts";
import { compactInstant, epochMsOf, type Instant } from "../model/instant.ts";
import { publishedSchema } from "../model/published-schema.ts";
import { type VmPath, vmPathSegment } from "../model/vm-path.ts";
import type { ChunkList } from "../repository/disk-source.ts";
import { manifestVersion } from "../repository/layout.ts";

/** What one restore point is: enough to restore it without the state file. Paths are relative to the manifest. */
export interface Manifest {
  readonly formatVersion: typeof manifestVersion;
  readonly id: string;
  readonly lineage: string;
  readonly tool: { readonly name: "hypersdk"; readonly version: string };
  readonly source: {
    readonly provider: string;
    readonly providerType: string;
    readonly vm: VmPath;
    readonly identity: string;
    readonly schedule: string;
    readonly kind: "scheduled" | "manual";
    readonly fireTime: Instant;
    /** The point in time that the disks hold. */
    readonly instant: Instant;
    /** Of a guest that ran: whether its file systems stood still. */
    readonly consistency?: "crash" | "file systems";
    readonly commit: string | null;
  };
  readonly vm: {
    readonly name: string;
    readonly guestType?: string;
    readonly firmware?: "bios" | "efi";
    readonly cpus?: number;
    readonly memoryBytes?: number;
  };
  readonly disks: readonly ManifestDisk[];
  /** The archive that all disks are members of, where they are. */
  readonly package?: { readonly format: "ova"; readonly file: string; readonly storedBytes: number; readonly storedHash: TreeHashValue };
  /** Of a repository: its id, what a restore makes where nothing else is said, and the packs that this export sent. */
  readonly repository?: { readonly id: string; readonly restoreFormat: ImageFormat; readonly packs: readonly string[] };
  readonly times: { readonly startedAt: Instant; readonly endedAt: Instant };
  readonly estimates: { readonly readBytes: number; readonly storedBytes: number | null; readonly durationMs: number | null };
  readonly actuals: { readonly readBytes: number; readonly storedBytes: number; readonly durationMs: number };
  /** SHA-256 over the compact JSON of everything above. */
  readonly digest: string;
}

export type ManifestDisk = ImageDisk | ChunkedDisk;

interface DiskBase {
  /** Place in the boot order, from 0. */
  readonly bootOrder: number;
  readonly name: string;
  readonly virtualBytes: number;
  readonly readBytes: number;
  readonly contentHash: TreeHashValue;
  readonly source: { readonly format: string; readonly variant: string };
}

/** A disk in a repository: its chunks, found through the segments that list them. */
export interface ChunkedDisk extends DiskBase, ChunkList {
  /** Bytes of the chunks that this export brought. */
  readonly newBytes: number;
  readonly mode: "full" | "incremental";
  /** Why as much was read as was read. */
  readonly reason: string;
  /** When all of it was read last: of this point, or of the one that it goes back to. */
  readonly wholeReadAt?: Instant;
  /** What the provider is asked with for the changes since. */
  readonly mark?: string;
  /** The provider was found to leave out a change: marks that were set before this point are not asked any more. */
  readonly marksRefused?: true;
}

/** A disk as an image of its own, or as a member of a package. */
export interface ImageDisk extends DiskBase {
  readonly file: string;
  /** Where in the file the disk is, of an archive; its stored size and hash are those of the member. */
  readonly member?: { readonly name: string; readonly offset: number };
  readonly format: ImageFormat;
  readonly compression: ImageCompression;
  readonly storedBytes: number;
  readonly storedHash: TreeHashValue;
}

export function isChunked(disk: ManifestDisk): disk is ChunkedDisk {
  return "segments" in disk;
}

/** SHA-256 over the SHA-256s of the pieces. */
interface TreeHashValue {
  readonly algorithm: "sha256-tree";
  readonly pieceBytes: number;
  readonly value: string;
}

export const manifestName = "manifest.json";
export const maxManifestBytes: number = 32 * 2 ** 20;

/** `<schedule>/<VM path as one segment>/20261121T020000Z-<run>` */
export function pointFolder(schedule: string, vm: VmPath, instant: Instant, run: string): string {
  return `${schedule}/${vmPathSegment(vm)}/${compactInstant(instant)}-${run.slice(0, 8)}`;
}

/** Reads a manifest that a store gave: nothing in it is trusted before the schema has seen it. */
export function parseManifest(path: string, bytes: Buffer): Manifest {
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString("utf8"));
  } catch (error) {
    throw new HypersdkError("ArtifactDamaged", `${path} is no JSON`, { cause: error });
  }
  const version = (value as { formatVersion?: unknown } | null)?.formatVersion;
  if (typeof version === "number" && version > manifestVersion)
    throw new HypersdkError("ArtifactDamaged", `${path} has format version ${version}: a newer hypersdk wrote it`, { hint: "use that version" });
  const validate = publishedSchema("manifest");
  if (!validate(value)) {
    const first = validate.errors?.[0];
    throw new HypersdkError("ArtifactDamaged", `${path} is no manifest: ${first?.instancePath || "/"} ${first?.message}`);
  }
  if (!isAsWritten(value as Manifest)) throw new HypersdkError("ArtifactDamaged", `${path} is not what was written: its digest is wrong`);
  const { source, times } = value as Manifest;
  const untrue = [source.instant, source.fireTime, times.startedAt, times.endedAt].find((time) => Number.isNaN(epochMsOf(time)));
  if (untrue !== undefined) throw new HypersdkError("ArtifactDamaged", `${path} is no manifest: ${untrue} is no time`);
  return value as Manifest;
}
