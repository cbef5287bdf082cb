import { defaultHardware, packMachine } from "../converters/machine/pack-machine.ts";
import { type Poured, pour } from "../converters/pour.ts";
import { imageSink } from "../converters/write-image.ts";
import type { Destination, Upload } from "../destinations/destination.ts";
import { HypersdkError } from "../model/errors.ts";
import type { ExportFormat, ImageCompression, ImageFormat } from "../model/image-formats.ts";
import type { Instant } from "../model/instant.ts";
import { epochMsOf } from "../model/instant.ts";
import type { Clock } from "../model/ports.ts";
import { contentPieceBytes, storedPieceBytes } from "../model/tree-hash.ts";
import type { VmPath } from "../model/vm-path.ts";
import type { Provider, SnapshotDisk, VmSnapshot } from "../providers/provider.ts";
import { type Manifest, type ManifestDisk, manifestName, pointFolder } from "./manifest.ts";

export interface ExportRequest {
  readonly pointId: string;
  readonly runId: string;
  readonly lineage: string;
  readonly toolVersion: string;
  readonly schedule: string;
  readonly kind: "scheduled" | "manual";
  readonly fireTime: Instant;
  readonly commit: string | null;
  readonly identity: string;
  /** What the provider calls the VM now. */
  readonly sourceIdentity: string;
  readonly vmPath: VmPath;
  readonly format: ExportFormat;
  readonly compression: ImageCompression;
  readonly estimates: Manifest["estimates"];
}

/** How far an export is; `disk` counts from 0. */
export interface ExportObserver {
  /** Called before anything is written: what is begun there must be found again after a crash. */
  begins(folder: string, disks: readonly { readonly name: string; readonly dataBytes: number; readonly virtualBytes: number }[]): void;
  read(disk: number, bytes: number): void;
  diskDone(disk: number, storedBytes: number): void;
}

export interface Exported {
  readonly manifest: Manifest;
  /** Relative to the destination. */
  readonly manifestPath: string;
  readonly storedBytes: number;
}

/**
 * One export from end to end: snapshot, disks in boot order through the writer to the destination, then the manifest, whose
 * publication is the commit point. The snapshot is released whatever happens; disks that were stored before a failure are
 * removed where that is possible, and otherwise found by the next run.
 */
export async function exportVm(
  provider: Provider,
  destination: Destination,
  request: ExportRequest,
  clock: Clock,
  observer: ExportObserver,
  signal: AbortSignal,
): Promise<Exported> {
  const startedAt = clock.now();
  const snapshot = await provider.snapshot(request.sourceIdentity, signal);
  const folder = pointFolder(request.schedule, request.vmPath, snapshot.instant, request.runId);
  const written: string[] = [];
  try {
    if (snapshot.disks.length === 0) throw new HypersdkError("SourceUnavailable", `${request.vmPath} has no disks`);
    observer.begins(
      folder,
      snapshot.disks.map(({ name, source }) => ({ name, dataBytes: source.dataBytes, virtualBytes: source.sizeBytes })),
    );
    const work: Work = { folder, destination, request, observer, signal, written };
    const stored = request.format === "ova" ? await storePackage(snapshot, work) : await storeImages(snapshot, request.format, work);
    await snapshot.confirm();
    signal.throwIfAborted();
    const endedAt = clock.now();
    const sum = (pick: (disk: ManifestDisk) => number): number => stored.disks.reduce((total, disk) => total + pick(disk), 0);
    const manifest: Manifest = {
      formatVersion: 1,
      id: request.pointId,
      lineage: request.lineage,
      tool: { name: "hypersdk", version: request.toolVersion },
      source: {
        provider: provider.name,
        providerType: provider.type,
        vm: request.vmPath,
        identity: request.identity,
        schedule: request.schedule,
        kind: request.kind,
        fireTime: request.fireTime,
        instant: snapshot.instant,
        commit: request.commit,
      },
      vm: snapshot.vm,
      ...stored,
      times: { startedAt, endedAt },
      estimates: request.estimates,
      actuals: {
        readBytes: sum((disk) => disk.readBytes),
        storedBytes: stored.package?.storedBytes ?? sum((disk) => disk.storedBytes),
        durationMs: Math.max(0, epochMsOf(endedAt) - epochMsOf(startedAt)),
      },
    };
    const manifestPath = `${folder}/${manifestName}`;
    await destination.put(manifestPath, `${JSON.stringify(manifest, null, 2)}\n`);
    return { manifest, manifestPath, storedBytes: manifest.actuals.storedBytes };
  } catch (thrown) {
    let error = thrown;
    // an image that was cut or rewritten while it was read looks damaged: then it is the source that changed
    if (error instanceof HypersdkError && error.code === "ImageDamaged") await snapshot.confirm().catch((changed: unknown) => (error = changed));
    for (const path of written) await destination.remove(path).catch(() => {});
    throw error;
  } finally {
    await snapshot.release();
  }
}

