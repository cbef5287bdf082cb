import { type Poured, pour } from "../converters/pour.ts";
import type { Destination, Upload } from "../destinations/destination.ts";
import { withDigest } from "../model/digest.ts";
import { HypersdkError } from "../model/errors.ts";
import type { ExportFormat, ImageCompression, ImageFormat } from "../model/image-formats.ts";
import type { Instant } from "../model/instant.ts";
import { epochMsOf } from "../model/instant.ts";
import type { Clock, Random } from "../model/ports.ts";
import type { RepositoryBefore } from "../model/recorded.ts";
import { contentPieceBytes, storedPieceBytes } from "../model/tree-hash.ts";
import type { VmPath } from "../model/vm-path.ts";
import type { Provider, SnapshotDisk, VmSnapshot } from "../providers/provider.ts";
import { ChunkSession, chunkSink } from "../repository/chunk-sink.ts";
import { expectBytes, useChunkThreads } from "../repository/chunk-thread.ts";
import { partsOf } from "../repository/increment.ts";
import { manifestVersion } from "../repository/layout.ts";
import { lockForExport } from "../repository/locks.ts";
import { pointPath, publishPoint } from "../repository/points.ts";
import { Repository } from "../repository/repository.ts";
import { type ChunkedDisk, type ImageDisk, type Manifest, type ManifestDisk, manifestName, pointFolder } from "./manifest.ts";
import { pointBefore, readingOf, trackRequest } from "./reading.ts";

export interface ExportRequest extends RepositoryBefore {
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
  readonly layout: "image" | "repository";
  readonly format: ExportFormat;
  readonly compression: ImageCompression;
  /** What the plan said of how much is read, and why; `full` is carried out as such, the other as far as changes can be told. */
  readonly mode: "full" | "incremental";
  readonly modeReason: string;
  /** Packs of the repository of which something is known to be damaged: what they hold is sent again. */
  readonly distrusted?: ReadonlySet<string>;
  /** Set for an incremental schedule: after this long, everything is read again. */
  readonly fullReadEveryMs?: number;
  readonly estimates: Manifest["estimates"];
}

/** How far an export is; `disk` counts from 0. */
export interface ExportObserver {
  /** Called before anything is written: what is begun there must be found again after a crash. `place` is a folder of images, or a manifest of a repository. */
  begins(place: string, disks: readonly { readonly name: string; readonly dataBytes: number; readonly virtualBytes: number }[]): void;
  read(disk: number, bytes: number): void;
  diskDone(disk: number, storedBytes: number): void;
  /** Called when everything is stored: while it throws, nothing is published. */
  publishes?(): void;
  /** A provider said of something that it had not changed, and it had. */
  lied?(disk: number, offset: number): void;
}

/** Time and chance, as an export needs them. */
export interface ExportPorts {
  readonly clock: Clock;
  readonly random: Pick<Random, "fraction">;
}

