import type { Destination } from "../destinations/destination.ts";
import { emptied, getOrNothing } from "../destinations/gone.ts";
import { HypersdkError } from "../model/errors.ts";
import type { Instant } from "../model/instant.ts";
import { manifestName } from "./manifest.ts";

/** Which state writes to a destination. Two states on one destination would each expire what the other keeps. */
export interface DestinationMarker {
  readonly formatVersion: 1;
  readonly lineage: string;
  readonly layout: "image" | "repository";
  readonly createdAt: Instant;
}

const markerPath = "hypersdk-destination.json";

/** Undefined when nothing was ever written there. @throws DamagedMarker */
export async function readMarker(destination: Destination): Promise<DestinationMarker | undefined> {
  const bytes = await getOrNothing(destination, markerPath, 65_536).catch((error: unknown) => {
    throw error instanceof HypersdkError && error.code === "ArtifactDamaged" ? new DamagedMarker(destination) : error;
  });
  // an earlier program on a full disk left it empty: nobody has claimed the destination, unless something lies there
  if (!bytes?.length) {
    if (await holdsRepository(destination)) throw new DamagedMarker(destination, "gone");
    return undefined;
  }
  const marker = parsed(bytes);
  if (isMarker(marker)) return marker;
  if (typeof marker?.formatVersion === "number" && marker.formatVersion > 1)
    throw new HypersdkError("DestinationForeign", `${markerPath} in ${destination.spec.name} has version ${marker.formatVersion}`, {
      hint: "use the newer hypersdk that wrote it",
    });
  throw new DamagedMarker(destination);
}

/** What lies at the destination is there, and the file that says whose it is does not say it. */
export class DamagedMarker extends HypersdkError {
  constructor({ spec }: Destination, how: "damaged" | "gone" = "damaged") {
    super("DestinationForeign", `${markerPath} in ${spec.name} is ${how}: nothing says which state writes there`, {
      hint: "where no other state does, --adopt of apply, run or copy writes it anew",
    });
  }
}

function parsed(bytes: Buffer): Partial<DestinationMarker> | undefined {
  try {
    return JSON.parse(bytes.toString("utf8")) as Partial<DestinationMarker>;
  } catch {
    return undefined;
  }
}

function isMarker(marker: Partial<DestinationMarker> | undefined): marker is DestinationMarker {
  return marker?.formatVersion === 1 && typeof marker.lineage === "string" && (marker.layout === "image" || marker.layout === "repository");
}

export interface ClaimOptions {
  /** Take it over from another state. */
  readonly adopt: boolean;
  /** The state has restore points there, so that something must be. */
  readonly hasPoints?: boolean;
  /** How something is about to be stored there; left out by those who only remove. */
  readonly layout?: DestinationMarker["layout"];
}

/**
 * Claims a destination for a state, or makes sure that it is its own.
 * @throws DestinationForeign when another state writes there and `adopt` was not said, or when what is there has another layout;
 * DestinationUnreachable when nothing is there and something must be
 */
export async function claim(destination: Destination, lineage: string, now: Instant, options: ClaimOptions): Promise<void> {
  const { adopt, layout, hasPoints } = options;
  const marker = await readMarker(destination).catch(async (error: unknown) => {
    if (!adopt || !(error instanceof DamagedMarker)) throw error;
    const anew: DestinationMarker = { formatVersion: 1, lineage, layout: (await layoutThere(destination)) ?? layout ?? "image", createdAt: now };
    await destination.put(markerPath, `${JSON.stringify(anew, null, 2)}\n`);
    return anew;
  });
  if (!marker && hasPoints && !adopt) throw emptied(destination);
  if (marker && layout !== undefined && marker.layout !== layout)
    throw new HypersdkError("Failed", `destination ${destination.spec.name} holds the layout ${marker.layout}, and ${layout} is asked for`, {
      hint: `give the schedules that need ${layout === "repository" ? "a repository" : "images"} another destination`,
    });
  if (marker?.lineage === lineage) return;
  const mine: DestinationMarker = { formatVersion: 1, lineage, layout: layout ?? "image", createdAt: now };
  if (!marker) {
    try {
      return await destination.put(markerPath, `${JSON.stringify(mine, null, 2)}\n`, { exclusive: true });
    } catch (error) {
      if (!(error instanceof HypersdkError && error.code === "AlreadyExists")) throw error;
      if (await readMarker(destination)) return claim(destination, lineage, now, options);
      return destination.put(markerPath, `${JSON.stringify(mine, null, 2)}\n`);
    }
  }
  if (!adopt) {
    throw new HypersdkError(
      "DestinationForeign",
      `destination ${destination.spec.name} belongs to state ${marker.lineage.slice(0, 8)}, not to this one (${lineage.slice(0, 8)})`,
      {
        hint: "use the state file that belongs to it, or take it over with --adopt",
      },
    );
  }
  await destination.put(markerPath, `${JSON.stringify({ ...mine, layout: marker.layout, createdAt: marker.createdAt }, null, 2)}\n`);
}

/**
 * After an export: that it went where it was claimed. A disk that was unmounted in the middle leaves a folder in its place, which takes
 * everything and holds nothing of what was there.
 */
export async function stillClaimed(destination: Destination, lineage: string): Promise<void> {
  if ((await readMarker(destination))?.lineage === lineage) return;
  const { name } = destination.spec;
  throw new HypersdkError("DestinationUnreachable", `${name} is not what it was when the export began: a part of it may lie elsewhere`, {
    hint: "is it still mounted? What lies in the folder under it is of no use",
  });
}

async function holdsRepository(destination: Destination): Promise<boolean> {
  const { isDamage, Repository } = await import("../repository/repository.ts");
  const config = await Repository.configAt(destination).catch((error: unknown) => {
    // somebody else's file may have that name; one that cannot be read just now says nothing
    if (!isDamage(error)) throw error;
    return undefined;
  });
  return config !== undefined;
}

/** What lies at a destination whose marker cannot say it; undefined where no restore point does. */
export async function layoutThere(destination: Destination): Promise<DestinationMarker["layout"] | undefined> {
  const { configPath } = await import("../repository/repository.ts");
  const files = await destination.list();
  if (files.some(({ path }) => path === configPath)) return "repository";
  return files.some(({ path }) => path.endsWith(`/${manifestName}`)) ? "image" : undefined;
}
