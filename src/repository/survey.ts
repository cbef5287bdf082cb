import { readBytes } from "../converters/byte-file.ts";
import { openNamed, readListed } from "../destinations/gone.ts";
import { isAsWritten } from "../model/digest.ts";
import { HypersdkError } from "../model/errors.ts";
import type { ChunkIndex, PackInfo } from "./chunk-index.ts";
import { type ChunkList, type Segments, segmentsOf } from "./disk-source.ts";
import { checkDirectory, damaged, decodeTrailer, idBytes, isZeroId, manifestVersion, nameOf, packsFolder, segmentBytes, trailerBytes } from "./layout.ts";
import { listPoints, type PointName, pendingPath, pointPath } from "./points.ts";
import { isDamage, type NoteProblem, type Repository } from "./repository.ts";

/** A restore point as the care of a repository sees it: what its disks are made of. */
export interface PointDisks {
  readonly path: string;
  readonly disks: readonly ChunkList[];
}

/** Every point, and those on their way; listed again when one goes meanwhile. */
export async function readPoints(repository: Repository, problem?: NoteProblem): Promise<PointDisks[]> {
  const points = await readListed(
    () => listPoints(repository.destination, { withPending: true }),
    async ({ path }): Promise<PointDisks | undefined> => {
      try {
        return { path, disks: disksOf(repository, path, await repository.getPoint(path)) };
      } catch (error) {
        if (!problem || !isDamage(error)) throw error;
        problem(path, error);
        return undefined;
      }
    },
  );
  return points.filter((point) => point !== undefined);
}

/** A manifest beside the config of another repository: with its own it may be restored whole. */
export class ForeignPoint extends HypersdkError {}

function disksOf(repository: Repository, path: string, bytes: Buffer): ChunkList[] {
  let value: { disks?: unknown; formatVersion?: unknown } | null;
  try {
    value = JSON.parse(bytes.toString("utf8")) as typeof value;
  } catch (error) {
    throw damagedPoint(path, "it is no JSON", error);
  }
  if (typeof value !== "object" || value === null) throw damagedPoint(path, "it is no manifest of a restore point");
  if (!isAsWritten(value)) throw damagedPoint(path, "it is not what was written: its digest is wrong");
  // what it uses, a newer version may say in other fields: nothing may be freed beside it
  if (typeof value.formatVersion === "number" && value.formatVersion > manifestVersion)
    throw new HypersdkError("Failed", `${path} has format version ${value.formatVersion}: a newer hypersdk wrote it`, { hint: "use that version" });
  if (!isPointName(value)) throw damagedPoint(path, "it is no manifest of a restore point");
  const name = pointPath(repository, value);
  const owner = (value as { repository?: { id?: unknown } }).repository?.id;
  if (owner !== repository.config.id)
    throw new ForeignPoint("ArtifactDamaged", `${path}: it belongs to repository ${String(owner)}, the config here is that of ${repository.config.id}`);
  if (name !== path && pendingPath(name) !== path) throw damaged(path, `it holds the manifest of another point, ${name}`);
  if (!Array.isArray(value.disks) || value.disks.length === 0) throw damaged(path, "it names no disks");
  return value.disks.map((disk: Partial<ChunkList> | null): ChunkList => {
    const isName = (each: unknown): boolean => each === null || (typeof each === "string" && /^[0-9a-f]{64}$/.test(each));
    if (typeof disk !== "object" || disk === null) throw damaged(path, "a disk of it is none");
    if (!Number.isSafeInteger(disk.virtualBytes) || !Number.isSafeInteger(disk.chunkBytes) || !Array.isArray(disk.segments) || !disk.segments.every(isName))
      throw damaged(path, "a disk of it has no size, no chunk size or no segments");
    return disk as ChunkList;
  });
}

/** Nothing can be told of a point without its manifest, so that compaction frees nothing beside it; and `repair` cannot make it up. */
function damagedPoint(path: string, why: string, cause?: unknown): HypersdkError {
  return new HypersdkError("ArtifactDamaged", `${path}: ${why}`, {
    cause,
    hint: "put it back from a copy of the destination, or move it away: nothing of its point can be restored",
  });
}

function isPointName(value: unknown): value is PointName {
  const { id, source } = value as Partial<PointName>;
  return [id, source?.provider, source?.identity, source?.instant].every((each) => typeof each === "string");
}

/** What points use: chunks by their number in the index, and segments. */
export interface Used {
  readonly chunks: Uint8Array;
  readonly segments: ReadonlySet<string>;
}

