import type { ByteRange } from "../../converters/block-source.ts";
import { openByteFile } from "../../converters/byte-file.ts";
import { type PersistentBitmap, persistentBitmaps } from "../../converters/qcow2/bitmaps.ts";
import { HypersdkError } from "../../model/errors.ts";
import type { ObservedVm } from "../../model/observed.ts";
import type { FoundDisk } from "../images/discover.ts";
import type { DiskTracking, TrackRequest } from "../provider.ts";
import { guardsOf, imageIdentity, isMarkOf, isOurs, wasCut, wasExchanged } from "./bitmaps.ts";

/** The marks that an image keeps, with what has changed since each; undefined for one that can keep none. */
export function marksOf(disk: FoundDisk): Promise<ObservedVm["disks"][number]["marks"]> {
  return withBitmaps(disk, (bitmaps) => {
    const sound = bitmaps.filter(({ name, isSound }) => isSound && isOurs(name));
    return Promise.all(sound.map(async ({ name, ranges }) => ({ name, changedBytes: await bytesOf(ranges()) })));
  });
}

/** What is made of the bitmaps in an image; undefined where it can have none, or what it has cannot be read. */
async function withBitmaps<T>({ path, name, peeked }: FoundDisk, use: (bitmaps: readonly PersistentBitmap[]) => Promise<T>): Promise<T | undefined> {
  if (peeked.format !== "qcow2") return undefined;
  const file = openByteFile(path, name);
  try {
    return await use(await persistentBitmaps(file));
  } catch (error) {
    if (error instanceof HypersdkError && error.code.startsWith("Image")) return undefined;
    throw error;
  } finally {
    await file.close();
  }
}

async function bytesOf(ranges: AsyncIterable<ByteRange>): Promise<number> {
  let bytes = 0;
  for await (const { length } of ranges) bytes += length;
  return bytes;
}

/**
 * The changes that an image keeps itself. Its bitmaps are only read, so that this export sets no mark: the next one asks for what has changed
 * since the same mark, and builds on the same point.
 * @param counts which bitmaps beside the one that was asked for may hold changes that it does not
 * @param isOurMark whether the mark was set by us, which tells of the image and has its guards in it
 */
export async function storedTracking(
  disk: FoundDisk,
  { since }: TrackRequest,
  counts: (name: string) => boolean,
  isOurMark: boolean,
): Promise<DiskTracking | undefined> {
  const mark = since.get(disk.name);
  if (mark === undefined) return undefined;
  const bitmaps = (await withBitmaps(disk, async (all) => all.filter(({ name }) => counts(name)))) ?? [];
  if (!bitmaps.some(({ name }) => name === mark)) return { changes: `its bitmap ${mark} is gone` };
  if (isOurMark && !isMarkOf(mark, imageIdentity(disk.path, "qcow2"))) return { changes: wasExchanged };
  if (!bitmaps.every(({ isSound }) => isSound))
    return { changes: `its bitmap ${mark} is not sound: QEMU did not end well, or something else has written to the image` };
  if (!bitmaps.some(({ isRecording }) => isRecording)) return { changes: `its bitmap ${mark} was disabled by somebody` };
  if (isOurMark && !(await hasGuards(disk, counts))) return { changes: wasCut };
  return { changes: { ranges: () => storedChanges(disk, counts) } };
}

async function hasGuards(disk: FoundDisk, counts: (name: string) => boolean): Promise<boolean> {
  const missing = new Set(guardsOf(disk.peeked.virtualBytes));
  for await (const { offset, length } of storedChanges(disk, counts))
    for (const guard of missing) if (offset <= guard.offset && offset + length >= guard.offset + guard.length) missing.delete(guard);
  return missing.size === 0;
}

/** Also what was marked by exports that were cut off. */
async function* storedChanges({ path, name }: FoundDisk, counts: (name: string) => boolean): AsyncGenerator<ByteRange> {
  const file = openByteFile(path, name);
  try {
    for (const bitmap of await persistentBitmaps(file)) if (counts(bitmap.name)) yield* bitmap.ranges();
  } finally {
    await file.close();
  }
}
