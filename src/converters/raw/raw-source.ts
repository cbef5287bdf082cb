import { type BlockSource, type ByteRange, clip, type Extent } from "../block-source.ts";
import type { ByteFile } from "../byte-file.ts";
import { type HoleFinder, loadHoleFinder } from "./hole-finder.ts";

/** A raw image: the file is the disk. Holes of a sparse file are found by the file system, not by reading zeros. */
export async function openRaw(file: ByteFile): Promise<BlockSource> {
  const { sizeBytes, descriptor, allocatedBytes = sizeBytes } = file;
  const isSparse = descriptor !== undefined && allocatedBytes < sizeBytes;
  const finder = isSparse ? await loadHoleFinder() : undefined;
  return {
    sizeBytes,
    ...(descriptor === undefined ? {} : { descriptor }),
    dataBytes: Math.min(sizeBytes, isSparse && allocatedBytes > 0 ? allocatedBytes : sizeBytes),
    async *extents(range) {
      // no blocks are no proof that there is no data: some file systems count none
      if (finder && descriptor !== undefined) yield* sparseExtents(finder, descriptor, sizeBytes, range);
      else yield* clipped({ offset: 0, length: sizeBytes, kind: "data" }, range);
    },
    read: (offset, into) => file.read(offset, into),
    close: () => file.close(),
  };
}

function* clipped(extent: Extent, range: ByteRange | undefined): Generator<Extent> {
  const part = clip(extent, range);
  if (part) yield part;
}

/** What of a range of a file is data, and what a hole, as the file system says. */
export function* sparseExtents(
  finder: HoleFinder,
  descriptor: number,
  sizeBytes: number,
  range: ByteRange = { offset: 0, length: sizeBytes },
): Generator<Extent> {
  const end = range.offset + range.length;
  let offset = range.offset;
  while (offset < end) {
    const data = Math.min(finder.nextData(descriptor, offset) ?? end, end);
    if (data > offset) yield { offset, length: data - offset, kind: "zero" };
    if (data >= end) return;
    const hole = Math.min(finder.nextHole(descriptor, data) ?? end, end);
    // a file system that answers nonsense must not make this run for ever
    const stop = hole > data ? hole : end;
    yield { offset: data, length: stop - data, kind: "data" };
    offset = stop;
  }
}
