import type { Destination } from "../destinations/destination.ts";
import { isGone } from "../destinations/gone.ts";
import { formatDuration } from "../model/duration.ts";
import { compactInstant, epochMsOf, type Instant, latestBy } from "../model/instant.ts";
import type { Random } from "../model/ports.ts";
import type { SnapshotDisk, TrackRequest } from "../providers/provider.ts";
import type { ChunkSession } from "../repository/chunk-sink.ts";
import { findLie, type Increment, incrementSince } from "../repository/increment.ts";
import { folderOfPoints, pathsOfPoints } from "../repository/points.ts";
import { isDamage, type Repository } from "../repository/repository.ts";
import { type ChunkedDisk, isChunked, type Manifest } from "./manifest.ts";
import { readManifest } from "./restore.ts";

/** How much of a disk an export reads, and why. */
interface Reading {
  readonly mode: "full" | "incremental";
  readonly reason: string;
  readonly wholeReadAt: Instant;
  /** The same disk in the point that is built on. */
  readonly prior: ChunkedDisk | undefined;
  /** Undefined where all of it is read. */
  readonly increment?: Increment;
  /** The provider was found to leave out a change. */
  readonly marksRefused?: true;
}

/** What of a request decides about it. */
interface ReadingRequest {
  readonly mode: "full" | "incremental";
  readonly modeReason: string;
  readonly fullReadEveryMs?: number;
}

/** Why all of a disk is read where nobody knows what has changed. */
const untracked = "its changes are not tracked: all is read, what is new is stored";

const clockSlackMs = 3_600_000;

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
  if (prior.virtualBytes !== source.sizeBytes) return whole("full", `its size was ${prior.virtualBytes} bytes`);
  const { changes } = tracking;
  if (typeof changes === "string") return whole("full", changes);
  if (prior.chunkBytes !== session.repository.config.chunkBytes) return whole("full", `its chunks had ${prior.chunkBytes} bytes`);
  const { wholeReadAt } = prior;
  if (wholeReadAt === undefined) return whole("full", "it was not tracked before");
  const ageMs = epochMsOf(instant) - epochMsOf(wholeReadAt);
  // a clock that went back says nothing
  if (ageMs < -clockSlackMs) return whole("full", "the clock was ahead when all of it was read");
  if (!(ageMs < (request.fullReadEveryMs ?? 0))) return whole("full", `all of it was read ${formatDuration(ageMs)} ago for the last time`);
  const increment = await incrementSince(session, prior, source, changes.ranges());
  const lie = random.fraction() * sampledOnceIn < 1 ? await findLie(source, prior, increment, () => random.fraction()) : undefined;
  if (lie !== undefined) {
    lied(lie);
    return { ...whole("full", `the provider left out a change at ${lie}: its marks are not to be trusted`), marksRefused: true };
  }
  return { mode: "incremental", reason: `changed blocks since ${before.source.instant}`, wholeReadAt, prior, increment };
}

/** What the provider is asked: the changes since the point that is built on, and a new mark. */
export function trackRequest(repository: Repository, { pointId }: { readonly pointId: string }, before: Manifest | undefined): TrackRequest {
  const marked = (before?.disks ?? []).filter(isChunked).flatMap(({ name, mark }) => (mark === undefined ? [] : [[name, mark] as const]));
  return { owner: repository.config.id.slice(0, 8), id: pointId.slice(0, 8), since: new Map(marked) };
}

/** How many points an export looks back for one that set marks: those of a VM that was off between set none. */
const mostLookedAt = 64;

/**
 * The point that an export builds on: the newest of the VM, or, where changes are tracked, the newest that has set marks. Undefined where there
 * is none that can be read. One that is dated ahead of the clock comes last.
 */
export async function pointBefore(
  repository: Repository,
  { provider, identity, tracksChanges, now }: { readonly provider: string; readonly identity: string; readonly tracksChanges: boolean; readonly now: Instant },
): Promise<Manifest | undefined> {
  const { destination } = repository;
  const folder = folderOfPoints(repository, { provider, identity });
  const paths = await pathsOfPoints(destination, folder);
  const latest = compactInstant(latestBy(now));
  const isAhead = (path: string): boolean => path.slice(folder.length + 1, folder.length + 1 + latest.length) > latest;
  paths.sort((a, b) => Number(isAhead(a)) - Number(isAhead(b)) || (a < b ? 1 : -1));
  const looked = paths.slice(0, tracksChanges ? mostLookedAt : 1);
  let newest: Manifest | undefined;
  for (const sameSecond of Map.groupBy(looked, secondOf).values()) {
    const read = await Promise.all(sameSecond.map((path) => readUsable(destination, path)));
    const manifests = read.filter((each) => each !== undefined).sort((a, b) => (a.source.instant < b.source.instant ? 1 : -1));
    newest ??= manifests[0];
    const marked = manifests.find(({ disks }) => disks.some((disk) => isChunked(disk) && disk.mark !== undefined));
    if (marked) return marked;
    // a machine that is off sets no mark: the one before this point is the one that was found wanting
    if (manifests.some(({ disks }) => disks.some((disk) => isChunked(disk) && disk.marksRefused))) return newest;
  }
  return newest;
}

/** The path without the point's id: what sorts by time, of a VM that had several points in one second does not say which was the last. */
function secondOf(path: string): string {
  return path.slice(0, path.lastIndexOf("-"));
}

async function readUsable(destination: Destination, path: string): Promise<Manifest | undefined> {
  return readManifest(destination, path).catch((error: unknown) => {
    if (isDamage(error) || isGone(error)) return undefined;
    throw error;
  });
}
