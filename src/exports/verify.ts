import type { Destination } from "../destinations/destination.ts";
import { HypersdkError } from "../model/errors.ts";
import { storedPieceBytes, TreeHash } from "../model/tree-hash.ts";
import type { Manifest } from "./manifest.ts";
import { discardingSink, openStoredDisk, restoreDisk } from "./restore.ts";

export type VerifyLevel = "none" | "stored" | "checksum" | "restore";

/**
 * Proves a restore point. `stored` takes the store's own checksum where it has one and reads back where it has none, as a
 * folder does; `checksum` always reads back; `restore` rebuilds every disk and compares the content.
 * @throws ArtifactDamaged with the first thing that is wrong
 */
export async function verifyPoint(
  destination: Destination,
  manifestPath: string,
  manifest: Manifest,
  level: VerifyLevel,
  options: { readonly signal?: AbortSignal; readonly onRead?: (bytes: number) => void } = {},
): Promise<void> {
  if (level === "none") return;
  const folder = manifestPath.slice(0, manifestPath.lastIndexOf("/"));
  const { package: archive } = manifest;
  // what stands around its disks is proved too
  if (archive) await compareStoredHash(destination, `${folder}/${archive.file}`, archive.storedBytes, archive.storedHash.value, options);
  for (const disk of manifest.disks) {
    if (level === "restore") {
      const source = await openStoredDisk(destination, manifestPath, disk);
      try {
        await restoreDisk(source, disk, discardingSink(), options);
      } catch (error) {
        throw error instanceof HypersdkError && error.code === "ImageDamaged" ? new HypersdkError("ArtifactDamaged", error.message, { cause: error }) : error;
      } finally {
        await source.close();
      }
      continue;
    }
    if (!disk.member) await compareStoredHash(destination, `${folder}/${disk.file}`, disk.storedBytes, disk.storedHash.value, options);
  }
}

async function compareStoredHash(
  destination: Destination,
  path: string,
  storedBytes: number,
  expected: string,
  { signal, onRead }: { readonly signal?: AbortSignal; readonly onRead?: (bytes: number) => void },
): Promise<void> {
  const file = await destination.open(path).catch((error: unknown) => {
    throw error instanceof HypersdkError && error.code === "NotFound" ? new HypersdkError("ArtifactDamaged", `${path} is gone`, { cause: error }) : error;
  });
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
