import { isGone } from "../destinations/gone.ts";
import { ChunkIndex, type PackInfo } from "./chunk-index.ts";
import { readPack } from "./chunk-reader.ts";
import { listSlots } from "./keys.ts";
import { entryAt, entryBytes, keysFolder, packFileBytes, packsFolder } from "./layout.ts";
import { isDamage, type Present, type Repository, type StoredObject } from "./repository.ts";
import { ForeignPoint, type PointDisks, readDirectory, readPoints, type Used, usedBy } from "./survey.ts";

export interface CheckOptions {
  /** How much of the packs is read, from 0 to 1; 0 looks at their structure only. */
  readonly readData?: number;
  readonly signal?: AbortSignal;
  readonly onRead?: (bytes: number) => void;
  /** Called once, with how many bytes will be read. */
  readonly onTotal?: (bytes: number) => void;
}

export interface Problem {
  /** The object that is damaged or gone. */
  readonly path: string;
  readonly message: string;
}

export interface CheckReport {
  readonly points: number;
  readonly packs: number;
  readonly chunks: number;
  readonly storedBytes: number;
  readonly readBytes: number;
  readonly problems: readonly Problem[];
  /** Manifests of points that cannot be restored whole. */
  readonly brokenPoints: readonly string[];
  /** Bytes of packs and segments that no point uses: compact frees them. */
  readonly unusedBytes: number;
}

/** A repository as it really is: what `check` reports and `repair` mends. */
export interface Examination {
  readonly problems: readonly Problem[];
  readonly damagedIndexes: readonly string[];
  readonly damagedSlots: readonly string[];
  /** Every index that was read. */
  readonly indexPaths: readonly string[];
  /** Packs of which something is damaged or gone, by name. */
  readonly damagedPacks: ReadonlyMap<string, PackInfo>;
  /** All chunks that can be read, as far as was looked. */
  readonly sound: ChunkIndex;
  readonly present: Present;
  readonly points: readonly PointDisks[];
  readonly used: Used;
  readonly brokenPoints: readonly string[];
  readonly damagedSegments: readonly string[];
  readonly readBytes: number;
}

