import { type BlockSource, type ByteRange, clip, isZero } from "../converters/block-source.ts";
import type { PackInfo } from "./chunk-index.ts";
import type { ChunkSession } from "./chunk-sink.ts";
import { type ChunkList, Recent, segmentsKept, segmentsOf } from "./disk-source.ts";
import { idBytes, isZeroId, segmentBytes } from "./layout.ts";
import { isDamage } from "./repository.ts";
import { sha256 } from "./sha256.ts";

/** The chunks of a disk that are taken from an earlier point, unread. */
export interface Kept {
  has(chunk: number): boolean;
  /** The ids of a segment as they were, 32 bytes for each chunk. */
  idsOf(segment: number): Promise<Buffer>;
  /** Where they are. */
  readonly packs: ReadonlySet<PackInfo>;
}

export interface Increment {
  readonly kept: Kept;
  /** What must be read, in order, cut to chunks. */
  readonly ranges: readonly ByteRange[];
  readonly readBytes: number;
}

/**
 * What of a disk must be read, after its provider has said what may have changed since an earlier point: that, and what of the earlier point
 * can no longer be built on.
 * @param before the disk in the earlier point, of the same size and chunk size
 */
export async function incrementSince(session: ChunkSession, before: ChunkList, source: BlockSource, changes: AsyncIterable<ByteRange>): Promise<Increment> {
  const { repository, index } = session;
  const { virtualBytes, chunkBytes } = before;
  const chunks = Math.ceil(virtualBytes / chunkBytes);
  const isRead = new Bits(chunks);
  for await (const { offset, length } of changes) {
    const end = Math.min(chunks, Math.ceil((offset + length) / chunkBytes));
    for (let chunk = Math.floor(offset / chunkBytes); chunk < end; chunk++) isRead.set(chunk);
  }
  // a disk that shrank and grew again has lost what no tracker calls changed: where nothing is, nothing is kept
  const isHole = new Bits(chunks);
  let holeFrom = 0;
  const endHole = (at: number): void => {
    const end = at === virtualBytes ? chunks : Math.floor(at / chunkBytes);
    for (let chunk = Math.ceil(holeFrom / chunkBytes); chunk < end; chunk++) isHole.set(chunk);
  };
  for await (const { offset, length, kind } of source.extents()) {
    if (kind !== "data") continue;
    endHole(offset);
    holeFrom = offset + length;
  }
  endHole(virtualBytes);
  let lastKept = -1;
  const packs = new Set<PackInfo>();
  const segments = segmentsOf(repository, before);
  const lost = new Map<number, Promise<Buffer>>();
  const loaded = new Recent<number, Promise<Buffer>>(segmentsKept);
  const idsOf = (segment: number): Promise<Buffer> => loaded.get(segment, () => lost.get(segment) ?? segments.load(segment));
  for (let segment = 0; segment < segments.count; segment++) {
    if (segments.isEmpty(segment)) continue;
    const first = segment * segments.chunksEach;
    const ids = await idsOf(segment).catch((error: unknown) => {
      if (!isDamage(error)) throw error;
      return undefined;
    });
    if (!ids) {
      // its list is lost, so that nothing is known of this GiB, and nothing of it is kept
      lost.set(segment, Promise.resolve(Buffer.alloc(segments.chunksEach * idBytes)));
      for (let chunk = first; chunk < Math.min(chunks, first + segments.chunksEach); chunk++) isRead.set(chunk);
      continue;
    }
    const numbers = index.numbersOf(ids);
    for (let i = 0; i < numbers.length; i++) {
      const chunk = first + i;
      if (isRead.has(chunk) || isZeroId(ids, i * idBytes)) continue;
      const number = numbers[i] as number;
      const pack = number < 0 || isHole.has(chunk) ? undefined : index.packOf(number);
      if (pack?.usable) {
        packs.add(pack);
        lastKept = chunk;
      } else isRead.set(chunk);
    }
  }
  // of a chunk in which the disk once ended, only a part is a hole: it is the last that would be kept
  if (lastKept >= 0) isRead.set(lastKept);
  const ranges = rangesOf(isRead, chunks, chunkBytes, virtualBytes);
  return { kept: { has: (chunk) => !isRead.has(chunk), idsOf, packs }, ranges, readBytes: ranges.reduce((sum, { length }) => sum + length, 0) };
}

function rangesOf(isRead: Bits, chunks: number, chunkBytes: number, virtualBytes: number): ByteRange[] {
  const ranges: ByteRange[] = [];
  for (let chunk = isRead.next(0, chunks); chunk < chunks; ) {
    let end = chunk + 1;
    while (end < chunks && isRead.has(end)) end++;
    ranges.push({ offset: chunk * chunkBytes, length: Math.min(end * chunkBytes, virtualBytes) - chunk * chunkBytes });
    chunk = isRead.next(end, chunks);
  }
  return ranges;
}

