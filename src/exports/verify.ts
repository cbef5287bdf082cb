import type { BlockSource } from "../converters/block-source.ts";
import type { Destination } from "../destinations/destination.ts";
import { openNamed } from "../destinations/gone.ts";
import type { VerifyLevel } from "../model/desired.ts";
import { HypersdkError } from "../model/errors.ts";
import { storedPieceBytes, TreeHash } from "../model/tree-hash.ts";
import { readPack } from "../repository/chunk-reader.ts";
import { packsFolder } from "../repository/layout.ts";
import { readDirectory } from "../repository/survey.ts";
import type { BootOptions } from "./boot.ts";
import { isChunked, type Manifest, type ManifestDisk } from "./manifest.ts";
import { discardingSink, openRepository, restoreDisk, storedDisks } from "./restore.ts";

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
    if (file.sizeBytes !== storedBytes) throw new HypersdkError("ArtifactDamaged", `${path} has ${file.sizeBytes} bytes, ${storedBytes} were stored`);
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
