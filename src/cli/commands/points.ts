import { existsSync, statSync } from "node:fs";
import { relative, resolve } from "node:path";
import type { Destination } from "../../destinations/destination.ts";
import { emptied } from "../../destinations/gone.ts";
import { readMarker } from "../../exports/lineage.ts";
import { type Manifest, manifestName } from "../../exports/manifest.ts";
import { readManifest } from "../../exports/restore.ts";
import type { DestinationAddress } from "../../model/desired.ts";
import { HypersdkError } from "../../model/errors.ts";
import { latestBy } from "../../model/instant.ts";
import { nearestName } from "../../model/nearest.ts";
import type { RestorePoint } from "../../model/recorded.ts";
import { isRepositoryPoint } from "../../repository/points.ts";
import { State } from "../../state/state.ts";
import { printable } from "../../ui/style.ts";
import { adapters, clock } from "../compose.ts";
import type { Io } from "../io.ts";
import { load, type SourceOptions } from "../load.ts";
import { timeOption } from "../time-option.ts";
import { elsewhere, type KeyOptions, withKey } from "./destinations.ts";

/** A restore point that a person named, with its manifest read. */
export interface FoundPoint {
  readonly destination: Destination;
  readonly manifestPath: string;
  readonly manifest: Manifest;
  /** As recorded; undefined for a point that was named by its folder. */
  readonly point: RestorePoint | undefined;
}

export interface PointSelection extends SourceOptions, KeyOptions {
  readonly vm?: string;
  readonly at?: string;
  readonly schedule?: string;
}

/** By the folder or manifest on this machine (no state needed), by id, or the newest good one of a VM, also as of a time. */
export async function findPoint(id: string | undefined, options: PointSelection, io: Io): Promise<FoundPoint> {
  if (id !== undefined && existsSync(resolve(io.cwd, id))) return pointAt(resolve(io.cwd, id), options, io);
  const { points, addressOf, isCopy, pathOf } = await recordedPoints(options, io);
  const point = choose(points, id, options, isCopy, pathOf);
  if (id === undefined && !io.json && !io.quiet) io.err(`${chosenText(point, points.filter(isMeant(options)))}\n`);
  for (const [flag, wanted, is] of [
    ["--vm", options.vm, point.vmPath],
    ["--schedule", options.schedule, point.schedule],
  ] as const)
    if (id !== undefined && wanted !== undefined && wanted !== is)
      throw new HypersdkError("Usage", `the restore point ${point.id.slice(0, 8)} is not of ${flag} ${wanted}, but of ${is}`);
  const latest = timeOption("--at", options.at);
  if (id !== undefined && latest !== undefined && point.instant > latest)
    throw new HypersdkError("Usage", `the restore point ${point.id.slice(0, 8)} is not as of --at ${options.at}, but as of ${point.instant}`);
  try {
    return await openPoint(point, addressOf(point));
  } catch (error) {
    throw id === undefined ? orAnother(error, point, points, (rest) => choose(rest, id, options, isCopy, pathOf)) : error;
  }
}

/** A point that was chosen and cannot be read: the error says which is the next one, as nobody chose this one by name. */
function orAnother(error: unknown, chosen: RestorePoint, points: readonly RestorePoint[], choose: (points: readonly RestorePoint[]) => RestorePoint): unknown {
  if (!(error instanceof HypersdkError)) return error;
  try {
    // where it is not the point that is damaged, nothing of its destination can be had
    const isElsewhere = ({ destination }: RestorePoint): boolean => destination !== chosen.destination;
    const next = choose(points.filter(error.code === "ArtifactDamaged" ? (point) => point !== chosen : isElsewhere));
    const what = `${next.id.slice(0, 8)} of schedule ${next.schedule}, as of ${next.instant}, at ${printable(next.destination)}`;
    return new HypersdkError(error.code, error.message, { cause: error, hint: `${error.hint ? `${error.hint}; ` : ""}the next one is ${what}: name its id` });
  } catch {
    return error;
  }
}

