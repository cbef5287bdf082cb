import type { Destination } from "../destinations/destination.ts";
import { HypersdkError } from "../model/errors.ts";
import type { Instant } from "../model/instant.ts";
import { Repository } from "../repository/repository.ts";

/**
 * A restore point that is held is known at its destination too, as `holds/<id>.json`: a state that is rebuilt from there lets go of nothing
 * that somebody kept. Where what is stored is encrypted, the reason stays at home.
 */
interface Hold {
  readonly at: Instant;
  readonly reason: string | null;
}

const folder = "holds";

export async function putHold(destination: Destination, id: string, at: Instant, reason: string): Promise<void> {
  const isSealed = (await Repository.isSealed(destination)) ?? destination.encryption !== undefined;
  const hold: Hold = { at, reason: isSealed ? null : reason };
  await destination.put(`${folder}/${id}.json`, `${JSON.stringify(hold, null, 2)}\n`);
}

export async function removeHold(destination: Destination, id: string): Promise<void> {
  await destination.remove(`${folder}/${id}.json`);
}

/** The reason of each hold, by the point's id. One that cannot be read holds all the same. */
export async function listHolds(destination: Destination): Promise<ReadonlyMap<string, string>> {
  const holds = new Map<string, string>();
  for (const { path, isPartial } of await destination.list(folder)) {
    const id = /^holds\/([0-9a-f-]{36})\.json$/.exec(path)?.[1];
    if (id !== undefined && !isPartial) holds.set(id, (await reasonAt(destination, path)) ?? "held before the state was rebuilt");
  }
  return holds;
}

async function reasonAt(destination: Destination, path: string): Promise<string | undefined> {
  try {
    const { reason } = JSON.parse((await destination.get(path, 65_536)).toString("utf8")) as Partial<Hold>;
    return typeof reason === "string" ? reason : undefined;
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof TypeError) return undefined;
    if (error instanceof HypersdkError && (error.code === "NotFound" || error.code === "ArtifactDamaged")) return undefined;
    throw error;
  }
}
