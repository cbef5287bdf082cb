import type { ByteFile } from "../converters/byte-file.ts";
import { HypersdkError } from "../model/errors.ts";
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
