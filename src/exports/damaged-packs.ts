import type { Destination } from "../destinations/destination.ts";
import { isGone } from "../destinations/gone.ts";
import type { PackInfo } from "../repository/chunk-index.ts";
import { damageOf } from "../repository/chunk-reader.ts";
import { isDamage, Repository } from "../repository/repository.ts";
import { packsOf } from "../repository/survey.ts";
import { isChunked } from "./manifest.ts";
import { readManifest } from "./restore.ts";

/**
 * The packs that restore points take chunks from and that are damaged or gone. All of those packs are read.
 * @param manifestPaths of points that failed a proof; one that cannot be read any more says nothing
 * @returns the names of the packs
 */
export async function damagedPacksOf(destination: Destination, manifestPaths: readonly string[], signal: AbortSignal): Promise<Set<string>> {
  const damaged = new Set<string>();
  const repository = await Repository.open(destination);
  if (!repository) return damaged;
  const index = await repository.loadIndex();
  const sound = new Set<string>();
  for (const path of manifestPaths) {
    try {
      const { disks } = await readManifest(destination, path);
      for (const pack of await packsOf(repository, index, { path, disks: disks.filter(isChunked) }, () => {})) {
        signal.throwIfAborted();
        if (sound.has(pack.name) || damaged.has(pack.name)) continue;
        ((await isSound(repository, pack)) ? sound : damaged).add(pack.name);
      }
    } catch (error) {
      if (!isDamage(error) && !isGone(error)) throw error;
    }
  }
  return damaged;
}

async function isSound(repository: Repository, pack: PackInfo): Promise<boolean> {
  try {
    return (await damageOf(repository, pack)).length === 0;
  } catch (error) {
    if (isDamage(error) || isGone(error)) return false;
    throw error;
  }
}
