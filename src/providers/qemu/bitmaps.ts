import { statSync } from "node:fs";
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

/** The name of the export with the disk's number, which is the mark too: two disks that change places do not have each other's. */
export function bitmapName(track: Pick<TrackRequest, "owner" | "id">, disk: number): string {
  return `${exportName(track)}-${disk}`;
}

/** The export that a mark was set by. */
export function exportOf(mark: string): string {
  return mark.slice(0, mark.lastIndexOf("-"));
}

export function isOwnedBy(name: string, owner: string): boolean {
  return name.startsWith(`${ourPrefix}${owner}-`);
}

/** libvirt calls the bitmaps of all disks as their checkpoint: the image's inode tells which is whose, also once they were exchanged. */
export function checkpointMark(checkpoint: string, image: string): string {
  try {
    return `${checkpoint}-${statSync(image).ino.toString(36)}`;
  } catch (error) {
    throw new HypersdkError("SourceUnavailable", `${image} cannot be looked at: ${errnoText(error)}`, { cause: error });
  }
}
