import { againWhileGone, isGone } from "../destinations/gone.ts";
import { HypersdkError } from "../model/errors.ts";
import { epochMsOf, type Instant, instantOf } from "../model/instant.ts";
import { takenFrom, unusedOf } from "./check.ts";
import { ChunkIndex, type PackInfo } from "./chunk-index.ts";
import { readPack } from "./chunk-reader.ts";
import { condemnedFolder, entryBytes, idBytes, isOfRepository, type PackDirectory, packsFolder, pointsFolder } from "./layout.ts";
import { oldestExport } from "./locks.ts";
import { PackWriter } from "./pack-writer.ts";
import { isPending, pointOfPending } from "./points.ts";
import { type Condemnation, fullIndexBytes, isDamage, type Present, type Repository, type StoredObject } from "./repository.ts";
import { readDirectory, readPoints, type Used, usedBy } from "./survey.ts";

export interface CompactOptions {
  readonly now: Instant;
  /** Names the condemnation. */
  readonly id: string;
  /** How long what is condemned stays, for restores that are under way. */
  readonly graceMs: number;
  /** A pack of which a larger share is unused is rewritten; from 0 to 1. */
  readonly maxUnused: number;
  /** Look only. */
  readonly dryRun?: boolean;
  readonly signal?: AbortSignal;
  readonly onRewrite?: (bytes: number) => void;
}

export interface CompactReport {
  /** Condemned before, and gone now. */
  readonly freedBytes: number;
  /** Condemned before, and still in use. */
  readonly sparedBytes: number;
  /** Condemned, now or before, and not free yet: from `freeAt` on they are, when compact runs again. */
  readonly condemnedBytes: number;
  readonly freeAt: Instant | null;
  /** Bytes of chunks in use that were moved into new packs. */
  readonly rewrittenBytes: number;
  /** Unused, in packs of which no larger share than {@link CompactOptions.maxUnused} is. */
  readonly leftBytes: number;
  /** Unused, as far as can be told, and left alone while an export goes on that may have sent it. */
  readonly waitingBytes: number;
  /** When that export began; a lock that it left behind counts for a day. */
  readonly exportSince: Instant | null;
}

/** An export writes its clock, the store its own; nothing but a needless retry depends on this. */
const clockSlackMs = 15 * 60_000;
/** No export waits so long between its manifest and its last look. */
const deadAfterMs = 24 * 3_600_000;
/** So many index objects more than are needed are joined. */
const manyIndexes = 32;

/**
 * Frees what no point uses, beside exports, expiries and other compactions, and takes no lock: it condemns visibly, and what is condemned
 * for long enough and still unused then is deleted. docs/formats/repository.md says why nothing that is needed can go.
 */
export async function compactRepository(repository: Repository, options: CompactOptions): Promise<CompactReport> {
  const nowMs = epochMsOf(options.now);
  if (!options.dryRun) await clearPending(repository, nowMs);
  const unfinishedBytes = options.dryRun ? 0 : await clearUnfinished(repository, nowMs - options.graceMs);
  // another compaction may delete what this one is about to read
  const settled = (untilMs: number): ReturnType<typeof settle> => againWhileGone(() => settle(repository, untilMs, options));
  const before = await settled(nowMs - options.graceMs);
  const { condemnedBytes, ...found } = await againWhileGone(() => condemn(repository, options));
  const after = options.graceMs === 0 && condemnedBytes > 0 ? await settled(nowMs) : { freedBytes: 0, sparedBytes: 0 };
  const waits = await waitingFor(repository, nowMs - options.graceMs, options.id);
  const newBytes = condemnedBytes - after.freedBytes;
  const freeMs = newBytes > 0 ? nowMs : waits.sinceMs;
  return {
    freedBytes: unfinishedBytes + before.freedBytes + after.freedBytes,
    sparedBytes: before.sparedBytes + after.sparedBytes,
    condemnedBytes: newBytes + waits.bytes,
    freeAt: newBytes + waits.bytes > 0 ? instantOf(freeMs + options.graceMs) : null,
    ...found,
  };
}

