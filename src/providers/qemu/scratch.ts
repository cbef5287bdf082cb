import { createHash } from "node:crypto";
import { lchownSync, lstatSync, mkdirSync, realpathSync, rmSync, statSync } from "node:fs";
import { dirname, isAbsolute, join } from "node:path";
import { errnoText, HypersdkError } from "../../model/errors.ts";

/** Where an export keeps what a guest overwrites meanwhile, and the socket that the disks are read through. */
export interface Scratch {
  readonly folder: string;
  /** A folder that QEMU may write to. */
  readonly shared: string;
  /** Gives a file in `folder` to whoever QEMU runs as. */
  give(file: string): void;
  remove(): void;
}

/** `.hypersdk-<machine>`: one for each machine, so that what an export that died has left is found again. */
export function scratchStem(machine: string): string {
  return `.hypersdk-${createHash("sha256").update(machine).digest("hex").slice(0, 8)}`;
}

/**
 * Makes it, in the place of what is there by that name.
 * @param parent as the provider names it; beside the image otherwise
 * @param image whose owner QEMU runs as
 */
export function makeScratch(parent: string | undefined, name: string, image: string | undefined): Scratch {
  const place = parent ?? (image !== undefined && isAbsolute(image) ? dirname(image) : undefined);
  if (place === undefined)
    throw new HypersdkError("Failed", `QEMU names its image ${JSON.stringify(image)}, which says nothing of where it is`, {
      hint: "name a folder with `scratch` of the provider",
    });
  const isRoot = process.getuid?.() === 0;
  try {
    // whoever owns a folder can put a link in the place of what we make in it
    if (isRoot) refuseOwned(realpathSync(place));
    const folder = join(place, name);
    const shared = join(folder, "qemu");
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { mode: isRoot ? 0o711 : 0o700 });
    mkdirSync(shared, { mode: 0o700 });
    const owner = isRoot && image !== undefined && isAbsolute(image) ? statSync(image) : undefined;
    const give = (file: string): void => {
      if (owner) lchownSync(file, owner.uid, owner.gid);
    };
    give(shared);
    return { folder, shared, give, remove: () => rmSync(folder, { recursive: true, force: true }) };
  } catch (error) {
    if (error instanceof HypersdkError) throw error;
    throw new HypersdkError("Failed", `no scratch space can be made in ${place}: ${errnoText(error)}`, {
      cause: error,
      hint: "name another folder with `scratch` of the provider",
    });
  }
}

/** @throws Failed for a folder below which somebody else than root could rename something */
function refuseOwned(folder: string): void {
  for (let at = folder; ; at = dirname(at)) {
    const { uid, mode } = lstatSync(at);
    const othersWrite = (mode & 0o022) !== 0 && (mode & 0o1000) === 0;
    if (uid !== 0 || othersWrite)
      throw new HypersdkError("Failed", `root makes no scratch space in ${folder}: ${at} belongs to, or can be written by, others`, {
        hint: "name a folder of root with `scratch` of the provider, or run as the user of the machines",
      });
    if (at === dirname(at)) return;
  }
}