/** What lies in some ranges is asked for by spans of so much: a question for each range is a round trip for each. */
const spanBytes = 256 * 2 ** 20;

/** The part of a disk that lies in some ranges; the rest reads as not written. Closing it leaves the disk open. */
export function partsOf(source: BlockSource, { ranges, readBytes }: Increment): BlockSource {
  return {
    sizeBytes: source.sizeBytes,
    dataBytes: readBytes,
    async *extents(wanted = { offset: 0, length: source.sizeBytes }) {
      const inside = ranges.flatMap((each) => clip({ ...each, kind: "data" }, wanted) ?? []);
      let at = wanted.offset;
      for (let next = 0; next < inside.length; ) {
        const { offset } = inside[next] as ByteRange;
        let last = next;
        while (last + 1 < inside.length && endOf(inside[last + 1] as ByteRange) <= offset + spanBytes) last++;
        for await (const extent of source.extents({ offset, length: endOf(inside[last] as ByteRange) - offset })) {
          for (; next <= last; next++) {
            const range = inside[next] as ByteRange;
            const part = clip(extent, range);
            if (part && part.offset > at) yield { offset: at, length: part.offset - at, kind: "absent" };
            if (part) yield part;
            if (part) at = endOf(part);
            if (endOf(range) > endOf(extent)) break;
          }
        }
        next = last + 1;
      }
      const end = endOf(wanted);
      if (end > at) yield { offset: at, length: end - at, kind: "absent" };
    },
    read: (offset, into) => source.read(offset, into),
    close: async () => {},
  };
}

function endOf({ offset, length }: ByteRange): number {
  return offset + length;
}

/** Chunks of an increment that are read again to see whether they are what they were: a hundredth, within these bounds. */
const fewestSampled = 64;
const mostSampled = 4096;
/** Reading one after the other would be a round trip for each. */
const sampledBytesAtOnce = 2 ** 20;

/**
 * Reads some of the chunks that are said to be unchanged.
 * @returns the offset of one that is not, after all; undefined where all are
 */
export async function findLie(source: BlockSource, before: ChunkList, { kept }: Increment, fraction: () => number): Promise<number | undefined> {
  const { virtualBytes, chunkBytes } = before;
  const chunks = Math.ceil(virtualBytes / chunkBytes);
  const perSegment = segmentBytes / chunkBytes;
  const wanted = new Set<number>();
  const most = Math.min(mostSampled, Math.max(fewestSampled, Math.ceil(chunks / 100)));
  for (let tries = 0; tries < most * 2 && wanted.size < most; tries++) {
    const chunk = Math.floor(fraction() * chunks);
    if (kept.has(chunk)) wanted.add(chunk);
  }
  const chunksAtOnce = Math.max(1, sampledBytesAtOnce / chunkBytes);
  const buffer = Buffer.allocUnsafeSlow(chunksAtOnce * chunkBytes);
  const isSame = async (chunk: number, at: number): Promise<boolean> => {
    const data = buffer.subarray(at * chunkBytes, at * chunkBytes + Math.min(chunkBytes, virtualBytes - chunk * chunkBytes));
    await source.read(chunk * chunkBytes, data);
    const ids = await kept.idsOf(Math.floor(chunk / perSegment));
    const id = (chunk % perSegment) * idBytes;
    return isZeroId(ids, id) ? isZero(data) : (await sha256(data)).equals(ids.subarray(id, id + idBytes));
  };
  const sample = [...wanted].sort((a, b) => a - b);
  for (let next = 0; next < sample.length; next += chunksAtOnce) {
    const chunks = sample.slice(next, next + chunksAtOnce);
    const lie = chunks[(await Promise.all(chunks.map(isSame))).indexOf(false)];
    if (lie !== undefined) return lie * chunkBytes;
  }
  return undefined;
}

/** A bit for each chunk of a disk: 32 MiB for the largest. */
class Bits {
  readonly #words: Uint32Array;

  constructor(count: number) {
    this.#words = new Uint32Array(Math.ceil(count / 32));
  }

  has(bit: number): boolean {
    return ((this.#words[bit >>> 5] as number) & (1 << (bit & 31))) !== 0;
  }

  set(bit: number): void {
    this.#words[bit >>> 5] = (this.#words[bit >>> 5] as number) | (1 << (bit & 31));
  }

  /** The first bit that is set from `from` on; `end` where there is none. */
  next(from: number, end: number): number {
    for (let bit = from; bit < end; bit++) {
      if ((bit & 31) === 0) while (bit < end && this.#words[bit >>> 5] === 0) bit += 32;
      if (bit < end && this.has(bit)) return bit;
    }
    return end;
  }
}
