import { pour } from "../converters/pour.ts";
import { type ImageCompression, imageSink, type WritableFormat } from "../converters/write-image.ts";
import type { Destination } from "../destinations/destination.ts";
import { HypersdkError } from "../model/errors.ts";
import type { Instant } from "../model/instant.ts";
import { epochMsOf } from "../model/instant.ts";
import type { Clock } from "../model/ports.ts";
import { contentPieceBytes, storedPieceBytes } from "../model/tree-hash.ts";
import type { VmPath } from "../model/vm-path.ts";
import type { Provider, SnapshotDisk } from "../providers/provider.ts";
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
  readonly format: WritableFormat;
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
    const disks: ManifestDisk[] = [];
    for (const [index, disk] of snapshot.disks.entries()) {
      const file = `disk-${index}.${request.format}`;
      written.push(`${folder}/${file}`);
      disks.push(await exportDisk(disk, index, file, `${folder}/${file}`, destination, request, observer, signal));
    }
    await snapshot.confirm();
    signal.throwIfAborted();
    const endedAt = clock.now();
    const sum = (pick: (disk: ManifestDisk) => number): number => disks.reduce((total, disk) => total + pick(disk), 0);
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
      disks,
      times: { startedAt, endedAt },
      estimates: request.estimates,
      actuals: {
        readBytes: sum((disk) => disk.readBytes),
        storedBytes: sum((disk) => disk.storedBytes),
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

async function exportDisk(
  disk: SnapshotDisk,
  index: number,
  file: string,
  path: string,
  destination: Destination,
  request: ExportRequest,
  observer: ExportObserver,
  signal: AbortSignal,
): Promise<ManifestDisk> {
  const upload = await destination.create(path);
  try {
    const sink = imageSink(request.format, upload, disk.source.sizeBytes, { compression: request.compression, fileName: file });
    const poured = await pour(disk.source, sink, { signal, hashed: true, onRead: (bytes) => observer.read(index, bytes) });
    const stored = await upload.finish();
    observer.diskDone(index, stored.bytes);
    return {
      bootOrder: index,
      name: disk.name,
      file,
      format: request.format,
      compression: request.compression,
      virtualBytes: disk.source.sizeBytes,
      readBytes: poured.readBytes,
      storedBytes: stored.bytes,
      storedHash: { algorithm: "sha256-tree", pieceBytes: storedPieceBytes, value: stored.hash },
      contentHash: { algorithm: "sha256-tree", pieceBytes: contentPieceBytes, value: poured.contentHash },
      source: { format: disk.format, variant: disk.variant },
    };
  } catch (error) {
    await upload.abort();
    throw error;
  }
}
