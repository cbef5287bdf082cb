import type { Destination } from "../destinations/destination.ts";
import { HypersdkError } from "../model/errors.ts";
import { compactInstant, type Instant } from "../model/instant.ts";
import type { ChunkSession } from "./chunk-sink.ts";
import { pointsFolder } from "./layout.ts";
import { type Repository, refuseLink } from "./repository.ts";

const listedEnding = ".json";
/** A manifest on its way: compaction counts it, nobody lists it. */
const pendingEnding = ".pending";

/**
 * `points/<VM>/<time>-<id>.json`: the VM is a hash of what it is called at its provider, with the key where there is one. A manifest that
 * was put in another's place is found out by it.
 */
export function pointPath(repository: Repository, { id, source: { instant, ...vm } }: PointName): string {
  return `${folderOfPoints(repository, vm)}/${compactInstant(instant)}-${id.slice(0, 8)}${listedEnding}`;
}

/** Where the manifests of one VM are. */
export function folderOfPoints({ sealing }: Repository, { provider, identity }: Omit<PointName["source"], "instant">): string {
  return `${pointsFolder}/${sealing.nameFor(JSON.stringify([provider, identity]))}`;
}

/** What the path of a manifest is made of. */
export interface PointName {
  readonly id: string;
  readonly source: { readonly provider: string; readonly identity: string; readonly instant: Instant };
}

/** Whether a manifest's path is that of a repository's point, not of a folder of images. */
export function isRepositoryPoint(manifestPath: string): boolean {
  return manifestPath.startsWith(`${pointsFolder}/`) && /^[0-9a-f]{32}\/[^/]+\.json$/.test(manifestPath.slice(pointsFolder.length + 1));
}

/** The paths of all manifests of one VM, in no order. @param folder as {@link folderOfPoints} names it */
export async function pathsOfPoints(destination: Destination, folder: string): Promise<string[]> {
  const files = (await destination.names(folder)).filter(({ isPartial }) => !isPartial).map(refuseLink);
  return files.map(({ path }) => path).filter(isRepositoryPoint);
}

/** Every manifest, and, for those who must not lose anything, every one on its way. */
export async function listPoints(
  destination: Destination,
  options: { readonly withPending?: boolean } = {},
): Promise<{ readonly path: string; readonly bytes: number }[]> {
  const files = (await destination.list(pointsFolder)).filter(({ isPartial }) => !isPartial).map(refuseLink);
  const listed = files.filter(({ path }) => isRepositoryPoint(path));
  return options.withPending ? [...listed, ...files.filter(({ path }) => path.endsWith(pendingEnding))] : listed;
}

export function isPending(path: string): boolean {
  return path.endsWith(pendingEnding);
}

/** The name that a pending manifest will have. */
export function pointOfPending(path: string): string {
  return path.slice(0, -pendingEnding.length) + listedEnding;
}

export function pendingPath(path: string): string {
  return path.slice(0, -listedEnding.length) + pendingEnding;
}

/**
 * Publishes a manifest, so that no compaction takes away what it names. A compaction condemns, then reads all manifests, pending ones too,
 * then deletes; this writes the manifest as pending, then looks at what is condemned and what is there, then gives it its name. Whichever
 * order the two meet in, one of them sees the other, with no clock in it: docs/formats/repository.md has the argument.
 * @throws DestinationChanged when something that the point uses was condemned meanwhile
 */
export async function publishPoint({ repository, used, segments }: ChunkSession, path: string, manifest: string): Promise<void> {
  const { destination } = repository;
  const pending = pendingPath(path);
  const refuseCondemned = async (): Promise<void> => {
    const gone = await repository.goneOf([...[...used].map((pack) => pack.name), ...segments]);
    if (gone.length > 0)
      throw new HypersdkError("DestinationChanged", `a compaction of ${destination.spec.name} takes away what this export was built on`, {
        hint: "the next attempt sends it again",
      });
  };
  try {
    await repository.putPoint(pending, manifest);
    await refuseCondemned();
    await repository.putPoint(path, manifest);
  } finally {
    await destination.remove(pending).catch(() => {});
  }
  try {
    // a process that was stopped for days between the two may have lost its pending manifest
    await refuseCondemned();
  } catch (error) {
    await destination.remove(path);
    throw error;
  }
}