export interface Exported extends RepositoryBefore {
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
  ports: ExportPorts,
  observer: ExportObserver,
  signal: AbortSignal,
): Promise<Exported> {
  const { clock } = ports;
  const startedAt = clock.now();
  // where all is read, threads begin while it is looked at what is there
  if (request.layout === "repository" && !provider.tracksChanges) expectBytes(request.estimates.readBytes);
  const repository = request.layout === "repository" ? await Repository.openOrCreate(destination, request.pointId, startedAt, request) : undefined;
  const before =
    repository &&
    (await pointBefore(repository, { provider: provider.name, identity: request.identity, tracksChanges: provider.tracksChanges ?? false, now: startedAt }));
  const track = repository && request.fullReadEveryMs !== undefined ? trackRequest(repository, request, before) : undefined;
  // what the repository has is read before the instant: while that is kept, a guest's machine pays for it
  const beginning = repository && ChunkSession.begin(repository, request.compression !== "none", request.distrusted);
  beginning?.catch(() => {});
  const snapshot = await provider.snapshot(request.sourceIdentity, { signal, ...(beginning ? { ready: beginning } : {}), ...(track ? { track } : {}) });
  const folder = repository ? "" : pointFolder(request.schedule, request.vmPath, snapshot.instant, request.runId);
  const manifestPath = repository
    ? pointPath(repository, { id: request.pointId, source: { provider: provider.name, identity: request.identity, instant: snapshot.instant } })
    : `${folder}/${manifestName}`;
  const written: string[] = [];
  const releases: (() => Promise<void>)[] = [];
  try {
    if (snapshot.disks.length === 0) throw new HypersdkError("SourceUnavailable", `${request.vmPath} has no disks`);
    observer.begins(
      repository ? manifestPath : folder,
      snapshot.disks.map(({ name, source }) => ({ name, dataBytes: source.dataBytes, virtualBytes: source.sizeBytes })),
    );
    const work: Work = { folder, destination, request, observer, signal, written, releases };
    const stored = beginning
      ? await storeChunks(snapshot, beginning, before, work, ports.random, startedAt)
      : request.format === "ova"
        ? await storePackage(snapshot, work)
        : await storeImages(snapshot, request.format, work);
    await snapshot.confirm();
    signal.throwIfAborted();
    const endedAt = clock.now();
    const sum = (pick: (disk: ManifestDisk) => number): number => stored.manifest.disks.reduce((total, disk) => total + pick(disk), 0);
    const manifest: Manifest = withDigest({
      formatVersion: manifestVersion,
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
        ...(snapshot.consistency ? { consistency: snapshot.consistency } : {}),
        commit: request.commit,
      },
      vm: snapshot.vm,
      ...stored.manifest,
      times: { startedAt, endedAt },
      estimates: request.estimates,
      actuals: {
        readBytes: sum((disk) => disk.readBytes),
        storedBytes: stored.storedBytes,
        durationMs: Math.max(0, epochMsOf(endedAt) - epochMsOf(startedAt)),
      },
    });
    observer.publishes?.();
    await stored.publish(manifestPath, `${JSON.stringify(manifest, null, 2)}\n`);
    // the point is there; marks that could not be replaced cost a larger increment and nothing else
    await snapshot.keepMarks?.().catch(() => {});
    return {
      manifest,
      manifestPath,
      storedBytes: manifest.actuals.storedBytes,
      ...(repository ? { repositoryId: repository.config.id } : {}),
      ...(repository?.keyId ? { keyId: repository.keyId } : {}),
    };
  } catch (thrown) {
    let error = thrown;
    // an image that was cut or rewritten while it was read looks damaged: then it is the source that changed
    if (error instanceof HypersdkError && error.code === "ImageDamaged") await snapshot.confirm().catch((changed: unknown) => (error = changed));
    for (const path of written) await destination.remove(path).catch(() => {});
    throw error;
  } finally {
    for (const release of releases) await release();
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
  /** Called when the export has ended, however it did. */
  readonly releases: (() => Promise<void>)[];
}

/** Disks that are at the destination, and what makes them a restore point. */
interface Stored {
  readonly manifest: Pick<Manifest, "disks" | "package" | "repository">;
  readonly storedBytes: number;
  publish(path: string, manifest: string): Promise<void>;
}

/** Each disk as an image of its own. */
async function storeImages({ disks }: VmSnapshot, format: ImageFormat, work: Work): Promise<Stored> {
  const stored: ImageDisk[] = [];
  for (const [index, disk] of disks.entries()) stored.push(await storeImage(disk, index, format, work));
  return {
    manifest: { disks: stored },
    storedBytes: stored.reduce((sum, { storedBytes }) => sum + storedBytes, 0),
    publish: (path, manifest) => work.destination.put(path, manifest),
  };
}

async function storeImage(disk: SnapshotDisk, index: number, format: ImageFormat, work: Work): Promise<ImageDisk> {
  const { request, observer, signal } = work;
  const { imageSink } = await import("../converters/write-image.ts");
  const file = `disk-${index}.${format}`;
  return storing(file, work, async (upload) => {
    const sink = imageSink(format, upload, disk.source.sizeBytes, { compression: request.compression, fileName: file });
    const poured = await pour(disk.source, sink, { signal, hashPieceBytes: contentPieceBytes, onRead: (bytes) => observer.read(index, bytes) });
    const { bytes, hash } = await upload.finish();
    observer.diskDone(index, bytes);
    return { ...diskOf(disk, index, poured), file, format, compression: request.compression, storedBytes: bytes, storedHash: storedHash(hash) };
  });
}