/** Its manifest is not there: without it, nothing of a point is. */
export class PointGone extends HypersdkError {
  constructor({ id, manifestPath, destination }: RestorePoint, cause: unknown) {
    super("ArtifactDamaged", `the restore point ${id} is gone: ${manifestPath} is not at ${destination}`, { cause });
  }
}

/** @param address where the destination of that name is now, where the files still have it: a work tree may have moved */
export async function openPoint(point: RestorePoint, address: DestinationAddress): Promise<FoundPoint> {
  const destination = await adapters.openDestination(address);
  try {
    return { destination, manifestPath: point.manifestPath, manifest: await readManifest(destination, point.manifestPath), point };
  } catch (error) {
    if (!(error instanceof HypersdkError && (error.code === "NotFound" || error.code === "ArtifactDamaged"))) throw error;
    if (address.url !== point.destinationUrl) return openPoint(point, { ...address, url: point.destinationUrl });
    if (!(await readMarker(destination))) throw emptied(destination, "mount what belongs there");
    if (error.code === "ArtifactDamaged") throw error;
    throw new PointGone(point, error);
  }
}

export async function recordedPoints(
  options: SourceOptions & KeyOptions,
  io: Io,
): Promise<{
  readonly points: RestorePoint[];
  readonly addressOf: (point: RestorePoint) => DestinationAddress;
  readonly isCopy: (point: RestorePoint) => boolean;
  /** Whether there is a state at all. */
  readonly isRecorded: boolean;
  /** Where its VM is protected now: it may have had another path when the point was made. */
  readonly pathOf: (point: RestorePoint) => string | undefined;
}> {
  const { statePath, desired } = await load(options, io.env, io.cwd);
  const addressOf = (point: RestorePoint): DestinationAddress => {
    const named = desired?.destinations.find(({ name }) => name === point.destination);
    return withKey(named ?? elsewhere({ name: point.destination, url: point.destinationUrl }, desired), options, io.cwd);
  };
  const isCopy = (point: RestorePoint): boolean => {
    const schedule = desired?.schedules.find(({ name }) => name === point.schedule);
    return schedule !== undefined && schedule.destination !== point.destination;
  };
  const state = State.openForReading(statePath);
  try {
    const keyOf = ({ provider, identity }: Pick<RestorePoint, "provider" | "identity">): string => `${provider}\n${identity}`;
    const paths = new Map(state?.configuration.protections().map((each) => [keyOf(each), each.vmPath]));
    return { points: state?.artifacts.list() ?? [], isRecorded: state !== undefined, addressOf, isCopy, pathOf: (point) => paths.get(keyOf(point)) };
  } finally {
    state?.close();
  }
}

/** Which point was chosen for a VM, and what of newer ones was passed over. */
function chosenText(point: RestorePoint, points: readonly RestorePoint[]): string {
  const newer = points.filter(({ vmPath, instant }) => vmPath === point.vmPath && instant > point.instant);
  const ahead = newer.filter(({ instant }) => instant > latestBy(clock.now())).length;
  const passedOver = newer.filter(({ state }) => state !== "good").length;
  return (
    `${printable(point.vmPath)} as of ${point.instant}: point ${point.id.slice(0, 8)} of schedule ${point.schedule}` +
    `${point.state === "good" ? "" : ", which is not proved yet"}${passedOver > 0 ? `; ${passedOver} newer ${passedOver === 1 ? "is" : "are"} bad or not proved` : ""}` +
    `${ahead > 0 ? `; ${ahead} ${ahead === 1 ? "is" : "are"} dated ahead of the clock` : ""}`
  );
}

function isMeant({ at, schedule }: { readonly at?: string | undefined; readonly schedule?: string | undefined }): (point: RestorePoint) => boolean {
  const before = timeOption("--at", at);
  return (point) => (schedule === undefined || point.schedule === schedule) && (!before || point.instant <= before);
}