/** Looks at every object of a repository, and, where it is asked to, at every byte. Changes nothing. */
export async function checkRepository(repository: Repository, options: CheckOptions = {}): Promise<CheckReport> {
  const seen = await examine(repository, options);
  const { problems, sound, present, points, used, brokenPoints, readBytes } = seen;
  const storedBytes = [...present.packs.values(), ...present.segments.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  return {
    points: points.length,
    packs: present.packs.size,
    chunks: sound.chunks,
    storedBytes,
    readBytes,
    problems,
    brokenPoints,
    unusedBytes: unusedBytes(sound, present, used),
  };
}

/** What another process is just changing may look damaged: only what two looks in a row have seen is. */
export async function examine(repository: Repository, options: CheckOptions): Promise<Examination> {
  let before = await examineOnce(repository, options);
  if (before.problems.length === 0) return before;
  for (let again = 0; ; again++) {
    const now = await examineOnce(repository, options);
    const both = inBoth(before, now);
    if (both.problems.length > 0 || now.problems.length === 0 || again === 3) return both;
    before = now;
  }
}

/** A look, without what the one before it has not seen. Its packs and indexes stay as it found them: what is sound was told from those. */
function inBoth(before: Examination, now: Examination): Examination {
  const messages = new Set(before.problems.map(({ message }) => message));
  const same = (pick: (each: Examination) => readonly string[]): string[] => pick(now).filter((each) => pick(before).includes(each));
  return {
    ...now,
    problems: now.problems.filter(({ message }) => messages.has(message)),
    damagedSlots: same((each) => each.damagedSlots),
    damagedSegments: same((each) => each.damagedSegments),
    brokenPoints: same((each) => each.brokenPoints),
  };
}

async function examineOnce(repository: Repository, options: CheckOptions): Promise<Examination> {
  const { readData = 0, signal, onRead, onTotal } = options;
  const problems: Problem[] = [];
  const brokenPoints = new Set<string>();
  // before the indexes: what a point takes was in one before the point was there
  const points = await readPoints(repository, (path, error) => {
    if (!(error instanceof ForeignPoint)) brokenPoints.add(path);
    problems.push({ path, message: error.message });
  });
  const damagedIndexes: string[] = [];
  const indexes = await repository.readIndexes((path, error) => {
    damagedIndexes.push(path);
    problems.push({ path, message: error.message });
  });
  const present = await repository.present();
  for (const path of present.unreadable) problems.push({ path, message: `${path}: it is no list of what is condemned` });
  const damagedSlots = await lookAtSlots(repository, problems);
  const listed = new Map(indexes.flatMap(({ directories }) => directories).map((each): [string, PackInfo] => [each.name, { ...each, usable: true }]));

  const isRead = chosenOf([...present.packs.keys()], readData);
  onTotal?.([...present.packs.values()].reduce((sum, { name, bytes }) => sum + (isRead(name) ? bytes : 0), 0));
  const damagedPacks = new Map<string, PackInfo>();
  const sound = new ChunkIndex(listed.values());
  const gone: string[] = [];
  let readBytes = 0;
  for (const pack of listed.values()) {
    signal?.throwIfAborted();
    const path = `${packsFolder}/${pack.name}`;
    const there = present.packs.get(pack.name);
    let directory = there ? pack.directory : Buffer.alloc(0);
    const structure = there ? await structureOf(repository, pack, there) : undefined;
    const damage = structure === undefined ? [] : [structure];
    // an index may outlive a pack that two compactions took away at once: whether it is missed, the points will tell
    if (!there) gone.push(path);
    if (there && (structure !== undefined || isRead(pack.name))) {
      const holds: Buffer[] = [];
      try {
        for await (const { record, stored, problem } of readPack(repository, pack, (problem) => damage.push(problem.message))) {
          signal?.throwIfAborted();
          onRead?.(stored.length);
          if (problem) damage.push(problem.message);
          else holds.push(record);
        }
      } catch (error) {
        // a compaction deleted it since it was listed, or it was never there: the second look tells
        if (!isGone(error)) throw error;
        if (structure === undefined) damage.push(`${path}: it is gone`);
      }
      readBytes += there.bytes;
      directory = Buffer.concat(holds);
    }
    problems.push(...problemsOf(path, damage));
    if (damage.length > 0 || !there) damagedPacks.set(pack.name, pack);
    sound.add({ name: pack.name, directory }, present.isUsable(pack.name));
  }

  const damagedSegments = new Set<string>();
  const said = new Set<string>();
  const used = await usedBy(repository, sound, points, (point, error, segment) => {
    brokenPoints.add(point.path);
    if (segment !== undefined) damagedSegments.add(segment);
    if (!said.has(error.message)) problems.push({ path: point.path, message: error.message });
    said.add(error.message);
  });
  if (brokenPoints.size > 0) for (const path of gone) problems.push({ path, message: `${path}: it is gone` });
  return {
    problems,
    damagedIndexes,
    damagedSlots,
    indexPaths: indexes.map(({ path }) => path),
    damagedPacks,
    sound,
    present,
    points,
    used,
    brokenPoints: [...brokenPoints].sort(),
    damagedSegments: [...damagedSegments],
    readBytes,
  };
}

/** Of a pack that is wholly damaged, a few lines say as much as one for each of its chunks. */
export function problemsOf(path: string, damage: readonly string[]): Problem[] {
  const told = damage.length > mostTold ? [...damage.slice(0, mostTold - 1), `${path}: and ${damage.length - mostTold + 1} more of its chunks`] : damage;
  return told.map((message) => ({ path, message }));
}

const mostTold = 3;

/** What a pack is by its listing and its own directory; undefined when that is what the index says. */
async function structureOf(repository: Repository, { name, directory }: PackInfo, { path, bytes }: StoredObject): Promise<string | undefined> {
  const expected = packFileBytes(directory, repository.sealing.overheadBytes);
  if (bytes !== expected) return `${path}: it has ${bytes} bytes, ${expected} were stored`;
  try {
    await readDirectory(repository, path, name);
    return undefined;
  } catch (error) {
    if (!isDamage(error) && !isGone(error)) throw error;
    return (error as Error).message;
  }
}

/** @returns the paths of key slots that cannot be read */
async function lookAtSlots({ destination, config }: Repository, problems: Problem[]): Promise<string[]> {
  const damagedSlots: string[] = [];
  if (!config.encryption) return damagedSlots;
  const slots = await listSlots(destination, config.id, (path) => void damagedSlots.push(path));
  for (const path of damagedSlots) problems.push({ path, message: `${path}: it is no key slot, or not what was written` });
  if (slots.length === 0) problems.push({ path: keysFolder, message: `${keysFolder}: no slot of it holds the repository's key` });
  return damagedSlots;
}

/** The same packs for the same share, spread evenly, as names are uniform; one at least where any are asked for. */
function chosenOf(names: readonly string[], share: number): (name: string) => boolean {
  const isBelow = (name: string): boolean => Number.parseInt(name.slice(0, 8), 16) < share * 2 ** 32;
  const [first] = [...names].sort();
  return share === 0 || names.some(isBelow) ? isBelow : (name) => name === first;
}

function unusedBytes(index: ChunkIndex, present: Present, used: Used): number {
  let bytes = 0;
  for (const { name, bytes: segmentBytes } of present.segments.values()) if (!used.segments.has(name)) bytes += segmentBytes;
  for (const { name, bytes: packBytes } of present.packs.values()) {
    const pack = index.pack(name);
    bytes += pack ? unusedOf(pack, index, used) : packBytes;
  }
  return bytes;
}

/** Bytes of the chunks of a pack that no point takes from it. */
export function unusedOf(pack: PackInfo, index: ChunkIndex, used: Used): number {
  const taken = new Set(takenFrom(pack, index, used));
  let bytes = 0;
  for (let at = 0; at < pack.directory.length; at += entryBytes) if (!taken.has(at)) bytes += entryAt(pack.directory, at).storedBytes;
  return bytes;
}

/** Where in its directory the chunks are that some point uses, and takes from this pack and not from another that has them too. */
export function takenFrom(pack: PackInfo, index: ChunkIndex, used: Used): number[] {
  const taken: number[] = [];
  for (const [i, number] of index.numbersOf(pack.directory, entryBytes).entries())
    if (number >= 0 && used.chunks[number] === 1 && index.packOf(number) === pack) taken.push(i * entryBytes);
  return taken;
}