/** What the ways of storing a snapshot have in common. */
interface Work {
  readonly folder: string;
  readonly destination: Destination;
  readonly request: ExportRequest;
  readonly observer: ExportObserver;
  readonly signal: AbortSignal;
  /** Paths that were begun: removed when the export fails. */
  readonly written: string[];
}

type Stored = Pick<Manifest, "disks" | "package">;

/** Each disk as an image of its own. */
async function storeImages({ disks }: VmSnapshot, format: ImageFormat, work: Work): Promise<Stored> {
  const stored: ManifestDisk[] = [];
  for (const [index, disk] of disks.entries()) stored.push(await storeImage(disk, index, format, work));
  return { disks: stored };
}

async function storeImage(disk: SnapshotDisk, index: number, format: ImageFormat, work: Work): Promise<ManifestDisk> {
  const { request, observer, signal } = work;
  const file = `disk-${index}.${format}`;
  return storing(file, work, async (upload) => {
    const sink = imageSink(format, upload, disk.source.sizeBytes, { compression: request.compression, fileName: file });
    const poured = await pour(disk.source, sink, { signal, hashed: true, onRead: (bytes) => observer.read(index, bytes) });
    const { bytes, hash } = await upload.finish();
    observer.diskDone(index, bytes);
    return { ...diskOf(disk, index, poured), file, format, compression: request.compression, storedBytes: bytes, storedHash: storedHash(hash) };
  });
}

/** The VM as one archive with all of its disks. */
async function storePackage({ vm, disks }: VmSnapshot, work: Work): Promise<Stored> {
  const { observer, signal } = work;
  const file = "machine.ova";
  return storing(file, work, async (upload) => {
    const packed = await packMachine(
      upload,
      "machine",
      { ...defaultHardware, ...vm, sources: disks.map(({ source }) => source) },
      { signal, hashed: true, onRead: (bytes, disk) => observer.read(disk, bytes), onDisk: ({ bytes }, disk) => observer.diskDone(disk, bytes) },
    );
    const { bytes, hash } = await upload.finish();
    return {
      disks: packed.map(
        (member, index): ManifestDisk => ({
          ...diskOf(disks[index] as SnapshotDisk, index, member.poured),
          file,
          member: { name: member.member, offset: member.offset },
          format: "vmdk",
          compression: "zlib",
          storedBytes: member.bytes,
          storedHash: storedHash(member.hash),
        }),
      ),
      package: { format: "ova", file, storedBytes: bytes, storedHash: storedHash(hash) },
    };
  });
}

/** One file of the restore point: nothing of it is left when storing it fails. */
async function storing<T>(file: string, { folder, destination, written }: Work, store: (upload: Upload) => Promise<T>): Promise<T> {
  const path = `${folder}/${file}`;
  written.push(path);
  const upload = await destination.create(path);
  try {
    return await store(upload);
  } catch (error) {
    await upload.abort();
    throw error;
  }
}

function diskOf(
  { name, source, format, variant }: SnapshotDisk,
  bootOrder: number,
  { readBytes, contentHash }: Poured,
): Pick<ManifestDisk, "bootOrder" | "name" | "virtualBytes" | "readBytes" | "contentHash" | "source"> {
  return {
    bootOrder,
    name,
    virtualBytes: source.sizeBytes,
    readBytes,
    contentHash: { algorithm: "sha256-tree", pieceBytes: contentPieceBytes, value: contentHash },
    source: { format, variant },
  };
}

function storedHash(value: string): ManifestDisk["storedHash"] {
  return { algorithm: "sha256-tree", pieceBytes: storedPieceBytes, value };
}
