import type { BlockSource } from "../converters/block-source.ts";
import { sliceOf } from "../converters/byte-file.ts";
import { partOf } from "../converters/concat-source.ts";
import type { DiskSink } from "../converters/disk-sink.ts";
import { noNeighbours } from "../converters/neighbours.ts";
import { openImageFile } from "../converters/open-image.ts";
import { pour } from "../converters/pour.ts";
import type { Destination } from "../destinations/destination.ts";
import { HypersdkError } from "../model/errors.ts";
import { contentPieceBytes } from "../model/tree-hash.ts";
import { type Manifest, type ManifestDisk, maxManifestBytes, parseManifest } from "./manifest.ts";

export async function readManifest(destination: Destination, path: string): Promise<Manifest> {
  return parseManifest(path, await destination.get(path, maxManifestBytes));
}

/** The disk of a restore point as it is stored. @param manifestPath relative to the destination */
export async function openStoredDisk(destination: Destination, manifestPath: string, disk: ManifestDisk): Promise<BlockSource> {
  const path = `${manifestPath.slice(0, manifestPath.lastIndexOf("/"))}/${disk.file}`;
  const file = await destination.open(path).catch((error: unknown) => {
    throw error instanceof HypersdkError && error.code === "NotFound" ? new HypersdkError("ArtifactDamaged", `${path} is gone`, { cause: error }) : error;
  });
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
  const { contentHash } = await pour(source, sink, { ...options, hashed: true });
  checkContent(disk, contentHash);
}

/** @throws ArtifactDamaged when what was read of a disk is not what was exported */
export function checkContent(disk: ManifestDisk, contentHash: string): void {
  if (disk.contentHash.pieceBytes !== contentPieceBytes)
    throw new HypersdkError("ArtifactDamaged", `the content hash of ${disk.name} has pieces of ${disk.contentHash.pieceBytes} bytes`);
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