/**
 * Walks the chunks of all points. Each segment is read once, however many points name it.
 * @param missing called for what is used and not there: without it, that throws
 */
export async function usedBy(
  repository: Repository,
  index: ChunkIndex,
  points: readonly PointDisks[],
  missing?: (point: PointDisks, error: HypersdkError, segment?: string) => void,
): Promise<Used> {
  const chunks = new Uint8Array(index.numbers);
  const seen = new Map<string, WalkProblem | undefined>();
  const used = new Set<string>();
  const complain = (point: PointDisks, error: unknown, segment?: string): void => {
    if (!missing || !isDamage(error)) throw error;
    missing(point, error, segment);
  };
  for (const point of points) {
    for (const disk of point.disks) {
      let segments: Segments;
      try {
        segments = segmentsOf(repository, disk);
      } catch (error) {
        complain(point, error);
        continue;
      }
      for (const [i, name] of disk.segments.entries()) {
        if (name === null) continue;
        // what one disk may ask of a segment, another may not
        const key = `${name} ${disk.chunkBytes} ${Math.min(disk.virtualBytes - i * segmentBytes, segmentBytes)}`;
        if (!seen.has(key)) seen.set(key, await walk(segments.load(i), index, chunks));
        const problem = seen.get(key);
        used.add(name);
        if (problem) complain(point, problem.error, problem.isSegment ? name : undefined);
      }
    }
  }
  return { chunks, segments: used };
}

/**
 * The packs that the disks of a point take chunks from.
 * @param missing as of {@link usedBy}
 */
export async function packsOf(
  repository: Repository,
  index: ChunkIndex,
  point: PointDisks,
  missing?: (point: PointDisks, error: HypersdkError) => void,
): Promise<Set<PackInfo>> {
  const { chunks } = await usedBy(repository, index, [point], missing);
  const packs = new Set<PackInfo>();
  for (let number = chunks.indexOf(1); number >= 0; number = chunks.indexOf(1, number + 1)) packs.add(index.packOf(number));
  return packs;
}

/**
 * Whether what a point is made of is there: its segments, and for each chunk a pack that holds it, as long as it was written. No chunk is read.
 * @throws ArtifactDamaged with the first thing that is missing
 */
export async function findDisks(repository: Repository, index: ChunkIndex, point: PointDisks): Promise<void> {
  for (const { name, usable } of await packsOf(repository, index, point)) if (!usable) throw damaged(`${packsFolder}/${name}`, "it is gone or cut short");
}

interface WalkProblem {
  readonly error: HypersdkError;
  /** The segment itself is damaged, not only a chunk that it names. */
  readonly isSegment: boolean;
}

async function walk(loading: Promise<Buffer>, index: ChunkIndex, chunks: Uint8Array): Promise<WalkProblem | undefined> {
  let problem: WalkProblem | undefined;
  let ids: Buffer;
  try {
    ids = await loading;
  } catch (error) {
    if (isDamage(error)) return { error, isSegment: true };
    throw error;
  }
  for (const [i, number] of index.numbersOf(ids).entries()) {
    const at = i * idBytes;
    if (isZeroId(ids, at)) continue;
    if (number < 0) problem ??= { error: damaged(`chunk ${ids.toString("hex", at, at + idBytes)}`, "no pack holds it"), isSegment: false };
    else chunks[number] = 1;
  }
  return problem;
}

/**
 * The directory at the end of a pack, which need not be in any index.
 * @param name what the pack has to be called; undefined where it may be called anything
 * @throws ArtifactDamaged when it is not what the pack's name says
 */
export async function readDirectory({ destination, sealing }: Repository, path: string, name: string | undefined): Promise<Buffer> {
  const file = await openNamed(destination, path);
  try {
    if (file.sizeBytes < trailerBytes) throw damaged(path, `it has ${file.sizeBytes} bytes`);
    const trailer = await readBytes(file, file.sizeBytes - trailerBytes, trailerBytes);
    const directoryBytes = decodeTrailer(path, trailer, file.sizeBytes, sealing.overheadBytes);
    const sealed = await readBytes(file, file.sizeBytes - trailerBytes - directoryBytes, directoryBytes);
    if (name !== undefined && nameOf(sealed, trailer) !== name) throw damaged(path, "its directory is not what its name says");
    const directory = await sealing.open("directory", path, sealed);
    checkDirectory(path, directory, sealing.overheadBytes);
    return directory;
  } finally {
    await file.close();
  }
}