/** The VM as one archive with all of its disks. */
async function storePackage({ vm, disks }: VmSnapshot, work: Work): Promise<Stored> {
  const { observer, signal } = work;
  const { defaultHardware, packMachine } = await import("../converters/machine/pack-machine.ts");
  const file = "machine.ova";
  return storing(file, work, async (upload) => {
    const packed = await packMachine(
      upload,
      "machine",
      { ...defaultHardware, ...vm, sources: disks.map(({ source }) => source) },
      {
        signal,
        hashPieceBytes: disks.map(() => contentPieceBytes),
        onRead: (bytes, disk) => observer.read(disk, bytes),
        onDisk: ({ bytes }, disk) => observer.diskDone(disk, bytes),
      },
    );
    const { bytes, hash } = await upload.finish();
    const manifest: Stored["manifest"] = {
      disks: packed.map(
        (member, index): ImageDisk => ({
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
    return { manifest, storedBytes: bytes, publish: (path, text) => work.destination.put(path, text) };
  });
}

/** The disks in the chunk store: only what it does not have is sent, and only what may have changed is read. */
async function storeChunks(
  snapshot: VmSnapshot,
  beginning: Promise<ChunkSession>,
  before: Manifest | undefined,
  { request, observer, signal, releases }: Work,
  random: Pick<Random, "fraction">,
  startedAt: Instant,
): Promise<Stored> {
  const session = await beginning;
  const { repository, writer } = session;
  const lock = await lockForExport(repository, request.runId, startedAt);
  releases.push(lock.release);
  try {
    const stored: ChunkedDisk[] = [];
    let sent = 0;
    for (const [index, disk] of snapshot.disks.entries()) {
      const { source, tracking } = disk;
      const reading = await readingOf(disk, snapshot.instant, before, session, request, random, (offset) => observer.lied?.(index, offset));
      const { increment, prior } = reading;
      const sink = chunkSink(session, source.sizeBytes, prior, increment?.kept);
      const from = increment ? partsOf(source, increment) : source;
      const leaveThreads = useChunkThreads(from.dataBytes);
      const { readBytes } = await pour(from, sink, { signal, onRead: (bytes) => observer.read(index, bytes) }).finally(leaveThreads);
      const { chunkBytes, segments, contentHash, dataBytes, newBytes } = sink.stored();
      stored.push({
        ...diskOf(disk, index, { readBytes, contentHash }),
        contentHash: { algorithm: "sha256-tree", pieceBytes: chunkBytes, value: contentHash },
        chunkBytes,
        segments,
        dataBytes,
        newBytes,
        mode: reading.mode,
        reason: reading.reason,
        ...(tracking?.mark === undefined ? {} : { wholeReadAt: reading.wholeReadAt, mark: tracking.mark }),
        ...(reading.marksRefused ? { marksRefused: true } : {}),
      });
      observer.diskDone(index, writer.sentBytes - sent);
      sent = writer.sentBytes;
    }
    await session.finish();
    return {
      manifest: {
        disks: stored,
        repository: {
          id: repository.config.id,
          restoreFormat: request.format === "ova" ? "vmdk" : request.format,
          packs: writer.packs.map(({ name }) => name),
        },
      },
      storedBytes: writer.sentBytes + session.segmentBytes,
      publish: (path, manifest) => publishPoint(session, path, manifest),
    };
  } catch (error) {
    await session.abandon();
    throw error;
  }
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
): Pick<ImageDisk, "bootOrder" | "name" | "virtualBytes" | "readBytes" | "contentHash" | "source"> {
  return {
    bootOrder,
    name,
    virtualBytes: source.sizeBytes,
    readBytes,
    contentHash: { algorithm: "sha256-tree", pieceBytes: contentPieceBytes, value: contentHash },
    source: { format, variant },
  };
}

function storedHash(value: string): ImageDisk["storedHash"] {
  return { algorithm: "sha256-tree", pieceBytes: storedPieceBytes, value };
}
