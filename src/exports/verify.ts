import type { BlockSource } from "../converters/block-source.ts";
import type { Destination } from "../destinations/destination.ts";
import { openNamed } from "../destinations/gone.ts";
import type { VerifyLevel } from "../model/desired.ts";
import { HypersdkError } from "../model/errors.ts";
import { storedPieceBytes, TreeHash } from "../model/tree-hash.ts";
import type { ChunkIndex } from "../repository/chunk-index.ts";
import { readPack } from "../repository/chunk-reader.ts";
import { packsFolder } from "../repository/layout.ts";
import { isDamage, type Repository } from "../repository/repository.ts";
import { findDisks, readDirectory } from "../repository/survey.ts";
import type { BootOptions } from "./boot.ts";
import { type ImageDisk, isChunked, type Manifest, type ManifestDisk } from "./manifest.ts";
import { discardingSink, openRepository, readManifest, restoreDisk, storedDisks } from "./restore.ts";

/**
 * Proves a restore point. `stored` takes the store's own checksum where it has one and reads back where it has none, as a
 * folder does; `checksum` always reads back; `restore` rebuilds every disk and compares the content;
 * `boot` starts it.
 * @throws ArtifactDamaged with the first thing that is wrong, NotBooted
 */
export async function verifyPoint(
  destination: Destination,
  manifestPath: string,
  manifest: Manifest,
  level: VerifyLevel,
  options: VerifyOptions = {},
): Promise<void> {
  if (level === "none") return;
  if (level === "boot") {
    const { bootPoint } = await import("./boot.ts");
    return bootPoint(destination, manifestPath, manifest, { ...options.boot, ...(options.signal ? { signal: options.signal } : {}) });
  }
  const folder = manifestPath.slice(0, manifestPath.lastIndexOf("/"));
  const { package: archive, repository, disks } = manifest;
  // what stands around the disks of an archive is proved too
  if (archive) await compareStoredHash(destination, `${folder}/${archive.file}`, archive.storedBytes, archive.storedHash.value, options);
  if (repository && level === "stored") return verifySent(destination, repository, options);
  const open = await storedDisks(destination, manifestPath, manifest);
  for (const disk of disks) {
    if (level === "restore" || isChunked(disk)) await rebuild(await open(disk), disk, options);
    else if (!disk.member) await compareStoredHash(destination, `${folder}/${disk.file}`, disk.storedBytes, disk.storedHash.value, options);
  }
}

/** How often a point is looked for again: a compaction that goes on meanwhile may look like damage, once. */
const mostLooks = 3;

/**
 * Finds restore points at a destination, whole as far as names and lengths tell: nothing that was stored is read, as {@link verifyPoint} does.
 * The index of a repository is read once for all of them.
 * @returns a function of the manifest's path. It throws ArtifactDamaged, or NotFound where there is no manifest
 */
export function finderOfPoints(destination: Destination): (manifestPath: string) => Promise<void> {
  let opened: Promise<{ readonly repository: Repository; readonly index: ChunkIndex }> | undefined;
  const open = async (): Promise<{ readonly repository: Repository; readonly index: ChunkIndex }> => {
    const repository = await openRepository(destination);
    return { repository, index: await repository.loadIndex({ withCondemned: true }) };
  };
  return async (manifestPath) => {
    const manifest = await readManifest(destination, manifestPath);
    if (!manifest.repository) return findImages(destination, manifestPath, manifest);
    for (let looks = 1; ; looks++) {
      const { repository, index } = await (opened ??= open());
      try {
        return await findDisks(repository, index, { path: manifestPath, disks: manifest.disks.filter(isChunked) });
      } catch (error) {
        if (!isDamage(error) || looks === mostLooks) throw error;
        opened = undefined;
      }
    }
  };
}

async function findImages(destination: Destination, manifestPath: string, { package: archive, disks }: Manifest): Promise<void> {
  const folder = manifestPath.slice(0, manifestPath.lastIndexOf("/"));
  for (const { file, storedBytes } of archive ? [archive] : disks.filter((disk): disk is ImageDisk => !isChunked(disk))) {
    const opened = await openNamed(destination, `${folder}/${file}`);
    await opened.close();
    refuseOtherLength(`${folder}/${file}`, opened.sizeBytes, storedBytes);
  }
}

function refuseOtherLength(path: string, bytes: number, storedBytes: number): void {
  if (bytes !== storedBytes) throw new HypersdkError("ArtifactDamaged", `${path} has ${bytes} bytes, ${storedBytes} were stored`);
}

async function rebuild(source: BlockSource, disk: ManifestDisk, options: VerifyOptions): Promise<void> {
  try {
    await restoreDisk(source, disk, discardingSink(), options);
  } catch (error) {
    throw error instanceof HypersdkError && error.code === "ImageDamaged" ? new HypersdkError("ArtifactDamaged", error.message, { cause: error }) : error;
  } finally {
    await source.close();
  }
}

/** What an export sent to a repository is read back; what it found there was proved by the export that had sent it. */
async function verifySent(destination: Destination, { packs }: { readonly packs: readonly string[] }, { signal, onRead }: VerifyOptions): Promise<void> {
  const repository = await openRepository(destination);
  for (const name of packs) {
    const directory = await readDirectory(repository, `${packsFolder}/${name}`, name);
    for await (const { problem, stored } of readPack(repository, { name, directory, usable: true })) {
      signal?.throwIfAborted();
      if (problem) throw problem;
      onRead?.(stored.length);
    }
  }
}

interface VerifyOptions {
  readonly boot?: Pick<BootOptions, "marker" | "timeoutMs">;
  readonly signal?: AbortSignal;
  readonly onRead?: (bytes: number) => void;
}

async function compareStoredHash(
  destination: Destination,
  path: string,
  storedBytes: number,
  expected: string,
  { signal, onRead }: VerifyOptions,
): Promise<void> {
  const file = await openNamed(destination, path);
  try {
    refuseOtherLength(path, file.sizeBytes, storedBytes);
    const hash = new TreeHash(storedPieceBytes);
    const buffers = [Buffer.allocUnsafeSlow(1 << 20), Buffer.allocUnsafeSlow(1 << 20)];
    const read = async (offset: number, turn: number): Promise<Buffer> => {
      const into = (buffers[turn % 2] as Buffer).subarray(0, Math.max(0, Math.min(1 << 20, storedBytes - offset)));
      await file.read(offset, into);
      return into;
    };
    let next = read(0, 0);
    for (let offset = 0, turn = 1; offset < storedBytes; turn++) {
      const data = await next;
      signal?.throwIfAborted();
      next = read(offset + data.length, turn);
      next.catch(() => {});
      hash.update(data);
      onRead?.(data.length);
      offset += data.length;
    }
    await next;
    const value = hash.digest();
    if (value !== expected) throw new HypersdkError("ArtifactDamaged", `${path} is not what was stored: its hash is ${value}, the manifest says ${expected}`);
  } finally {
    await file.close();
  }
}
