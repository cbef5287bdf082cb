import type { ByteFile } from "../converters/byte-file.ts";
import { HypersdkError } from "../model/errors.ts";
import { emptiedReason } from "../model/observed.ts";
import type { Destination } from "./destination.ts";

/*
 * Other processes work on the same destination, so what a listing names may be gone when it is opened. That is an ordinary event for
 * everybody who lists.
 */

export function isGone(error: unknown): boolean {
  return error instanceof HypersdkError && error.code === "NotFound";
}

/** A small file, or undefined where it is not there. */
export async function getOrNothing(destination: Destination, path: string, maxBytes: number): Promise<Buffer | undefined> {
  try {
    return await destination.get(path, maxBytes);
  } catch (error) {
    if (isGone(error)) return undefined;
    throw error;
  }
}

/** A file that a manifest or an index names. @throws ArtifactDamaged when it is not there */
export async function openNamed(destination: Destination, path: string): Promise<ByteFile> {
  try {
    return await destination.open(path);
  } catch (error) {
    throw isGone(error) ? new HypersdkError("ArtifactDamaged", `${path}: it is gone`, { cause: error }) : error;
  }
}

/** Files that are read at once where all of a folder are; an index has 64 MiB at most, and nearly all have a few KiB. */
const readsAtOnce = 8;

/**
 * Reads every file that a listing names, none of which ever changes. Where one goes between the two, what took its place was listed too late: then
 * it is listed again, and what was read is not read again, so that this ends also beside somebody who replaces thousands of them.
 * @returns what was read, in the order of the last listing
 */
export async function readListed<F extends { readonly path: string }, T>(list: () => Promise<readonly F[]>, read: (file: F) => Promise<T>): Promise<T[]> {
  const done = new Map<string, Promise<T>>();
  return againWhileGone(async () => {
    const files = await list();
    let gone: unknown;
    // side by side: each export leaves an index, and reading one takes a few trips to the store
    for (let at = 0; at < files.length; at += readsAtOnce) {
      const some = files.slice(at, at + readsAtOnce).map(async (file) => {
        const reading = done.get(file.path) ?? read(file);
        done.set(file.path, reading);
        await reading.catch((error: unknown) => {
          done.delete(file.path);
          if (!isGone(error)) throw error;
          gone = error;
        });
      });
      for (const each of await Promise.allSettled(some)) if (each.status === "rejected") throw each.reason;
    }
    if (gone) throw gone;
    return Promise.all(files.map(({ path }) => done.get(path) as Promise<T>));
  });
}

/** Lists and reads again, ten times at most, while something goes between the two: what took its place was listed too late. */
export async function againWhileGone<T>(listAndRead: () => Promise<T>): Promise<T> {
  for (let again = 0; ; again++) {
    try {
      return await listAndRead();
    } catch (error) {
      if (!isGone(error) || again === 10) throw error;
    }
  }
}

/** A disk that is not mounted leaves an empty folder behind, which must not be taken for a new destination, nor its points for damaged. */
export function emptied({ spec }: Destination, hint: string = "where they are gone for good, --adopt begins anew there"): HypersdkError {
  return new HypersdkError("DestinationUnreachable", emptiedReason(spec.name), { hint });
}