/** @param isCopy whether a point is one that was stored again, where its schedule does not write */
function choose(
  points: readonly RestorePoint[],
  id: string | undefined,
  { vm, at, schedule }: PointSelection,
  isCopy: (point: RestorePoint) => boolean,
  pathOf: (point: RestorePoint) => string | undefined,
): RestorePoint {
  if (id !== undefined) {
    const found = points.filter((point) => point.id.startsWith(id));
    if (found.length === 1) return found[0] as RestorePoint;
    throw new HypersdkError(
      "NotFound",
      found.length === 0 ? `no restore point has the id ${JSON.stringify(id)}` : `${found.length} restore points begin with ${id}`,
      { hint: "hypersdk get artifacts lists them" },
    );
  }
  if (vm === undefined) throw new HypersdkError("Usage", "which restore point?", { hint: "give its id, the folder that holds its manifest, or --vm PATH" });
  const before = timeOption("--at", at);
  const asked = points.filter((point) => point.state !== "bad").filter(isMeant({ at, schedule }));
  const itsOwn = asked.filter((point) => pathOf(point) === vm);
  const underIt = asked.filter(({ vmPath }) => vmPath === vm);
  // what was stored under this path and is of a VM that has another one now is not what is meant
  const found = itsOwn.length > 0 ? itsOwn : underIt.filter((point) => pathOf(point) === undefined);
  // what a wrong clock has dated is the newest for nobody
  const latest = before ?? latestBy(clock.now());
  const past = found.filter(({ instant }) => instant <= latest);
  // one that is not proved is better than none
  const newest = past.findLast(({ state }) => state === "good") ?? past.at(-1) ?? found.at(-1);
  // of one instant, what the schedule has stored comes before copies of it
  if (newest) return found.find((point) => point.instant === newest.instant && point.schedule === newest.schedule && !isCopy(point)) ?? newest;
  const near = nearestName(vm, new Set(points.map((point) => point.vmPath)));
  const bad = points.findLast((point) => point.state === "bad" && pathOf(point) === vm);
  throw new HypersdkError("NotFound", `${vm} has no good restore point${before ? ` at or before ${before}` : ""}`, {
    hint:
      points.length === 0
        ? "none is known here at all: where the state was lost, hypersdk state rebuild --from DESTINATION finds them again"
        : bad
          ? `its newest, ${bad.id.slice(0, 8)}, is recorded as damaged: hypersdk verify looks at it again; a restore by its id says what is wrong, and takes a disk of it that is sound`
          : underIt[0]
            ? `what was stored under this path is of ${pathOf(underIt[0])} now: name that, or a restore point's id`
            : near && near !== vm
              ? `did you mean ${near}?`
              : "hypersdk get artifacts lists what there is",
  });
}

async function pointAt(path: string, options: SourceOptions & KeyOptions, io: Io): Promise<FoundPoint> {
  const manifest = statSync(path).isDirectory() ? `${path}/${manifestName}` : path;
  // a repository's manifest lies two folders below it, that of images beside them
  const inRepository = relative(resolve(manifest, "../../.."), manifest);
  const root = isRepositoryPoint(inRepository) ? resolve(manifest, "../../..") : resolve(manifest, "../..");
  const url = `file://${root}`;
  const read = async (address: DestinationAddress): Promise<FoundPoint> => {
    const destination = await adapters.openDestination(withKey(address, options, io.cwd));
    const manifestPath = relative(root, manifest);
    return { destination, manifestPath, manifest: await readManifest(destination, manifestPath), point: undefined };
  };
  try {
    return await read({ name: root, url });
  } catch (error) {
    if (!(error instanceof HypersdkError && error.code === "KeyRefused") || options.keyFile !== undefined) throw error;
    // no files are needed for a point that was named by its place; where there are some, they may know the key
    const { desired } = await load(options, io.env, io.cwd).catch(() => ({ desired: undefined }));
    const named = desired?.destinations.find((each) => each.url === url);
    return read(named ?? elsewhere({ name: root, url }, desired));
  }
}

/** What the state records of a point that no run has made: one that was found, or stored again. */
export function pointOf(manifestPath: string, { id, source, actuals }: Manifest, { name, url }: DestinationAddress): Parameters<State["artifacts"]["add"]>[0] {
  return {
    id,
    runId: id,
    schedule: source.schedule,
    provider: source.provider,
    identity: source.identity,
    vmPath: source.vm,
    destination: name,
    destinationUrl: url,
    manifestPath,
    instant: source.instant,
    storedBytes: actuals.storedBytes,
  };
}
