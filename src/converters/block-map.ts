import { HypersdkError } from "../model/errors.ts";
import { type BlockSource, type ByteRange, clip, type Extent, joined } from "./block-source.ts";
import type { ByteFile } from "./byte-file.ts";
import { loadHoleFinder } from "./raw/hole-finder.ts";
import { sparseExtents } from "./raw/raw-source.ts";

/** Where a block of the disk is: in this file, known to be zeros, or not here. */
export type Block =
  /** `blocks` says that so many from here on are the same: where a whole table is missing. */
  { readonly kind: "absent" | "zero"; readonly blocks?: number } | { readonly kind: "data"; readonly offset: number; readonly units?: UnitMap };

/** A block of which only some units are in this file. */
interface UnitMap {
  readonly unitBytes: number;
  isPresent(unit: number): boolean;
  /** What the other units are. */
  readonly otherwise: "absent" | "zero";
}

/** A disk of blocks, which can also tell where in the file they are. */
export interface BlockMapSource extends BlockSource {
  placed(): AsyncIterable<PlacedBlock>;
}

export interface PlacedBlock {
  readonly index: number;
  readonly offset: number;
}

export const absentBlock: Block = { kind: "absent" };
export const zeroBlock: Block = { kind: "zero" };

/**
 * A disk of equal blocks that lie anywhere in a file, found through a table: what VHD, VHDX and VDI are. `blockAt` reads the table
 * and checks that what it points to lies in the file.
 */
export function blockMapSource(file: ByteFile, sizeBytes: number, blockBytes: number, blockAt: (index: number) => Promise<Block>): BlockMapSource {
  const whole: ByteRange = { offset: 0, length: sizeBytes };

  /** Blocks that lie one behind the other, with the holes of the file between them: a fixed disk has all of its blocks, and few data. */
  async function* runs(range: ByteRange): AsyncGenerator<Extent> {
    const finder = isSparse(file) ? await loadHoleFinder() : undefined;
    if (!finder || file.descriptor === undefined) {
      for await (const { extent } of blockRuns(range)) yield extent;
      return;
    }
    let run: { start: number; at: number; length: number } | undefined;
    const inFile = function* (descriptor: number, { start, at, length }: NonNullable<typeof run>): Generator<Extent> {
      for (const found of sparseExtents(finder, descriptor, file.sizeBytes, { offset: at, length })) yield { ...found, offset: found.offset - at + start };
    };
    for await (const { extent, at } of blockRuns(range)) {
      if (run && at === run.at + run.length) {
        run.length += extent.length;
        continue;
      }
      if (run) yield* inFile(file.descriptor, run);
      run = at === undefined ? undefined : { start: extent.offset, at, length: extent.length };
      if (at === undefined) yield extent;
    }
    if (run) yield* inFile(file.descriptor, run);
  }

  /** `at` is where a whole block of data lies in the file. */
  async function* blockRuns(range: ByteRange): AsyncGenerator<{ readonly extent: Extent; readonly at?: number }> {
    const end = range.offset + range.length;
    for (let index = Math.floor(range.offset / blockBytes); index * blockBytes < end; ) {
      const start = index * blockBytes;
      const block = await blockAt(index);
      const blocks = block.kind === "data" ? 1 : (block.blocks ?? 1);
      const length = Math.min(blocks * blockBytes, sizeBytes - start);
      const extent: Extent = { offset: start, length, kind: block.kind };
      if (block.kind === "data") checkPlace(file, block, index, length);
      if (block.kind !== "data") yield { extent };
      else if (!block.units) yield { extent, at: block.offset };
      else for (const unit of unitRuns(block.units, start, length)) yield { extent: unit };
      index += blocks;
    }
  }

  async function* placed(): AsyncGenerator<PlacedBlock> {
    for (let index = 0; index * blockBytes < sizeBytes; ) {
      const block = await blockAt(index);
      if (block.kind === "data") yield { index, offset: block.offset };
      index += block.kind === "data" ? 1 : (block.blocks ?? 1);
    }
  }

  return {
    placed,
    sizeBytes,
    dataBytes: Math.min(sizeBytes, file.allocatedBytes ?? file.sizeBytes),
    async *extents(range = whole) {
      for await (const extent of joined(runs(range))) {
        const part = clip(extent, range);
        if (part) yield part;
      }
    },
    async read(offset, into) {
      // blocks that follow each other in the file too are one read
      let [runAt, from, to] = [0, 0, 0];
      const readRun = async (): Promise<void> => {
        if (to > from) await file.read(runAt, into.subarray(from, to));
        from = to;
      };
      for (let done = 0; done < into.length; ) {
        const at = offset + done;
        const index = Math.floor(at / blockBytes);
        const within = at - index * blockBytes;
        const length = Math.min(into.length - done, blockBytes - within);
        const block = await blockAt(index);
        if (block.kind === "data" && !block.units && (from === to || runAt + (to - from) === block.offset + within)) {
          if (from === to) [runAt, from] = [block.offset + within, done];
          to = done + length;
        } else {
          await readRun();
          const part = into.subarray(done, done + length);
          if (block.kind !== "data") part.fill(0);
          else if (block.units) await readUnits(file, block.offset, block.units, within, part);
          else [runAt, from, to] = [block.offset + within, done, done + length];
        }
        done += length;
      }
      await readRun();
    },
    close: () => file.close(),
  };
}

/** A file that is sparse would read as zeros where it is cut. @param length of the block inside the disk */
function checkPlace(file: ByteFile, { offset, units }: Block & { kind: "data" }, index: number, length: number): void {
  const used = units ? [...unitRuns(units, 0, length)].reduce((end, unit) => (unit.kind === "data" ? unit.offset + unit.length : end), 0) : length;
  if (offset + used > file.sizeBytes)
    throw new HypersdkError(
      "ImageDamaged",
      `${file.name}: block ${index} has ${used} bytes at ${offset}, and the file ends at ${file.sizeBytes}: it is cut short`,
    );
}

function isSparse({ allocatedBytes, sizeBytes }: ByteFile): boolean {
  return allocatedBytes !== undefined && allocatedBytes < sizeBytes;
}

function* unitRuns({ unitBytes, isPresent, otherwise }: UnitMap, start: number, length: number): Generator<Extent> {
  const units = Math.ceil(length / unitBytes);
  for (let unit = 0; unit < units; ) {
    const present = isPresent(unit);
    let next = unit + 1;
    while (next < units && isPresent(next) === present) next++;
    yield {
      offset: start + unit * unitBytes,
      length: Math.min(next * unitBytes, length) - unit * unitBytes,
      kind: present ? "data" : otherwise,
    };
    unit = next;
  }
}

async function readUnits(file: ByteFile, blockOffset: number, map: UnitMap, within: number, into: Buffer): Promise<void> {
  into.fill(0);
  const first = Math.floor(within / map.unitBytes) * map.unitBytes;
  for (const extent of unitRuns(shifted(map, first / map.unitBytes), first, within + into.length - first)) {
    if (extent.kind !== "data") continue;
    const from = Math.max(extent.offset, within);
    const to = Math.min(extent.offset + extent.length, within + into.length);
    if (to > from) await file.read(blockOffset + from, into.subarray(from - within, to - within));
  }
}

function shifted(map: UnitMap, by: number): UnitMap {
  return { ...map, isPresent: (unit) => map.isPresent(unit + by) };
}
