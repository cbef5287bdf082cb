import { formatDuration } from "../model/duration.ts";
import { HypersdkError } from "../model/errors.ts";
import { epochMsOf, type Instant } from "../model/instant.ts";
import type { Random } from "../model/ports.ts";
import type { SnapshotDisk, TrackRequest } from "../providers/provider.ts";
import type { ChunkSession } from "../repository/chunk-sink.ts";
import { findLie, type Increment, incrementSince } from "../repository/increment.ts";
import { folderOfPoints, listPoints } from "../repository/points.ts";
import type { Repository } from "../repository/repository.ts";
import { type ChunkedDisk, isChunked, type Manifest } from "./manifest.ts";
import { readManifest } from "./restore.ts";

/** How much of a disk an export reads, and why. */
interface Reading {
  readonly mode: "full" | "incremental";
  readonly reason: string;
  readonly wholeReadAt: Instant;
  /** The same disk in the newest point of its VM. */
  readonly prior: ChunkedDisk | undefined;
  /** Undefined where all of it is read. */
  readonly increment?: Increment;
}

/** What of a request decides about it. */
interface ReadingRequest {
  readonly mode: "full" | "incremental";
  readonly modeReason: string;
  readonly fullReadEveryMs?: number;
}

/** Why all of a disk is read where nobody knows what has changed. */
const untracked = "its changes are not tracked: all is read, what is new is stored";

/** One increment in so many reads a sample of what is said to be unchanged. */
const sampledOnceIn = 10;

/**
 * The rule: what is not known unchanged is read. All of a disk is, where nobody tracks its changes, where its tracker has lost the thread, and
 * from time to time in any case; a tracker that is found lying is not believed.
 * @param lied called with the offset of something that had changed, and was said not to have
 */
export async function readingOf(
  { name, source, tracking }: SnapshotDisk,
  instant: Instant,
  before: Manifest | undefined,
  session: ChunkSession,
  request: ReadingRequest,
  random: Pick<Random, "fraction">,
  lied: (offset: number) => void,
): Promise<Reading> {
  const prior = before?.disks.filter(isChunked).find((disk) => disk.name === name);
  const whole = (mode: Reading["mode"], reason: string): Reading => ({ mode, reason, wholeReadAt: instant, prior });
  if (request.mode === "full") return whole("full", request.modeReason);
  if (!before || !prior) return whole("full", "the first export of this disk");
  // all is read, and what is new is stored
  if (!tracking) return whole("incremental", untracked);
  const { changes } = tracking;
  if (typeof changes === "string") return whole("full", changes);
  if (prior.virtualBytes !== source.sizeBytes) return whole("full", `its size was ${prior.virtualBytes} bytes`);
  if (prior.chunkBytes !== session.repository.config.chunkBytes) return whole("full", `its chunks had ${prior.chunkBytes} bytes`);
  const { wholeReadAt } = prior;
  if (wholeReadAt === undefined) return whole("full", "it was not tracked before");
  const ageMs = epochMsOf(instant) - epochMsOf(wholeReadAt);
  if (!(ageMs < (request.fullReadEveryMs ?? 0))) return whole("full", `all of it was read ${formatDuration(ageMs)} ago for the last time`);
  const increment = await incrementSince(session, prior, changes.ranges());
  const lie = random.fraction() * sampledOnceIn < 1 ? await findLie(source, prior, increment, () => random.fraction()) : undefined;
  if (lie !== undefined) {
    lied(lie);
    return whole("full", `the provider left out a change at ${lie}: its marks are not to be trusted`);
  }
  return { mode: "incremental", reason: `changed blocks since ${before.source.instant}`, wholeReadAt, prior, increment };
}

/** What the provider is asked: the changes since the newest point, and a new mark. */
export function trackRequest(repository: Repository, { pointId }: { readonly pointId: string }, before: Manifest | undefined): TrackRequest {
  const marked = (before?.disks ?? []).filter(isChunked).flatMap(({ name, mark }) => (mark === undefined ? [] : [[name, mark] as const]));
  return { owner: repository.config.id.slice(0, 8), id: pointId.slice(0, 8), since: new Map(marked) };
}

/** The manifest of a VM's newest point; undefined where there is none that can be read. */
export async function newestPoint(
  repository: Repository,
  { provider, identity }: { readonly provider: string; readonly identity: string },
): Promise<Manifest | undefined> {
  const { destination } = repository;
  const folder = folderOfPoints(repository, { provider, identity });
  const newest = (await listPoints(destination)).filter((each) => each.path.startsWith(`${folder}/`)).at(-1);
  if (!newest) return undefined;
  try {
    return await readManifest(destination, newest.path);
  } catch (error) {
    if (error instanceof HypersdkError && (error.code === "ArtifactDamaged" || error.code === "NotFound")) return undefined;
    throw error;
  }
}
