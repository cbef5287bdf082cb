import { createHash } from "node:crypto";
import { type BigIntStats, statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import type { ByteRange } from "../../converters/block-source.ts";
import { readSlice } from "../../converters/machine/read-slice.ts";
import { errnoText, HypersdkError } from "../../model/errors.ts";
import type { TrackRequest } from "../provider.ts";

/** Everything that we make in a machine is named so; nothing else is touched. */
export const ourPrefix = "hypersdk-";

export function isOurs(name: unknown): name is string {
  return typeof name === "string" && name.startsWith(ourPrefix);
}

/** `hypersdk-<repository>-<restore point>`: of one export. */
export function exportName({ owner, id }: Pick<TrackRequest, "owner" | "id">): string {
  return `${ourPrefix}${owner}-${id}`;
}

/** The name of the export with the disk's number and what its image is known by, which is the mark too: a disk that is another one has another's. */
export function bitmapName(track: Pick<TrackRequest, "owner" | "id">, disk: number, image: string): string {
  return `${exportName(track)}-${disk}-${image}`;
}

/** Whether a mark was set on this image, as it and what it is based on are now. */
export function isMarkOf(mark: string, image: string): boolean {
  return mark.endsWith(`-${image}`);
}

/** Of a bitmap that is set: what changed is told in blocks of so many bytes. */
export const granularity = 65_536;

/** How far from the end of a disk the blocks begin that stand in every mark. */
const guardDistances: readonly number[] = [granularity, 2 ** 20, 2 ** 24, 2 ** 28, 2 ** 32, 2 ** 36, 2 ** 40];

/**
 * Blocks of a disk that stand in every mark: the last one, and some before it, ever farther from the end. A disk that was cut has lost those
 * behind the cut, however it grew again; that stays hidden only where all of them were written anew since.
 */
export function guardsOf(virtualBytes: number): ByteRange[] {
  const end = Math.ceil(virtualBytes / granularity) * granularity;
  return guardDistances
    .filter((distance) => distance <= end)
    .map((distance) => ({ offset: end - distance, length: Math.min(granularity, virtualBytes - end + distance) }));
}

export const wasCut = "it was cut and grew again, of which its bitmap does not tell";

export const wasExchanged = "its image is another one than that of the last export, or is based on another one";

/** A chain of images is longer nowhere. */
const mostImages = 256;
const headBytes = 4096;

/**
 * What an image is known by: its inode, and inode, size and time of all that it is based on. A file that is put in its place, or another base,
 * makes it another one. What is no local file is known by its name.
 */
export function imageIdentity(path: string, format: string): string {
  const hash = createHash("sha256");
  let at: string | undefined = path;
  for (let i = 0; i < mostImages && at !== undefined; i++) {
    const stat: BigIntStats | undefined = statSync(at, { bigint: true, throwIfNoEntry: false });
    hash.update(stat ? (i === 0 ? `${stat.ino}\n` : `${stat.ino} ${stat.size} ${stat.mtimeNs}\n`) : `${at}\n`);
    at = stat?.isFile() && (i > 0 || format === "qcow2") ? baseOf(at) : undefined;
  }
  return BigInt(`0x${hash.digest("hex").slice(0, 12)}`).toString(36);
}

/** The backing file that a QCOW2 image names; undefined for anything else. */
function baseOf(path: string): string | undefined {
  const head = readSlice(path, 0, headBytes);
  if (head.length < 32 || head.readUInt32BE(0) !== 0x514649fb) return undefined;
  const [offset, length] = [Number(head.readBigUInt64BE(8)), head.readUInt32BE(16)];
  if (offset === 0 || length === 0 || offset + length > head.length) return undefined;
  return resolve(dirname(path), head.toString("utf8", offset, offset + length));
}

/** The export that a mark was set by. */
export function exportOf(mark: string): string {
  return mark.slice(0, mark.lastIndexOf("-"));
}

export function isOwnedBy(name: string, owner: string): boolean {
  return name.startsWith(`${ourPrefix}${owner}-`);
}

/** libvirt calls the bitmaps of all disks as their checkpoint: what the image is known by tells which is whose, also once they were exchanged. */
export function checkpointMark(checkpoint: string, image: string): string {
  try {
    statSync(image);
    return `${checkpoint}-${imageIdentity(image, "qcow2")}`;
  } catch (error) {
    throw new HypersdkError("SourceUnavailable", `${image} cannot be looked at: ${errnoText(error)}`, { cause: error });
  }
}