/** What earlier runs condemned after `untilMs`, and when the last of them did. @param but the condemnation of this run */
async function waitingFor(repository: Repository, untilMs: number, but: string): Promise<{ readonly bytes: number; readonly sinceMs: number }> {
  const present = await repository.present();
  const waiting = present.condemned.filter(({ id, at }) => id !== but && epochMsOf(at) > untilMs);
  const there = condemnedObjects(waiting, present);
  const objects = [...there.packs, ...there.segments];
  return { bytes: objects.reduce((sum, { bytes }) => sum + bytes, 0), sinceMs: Math.max(0, ...waiting.map(({ at }) => epochMsOf(at))) };
}

/** A manifest on its way that has arrived, or whose export died a day ago, holds nothing back any longer. */
async function clearPending(repository: Repository, nowMs: number): Promise<void> {
  const { destination } = repository;
  const files = await destination.list(pointsFolder);
  const there = new Set(files.map(({ path }) => path));
  for (const { path, modifiedMs } of files) {
    if (!isPending(path)) continue;
    if (there.has(pointOfPending(path)) || modifiedMs < nowMs - deadAfterMs) await destination.remove(path);
  }
}

/** What a process that was killed was writing. One that lives writes it again. @returns its bytes */
async function clearUnfinished({ destination }: Repository, untilMs: number): Promise<number> {
  let bytes = 0;
  for (const file of await destination.list()) {
    if (!file.isPartial || !isOfRepository(file.path) || file.modifiedMs > untilMs) continue;
    await destination.remove(file.path);
    bytes += file.bytes;
  }
  return bytes;
}

interface State {
  readonly index: ChunkIndex;
  readonly indexPaths: readonly string[];
  /** All that they say. */
  readonly indexed: readonly PackDirectory[];
  readonly present: Present;
  readonly used: Used;
}

/** Everything a decision needs. Chunks count for the packs that may be built on, where those have them. */
async function look(repository: Repository): Promise<State> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await lookOnce(repository);
    } catch (error) {
      // another compaction may have moved what this one has just read of
      if (!(isDamage(error) || isGone(error)) || attempt === 5) throw error;
    }
  }
}

async function lookOnce(repository: Repository): Promise<State> {
  const indexes = await repository.readIndexes();
  const present = await repository.present();
  const indexed = indexes.flatMap((each) => each.directories);
  const directories = indexed.filter(({ name }) => present.packs.has(name));
  const index = new ChunkIndex(directories);
  for (const each of directories) if (present.isUsable(each.name)) index.add(each);
  for (const each of directories) index.add(each, false);
  // a compaction that was cut off may have forgotten a pack that it then could not delete
  for (const name of present.condemned.flatMap(({ packs }) => packs)) {
    const there = present.packs.get(name);
    if (there && !index.pack(name)) index.add({ name, directory: await readDirectory(repository, there.path, name) }, false);
  }
  const points = await readPoints(repository);
  // what an export that died had not sent to the end is missed by nobody
  const used = await usedBy(repository, index, points, (point, error) => {
    if (!isPending(point.path)) throw error;
  });
  return { index, indexPaths: indexes.map(({ path }) => path), indexed, present, used };
}

/** What is still there of what was condemned. */
function condemnedObjects(condemnations: readonly Condemnation[], present: Present): { readonly packs: StoredObject[]; readonly segments: StoredObject[] } {
  const there = (names: readonly string[], objects: ReadonlyMap<string, StoredObject>): StoredObject[] =>
    [...new Set(names)].flatMap((name) => objects.get(name) ?? []);
  return {
    packs: there(
      condemnations.flatMap((each) => each.packs),
      present.packs,
    ),
    segments: there(
      condemnations.flatMap((each) => each.segments),
      present.segments,
    ),
  };
}

