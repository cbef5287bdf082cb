import type { BlockSource } from "../converters/block-source.ts";
import { sliceOf } from "../converters/byte-file.ts";
import { partOf } from "../converters/concat-source.ts";
import type { DiskSink } from "../converters/disk-sink.ts";
import { noNeighbours } from "../converters/neighbours.ts";
import { openImageFile } from "../converters/open-image.ts";
import { pour } from "../converters/pour.ts";
import type { Destination } from "../destinations/destination.ts";
import { openNamed } from "../destinations/gone.ts";
import { HypersdkError } from "../model/errors.ts";
import type { ChunkIndex } from "../repository/chunk-index.ts";
import { type ChunkedDiskOptions, contentHashOf, openChunkedDisk } from "../repository/disk-source.ts";
import { maxChunkBytes, minChunkBytes } from "../repository/layout.ts";
import { isRepositoryPoint, pointPath } from "../repository/points.ts";
import { isDamage, Repository } from "../repository/repository.ts";
import type { Leftover } from "./leftover.ts";
import { type ImageDisk, isChunked, type Manifest, type ManifestDisk, maxManifestBytes, parseManifest } from "./manifest.ts";

export async function readManifest(destination: Destination, path: string): Promise<Manifest> {
  if (!isRepositoryPoint(path)) return parseManifest(path, await destination.get(path, maxManifestBytes));
  const repository = await openRepository(destination);
  const manifest = parseManifest(path, await repository.getPoint(path));
  const place = pointPath(repository, manifest);
  if (place !== path) throw new HypersdkError("ArtifactDamaged", `${path} holds the manifest of another point, ${place}`);
  return manifest;
}

/** What all points of a repository are read with is damaged, gone, or of another one: of the points it says nothing. */
export class RepositoryUnusable extends HypersdkError {
  constructor(message: string, options: { readonly cause?: unknown; readonly hint?: string } = {}) {
    super("ArtifactDamaged", message, options);
  }
}

/** The repository at a destination where one must be. @throws RepositoryUnusable */
export async function openRepository(destination: Destination): Promise<Repository> {
  const repository = await Repository.open(destination).catch((error: unknown) => {
    throw isDamage(error) ? new RepositoryUnusable(error.message, { cause: error, ...(error.hint === undefined ? {} : { hint: error.hint }) }) : error;
  });
  if (!repository) throw new RepositoryUnusable(`${destination.spec.name} holds no repository: its config is gone`);
  return repository;
}

/** What somebody wants to know of a disk of chunks while it is read. */
interface ReadingOptions {
  readonly leftover?: Leftover | undefined;
  readonly onLost?: ChunkedDiskOptions["onLost"];
}

/** The disks of a restore point, wherever its manifest says that they are. @param manifestPath relative to the destination */
export async function storedDisks(
  destination: Destination,
  manifestPath: string,
  manifest: Manifest,
): Promise<(disk: ManifestDisk, options?: ReadingOptions) => Promise<BlockSource>> {
  const chunked = manifest.repository ? await openRepositoryOf(destination, manifest.repository.id) : undefined;
  return async (disk, { leftover, onLost } = {}) => {
    if (!isChunked(disk)) return openStoredImage(destination, manifestPath, disk);
    if (!chunked) throw new HypersdkError("ArtifactDamaged", `${manifestPath} names chunks, and no repository`);
    const { repository, index } = chunked;
    checkContent(disk, await contentHashOf(repository, disk));
    leftover?.isOf(repository, disk);
    return openChunkedDisk(repository, index, disk, { isPresent: leftover?.has, onLost });
  };
}

async function openRepositoryOf(destination: Destination, id: string): Promise<{ readonly repository: Repository; readonly index: ChunkIndex }> {
  const repository = await openRepository(destination);
  if (repository.config.id !== id)
    throw new RepositoryUnusable(`the point belongs to repository ${id}, ${destination.spec.name} holds ${repository.config.id}`, {
      hint: "put the config back that was there",
    });
  return { repository, index: await repository.loadIndex() };
}

async function openStoredImage(destination: Destination, manifestPath: string, disk: ImageDisk): Promise<BlockSource> {
  const path = `${manifestPath.slice(0, manifestPath.lastIndexOf("/"))}/${disk.file}`;
  const file = await openNamed(destination, path);
  const { member } = disk;
  if (member ? file.sizeBytes < member.offset + disk.storedBytes : file.sizeBytes !== disk.storedBytes) {
    await file.close();
    throw new HypersdkError("ArtifactDamaged", `${path} has ${file.sizeBytes} bytes, ${(member?.offset ?? 0) + disk.storedBytes} were stored`);
  }
  const image = member ? { ...sliceOf(file, member.offset, disk.storedBytes, `${path}: ${member.name}`), close: () => file.close() } : file;
  const { source } = await openImageFile(image, noNeighbours, disk.format);
  const padding = source.sizeBytes - disk.virtualBytes;
  // a format that counts in sectors has rounded the size up
  if (padding > 0 && padding < 512) return partOf(source, 0, disk.virtualBytes);
  if (padding !== 0) {
    await source.close();
    throw new HypersdkError("ArtifactDamaged", `${path} holds a disk of ${source.sizeBytes} bytes, the manifest says ${disk.virtualBytes}`);
  }
  return source;
}

/**
 * Pours a stored disk into a sink and compares its content hash with the manifest's. Nothing that the sink has made may be
 * used when this throws.
 */
export async function restoreDisk(
  source: BlockSource,
  disk: ManifestDisk,
  sink: DiskSink,
  options: { readonly signal?: AbortSignal; readonly onRead?: (bytes: number) => void },
): Promise<void> {
  // the ids of chunks were compared with the hash when the disk was opened, and each chunk is with its id as it is read
  const { contentHash } = await pour(source, sink, isChunked(disk) ? options : { ...options, hashPieceBytes: hashPieceBytesOf(disk) });
  if (!isChunked(disk)) checkContent(disk, contentHash);
}

/** @throws ArtifactDamaged for pieces that nobody hashes by: of a few bytes, they would take for ever */
export function hashPieceBytesOf(disk: ManifestDisk): number {
  const { pieceBytes } = disk.contentHash;
  const isUsual = pieceBytes >= minChunkBytes && pieceBytes <= maxChunkBytes && (pieceBytes & (pieceBytes - 1)) === 0;
  if (isChunked(disk) ? pieceBytes !== disk.chunkBytes : !isUsual)
    throw new HypersdkError("ArtifactDamaged", `the content hash of ${disk.name} has pieces of ${pieceBytes} bytes`);
  return pieceBytes;
}

/** @throws ArtifactDamaged when what was read of a disk is not what was exported */
export function checkContent(disk: ManifestDisk, contentHash: string): void {
  hashPieceBytesOf(disk);
  if (contentHash !== disk.contentHash.value) {
    throw new HypersdkError(
      "ArtifactDamaged",
      `the content of ${disk.name} is not what was exported: its hash is ${contentHash}, the manifest says ${disk.contentHash.value}`,
    );
  }
}

/** A sink that keeps nothing: for proving that a disk can be rebuilt. */
export function discardingSink(): DiskSink {
  return { blockBytes: 65_536, async write() {}, async settled() {}, async finish() {} };
}
