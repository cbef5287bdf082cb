import { isGone } from "../destinations/gone.ts";
import type { Instant } from "../model/instant.ts";
import { type CheckOptions, examine, type Problem, problemsOf } from "./check.ts";
import { ChunkIndex, type PackInfo } from "./chunk-index.ts";
import { damageOf, readPack } from "./chunk-reader.ts";
import { replaceIndexes } from "./compact.ts";
import { restoreSlot } from "./keys.ts";
import { type PackDirectory, packsFolder, segmentsFolder } from "./layout.ts";
import { PackWriter } from "./pack-writer.ts";
import { listPoints } from "./points.ts";
import { isDamage, type Repository } from "./repository.ts";
import { readDirectory, usedBy } from "./survey.ts";

export interface RepairReport {
  /** What was damaged. */
  readonly problems: readonly Problem[];
  /** Objects that were removed, once what is sound of them had been moved. */
  readonly dropped: readonly string[];
  readonly salvagedChunks: number;
  /** Packs that no index named and that are found again. */
  readonly foundPacks: number;
  /** Manifests of points that have lost data for good, unless an export sends it again. */
  readonly brokenPoints: readonly string[];
}

/**
 * Drops what is provably damaged, after every byte was read, and keeps everything that is sound. A point that loses data stays, and is
 * named: the next export of its VM sends what the source still has, and with that it may be whole again.
 */
export async function repairRepository(repository: Repository, options: Omit<CheckOptions, "readData"> & { readonly now: Instant }): Promise<RepairReport> {
  const seen = await examine(repository, { ...options, readData: 1 });
  const { present, damagedSegments, damagedIndexes } = seen;
  const [damagedPacks, problems] = [new Map(seen.damagedPacks), [...seen.problems]];
  const index = new ChunkIndex(seen.sound.packs);
  const sound: PackDirectory[] = [];
  const dropped: string[] = [];
  let foundPacks = 0;
  for (const { path, name } of present.packs.values()) {
    if (damagedPacks.has(name)) {
      dropped.push(path);
      continue;
    }
    let directory = seen.sound.pack(name)?.directory;
    if (!directory) {
      try {
        directory = await readDirectory(repository, path, name);
      } catch (error) {
        if (!isDamage(error)) throw error;
        dropped.push(path);
        continue;
      }
      foundPacks++;
      // nobody has looked at its bytes: chunks of it must not stand before sound ones of others
      const found: PackInfo = { name, directory, usable: false };
      const damage = await damageOf(repository, found);
      if (damage.length > 0) {
        problems.push(...problemsOf(path, damage));
        damagedPacks.set(name, found);
        dropped.push(path);
        continue;
      }
    }
    sound.push({ name, directory });
    index.add({ name, directory }, present.isUsable(name));
  }
  const writer = new PackWriter(repository);
  const salvaged = new Set<string>();
  try {
    const going = dropped.map((path) => path.slice(packsFolder.length + 1));
    const ownWords = (await asTheySay(repository, going)).filter(({ name, directory }) => !damagedPacks.get(name)?.directory.equals(directory));
    for (const pack of [...damagedPacks.values(), ...ownWords]) {
      try {
        for await (const { entry, stored, problem } of readPack(repository, pack)) {
          const id = entry.id.toString("latin1");
          if (problem || index.find(entry.id) || salvaged.has(id)) continue;
          await writer.add({ id: entry.id, stored, rawBytes: entry.rawBytes, method: entry.method });
          salvaged.add(id);
        }
      } catch (error) {
        // of a pack that is gone, or that something else stands in the place of, nothing can be saved
        if (!isGone(error) && present.packs.has(pack.name)) throw error;
      }
    }
    await writer.finish();
    for (const pack of writer.packs) index.add(pack);
  } finally {
    await writer.abandon();
  }
  const isChanged = dropped.length + damagedIndexes.length + foundPacks + damagedPacks.size > 0;
  if (isChanged) {
    for (const path of damagedIndexes) await repository.destination.remove(path);
    // only those that were read: an export may have written its own meanwhile
    await replaceIndexes(repository, seen.indexPaths, [...sound, ...writer.packs]);
  }
  // a manifest that asks for something else than a sound segment holds is no reason to drop the segment
  for (const name of damagedSegments) if (!(await repository.hasSegment(name))) dropped.push(`${segmentsFolder}/${name}`);
  dropped.push(...present.unreadable, ...seen.damagedSlots);
  for (const path of dropped) await repository.destination.remove(path);
  if (repository.config.encryption) await restoreSlot(repository.destination, repository.config.id, options.now);
  const brokenPoints = new Set(seen.points.length === 0 ? [] : seen.brokenPoints.filter((path) => !seen.points.some((point) => point.path === path)));
  await usedBy(repository, index, seen.points, (point) => void brokenPoints.add(point.path));
  // one that was removed meanwhile is missed by nobody
  const there = new Set((await listPoints(repository.destination)).map(({ path }) => path));
  return {
    problems,
    dropped: [...dropped, ...damagedIndexes, ...[...damagedPacks.keys()].filter((name) => !present.packs.has(name)).map((name) => `${packsFolder}/${name}`)],
    salvagedChunks: salvaged.size,
    foundPacks,
    brokenPoints: [...brokenPoints].filter((path) => there.has(path)).sort(),
  };
}

/** Packs by the directories that they have in themselves: one that lies under a wrong name may be all there. */
async function asTheySay(repository: Repository, names: readonly string[]): Promise<PackInfo[]> {
  const packs: PackInfo[] = [];
  for (const name of names) {
    try {
      packs.push({ name, directory: await readDirectory(repository, `${packsFolder}/${name}`, undefined), usable: false });
    } catch (error) {
      if (!isDamage(error) && !isGone(error)) throw error;
    }
  }
  return packs;
}