/** Deletes what was condemned before `untilMs` and is still unused; what is used is spared as long as it is. Nothing is changed before all is read. */
async function settle(
  repository: Repository,
  untilMs: number,
  { dryRun, signal }: CompactOptions,
): Promise<{ readonly freedBytes: number; readonly sparedBytes: number }> {
  const due = (await repository.condemnations()).filter(({ at }) => epochMsOf(at) <= untilMs);
  if (due.length === 0) return { freedBytes: 0, sparedBytes: 0 };
  const state = await look(repository);
  const { index, indexPaths, present, used } = state;
  const { packs, segments } = condemnedObjects(due, present);
  const goingPacks = packs.filter(({ name }) => {
    const pack = index.pack(name);
    return pack !== undefined && takenFrom(pack, index, used).length === 0;
  });
  const goingSegments = segments.filter(({ name }) => !used.segments.has(name));
  const going = [...goingPacks, ...goingSegments];
  const sum = (objects: readonly StoredObject[]): number => objects.reduce((total, { bytes }) => total + bytes, 0);
  const report = { freedBytes: sum(going), sparedBytes: sum(packs) + sum(segments) - sum(going) };
  if (dryRun) return report;
  await proveCopies(repository, goingPacks, state, signal);
  // forgotten first, deleted then: an index never promises what is not there
  const goingNames = new Set(goingPacks.map(({ name }) => name));
  const staying: PackDirectory[] = [...index.packs].filter(({ name }) => !goingNames.has(name)).map(({ name, directory }) => ({ name, directory }));
  if (goingPacks.length > 0) await replaceIndexes(repository, indexPaths, staying);
  for (const { path } of going) await repository.destination.remove(path);
  // what is condemned stays so while it is there: another compaction may hold an older decision to delete it, so nobody may build on it again
  const gone = new Set(going.map(({ name }) => name));
  const isLeft = (name: string): boolean => !gone.has(name) && (present.packs.has(name) || present.segments.has(name));
  for (const each of due) if (![...each.packs, ...each.segments].some(isLeft)) await repository.destination.remove(`${condemnedFolder}/${each.id}.json`);
  return report;
}

/**
 * Reads what points will take from other packs once these are gone: the last sound copy of a chunk must not go.
 * @throws ArtifactDamaged where another copy is damaged
 */
async function proveCopies(repository: Repository, going: readonly StoredObject[], { index, used }: State, signal?: AbortSignal): Promise<void> {
  const relied = new Map<PackInfo, Set<string>>();
  for (const { name } of going) {
    const directory = index.pack(name)?.directory ?? Buffer.alloc(0);
    for (const [i, number] of index.numbersOf(directory, entryBytes).entries()) {
      if (number < 0 || used.chunks[number] !== 1) continue;
      const at = i * entryBytes;
      const pack = index.packOf(number);
      relied.set(pack, (relied.get(pack) ?? new Set()).add(directory.toString("latin1", at, at + idBytes)));
    }
  }
  for (const [pack, ids] of relied)
    for await (const { entry, problem } of readPack(repository, pack)) {
      signal?.throwIfAborted();
      if (problem && ids.has(entry.id.toString("latin1"))) throw damagedPack(pack.name, problem);
    }
}

function damagedPack(name: string, { message }: Error): HypersdkError {
  return new HypersdkError("ArtifactDamaged", `${packsFolder}/${name} is damaged: ${message}`, {
    hint: "hypersdk check --read-data says what else is; hypersdk repair drops it",
  });
}

/** Writes one index for all packs in the place of those that were read; those that others write meanwhile stay. */
export async function replaceIndexes(repository: Repository, old: readonly string[], packs: readonly PackDirectory[]): Promise<void> {
  await repository.saveIndex(packs);
  for (const path of old) await repository.destination.remove(path);
}

type Condemned = Pick<CompactReport, "condemnedBytes" | "rewrittenBytes" | "leftBytes" | "waitingBytes" | "exportSince">;

