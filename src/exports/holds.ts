import type { Destination } from "../destinations/destination.ts";
import { emptied, isGone } from "../destinations/gone.ts";
import { HypersdkError } from "../model/errors.ts";
import type { Instant } from "../model/instant.ts";
import { Repository } from "../repository/repository.ts";
import { readMarker } from "./lineage.ts";

/**
 * A restore point that is held is known at its destination too, as `holds/<id>.json`: a state that is rebuilt from there lets go of nothing
 * that somebody kept. Where what is stored is encrypted, the reason stays at home.
 */
interface Hold {
  readonly at: Instant;
  readonly reason: string | null;
}

const folder = "holds";

/**
 * @param reason why it is held; undefined lets go
 * @throws DestinationUnreachable where this state has never written: a destination that is not mounted learns of nothing
 */
export async function noteHold(destination: Destination, lineage: string, id: string, at: Instant, reason: string | undefined): Promise<void> {
  const marker = await readMarker(destination);
  if (marker?.lineage !== lineage) throw emptied(destination);
  const path = `${folder}/${id}.json`;
  if (reason === undefined) return destination.remove(path);
  // what cannot be known not to be sealed is taken to be
  const isPlain = marker.layout === "image" || (!destination.encryption?.sealing && (await Repository.isSealed(destination)) === false);
  const hold: Hold = { at, reason: isPlain ? reason : null };
  await destination.put(path, `${JSON.stringify(hold, null, 2)}\n`);
}

/** The reason of each hold, by the point's id. One that cannot be read, or is no file, holds all the same. */
export async function listHolds(destination: Destination): Promise<ReadonlyMap<string, string>> {
  const holds = new Map<string, string>();
  for (const { path, isPartial, isLink } of await destination.list(folder)) {
    const id = /^holds\/([0-9a-f-]{36})\.json(?:\/|$)/.exec(path)?.[1];
    if (id === undefined || isPartial) continue;
    try {
      holds.set(id, (isLink ? undefined : await reasonAt(destination, path)) ?? "held before the state was rebuilt");
    } catch (error) {
      if (!isGone(error)) throw error;
    }
  }
  return holds;
}

async function reasonAt(destination: Destination, path: string): Promise<string | undefined> {
  try {
    const { reason } = JSON.parse((await destination.get(path, 65_536)).toString("utf8")) as Partial<Hold>;
    return typeof reason === "string" ? reason : undefined;
  } catch (error) {
    if (isGone(error) || (error instanceof HypersdkError && error.isTransient)) throw error;
    return undefined;
  }
}