/** Condemns what no point uses; of packs that are used too little, what is used is moved into new ones first. */
async function condemn(repository: Repository, options: CompactOptions): Promise<Condemned> {
  const state = await look(repository);
  const { index, present, used } = state;
  const exportMs = await oldestExport(repository, options.now);
  // what an export that is under way may have sent, and no manifest names yet
  const isOld = ({ modifiedMs }: StoredObject): boolean => exportMs === undefined || modifiedMs < exportMs - clockSlackMs;
  const packs: StoredObject[] = [];
  const rewritten: StoredObject[] = [];
  let [waitingBytes, leftBytes] = [0, 0];
  for (const object of present.packs.values()) {
    if (!present.isUsable(object.name)) continue;
    if (!isOld(object)) {
      const pack = index.pack(object.name);
      waitingBytes += pack ? unusedOf(pack, index, used) : object.bytes;
      continue;
    }
    const pack = index.pack(object.name);
    const unused = pack ? unusedOf(pack, index, used) : object.bytes;
    const isWhollyUnused = !pack || takenFrom(pack, index, used).length === 0;
    if (isWhollyUnused) packs.push(object);
    else if (unused > object.bytes * options.maxUnused) rewritten.push(object);
    else leftBytes += unused;
  }
  const segments = [...present.segments.values()].filter((object) => present.isUsable(object.name) && isOld(object) && !used.segments.has(object.name));
  const condemned = [...packs, ...rewritten, ...segments];
  const condemnedBytes = condemned.reduce((sum, { bytes }) => sum + bytes, 0);
  const rewrittenBytes = await rewrite(repository, state, rewritten, options);
  if (!options.dryRun) await joinIndexes(repository, state);
  if (!options.dryRun && condemned.length > 0) {
    const names = (objects: readonly StoredObject[]): string[] => objects.map(({ name }) => name);
    const condemnation: Condemnation = { id: options.id, at: options.now, packs: names([...packs, ...rewritten]), segments: names(segments) };
    await repository.destination.put(`${condemnedFolder}/${options.id}.json`, `${JSON.stringify(condemnation, null, 2)}\n`, { exclusive: true });
  }
  return { condemnedBytes, rewrittenBytes, leftBytes, waitingBytes, exportSince: exportMs === undefined ? null : instantOf(exportMs) };
}

/**
 * Many small index objects become few: each export leaves one, and whoever reads the repository reads all of them. Nothing is forgotten here, whatever a
 * listing has just said of packs.
 */
async function joinIndexes(repository: Repository, { indexed, indexPaths }: State): Promise<void> {
  const packs = [...new Map(indexed.map((pack) => [pack.name, pack])).values()];
  const fewest = packs.reduce((sum, { directory }) => sum + directory.length, 0) / fullIndexBytes;
  if (indexPaths.length > fewest + manyIndexes) await replaceIndexes(repository, indexPaths, packs);
}

/** Moves the chunks that are used into new packs, as they are stored, each checked on the way. @returns their bytes */
async function rewrite(repository: Repository, state: State, packs: readonly StoredObject[], { dryRun, signal, onRewrite }: CompactOptions): Promise<number> {
  const { index, used } = state;
  let bytes = 0;
  if (dryRun) {
    for (const { name } of packs) {
      const pack = index.pack(name);
      if (pack) for (const at of takenFrom(pack, index, used)) bytes += pack.directory.readUInt32LE(at + 36);
    }
    return bytes;
  }
  const writer = new PackWriter(repository);
  try {
    for (const { name } of packs) {
      const pack = index.pack(name);
      if (!pack) continue;
      const taken = new Set(takenFrom(pack, index, used).map((at) => pack.directory.toString("latin1", at, at + idBytes)));
      pack.usable = false;
      for await (const { entry, stored, problem } of readPack(repository, pack)) {
        signal?.throwIfAborted();
        if (!taken.has(entry.id.toString("latin1"))) continue;
        if (problem) throw damagedPack(name, problem);
        await writer.add({ id: entry.id, stored, rawBytes: entry.rawBytes, method: entry.method });
        bytes += stored.length;
        onRewrite?.(stored.length);
      }
    }
    await writer.finish();
    return bytes;
  } finally {
    await writer.abandon();
  }
}
