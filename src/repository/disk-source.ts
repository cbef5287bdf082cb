import { createHash } from "node:crypto";
import { type BlockSource, type ByteRange, clip, type Extent, joined, type Piece, pieceBytes, piecesKept } from "../converters/block-source.ts";
import { zeroPieceHash } from "../model/tree-hash.ts";
import type { ChunkIndex } from "./chunk-index.ts";
import { ChunkReader, type WantedChunk } from "./chunk-reader.ts";
import { damaged, idBytes, isZeroId, maxChunkBytes, minChunkBytes, segmentBytes } from "./layout.ts";
import { isDamage, type Repository } from "./repository.ts";

/** What a disk is made of, as a manifest says it. */
export interface ChunkList {
  readonly virtualBytes: number;
  /** Bytes of the chunks that are not zero. */
  readonly dataBytes: number;
  readonly chunkBytes: number;
  /** Names of segments, in order; null where 1 GiB of the disk is zeros. */
  readonly segments: readonly (string | null)[];
}

/** What is read and unpacked in one go, and as much again while this is used. */
const bytesAtOnce = 4 * 2 ** 20;
/** One group that is read, one that is given out, and those that are kept. */
const ringLength = piecesKept + 2;
/** Chunks and segments kept for readers that ask for a part of one after the other. */
const bytesKept = 16 * 2 ** 20;
export const segmentsKept = 4;

/** How often chunks are read that go from where the index says they are: no compaction comes so often in a row. */
const mostTries = 10;

/** Tells of a chunk that somebody has already, and need not read: its offset, its length and its id. */
export type IsPresent = (offset: number, length: number, id: Buffer) => Promise<boolean>;

export interface ChunkedDiskOptions {
  /** Leaves chunks out of `pieces`. */
  readonly isPresent?: IsPresent | undefined;
  /** Told of each chunk that is damaged or gone, which is zeros in `pieces` then. Without it, such a disk cannot be read. */
  readonly onLost?: ((lost: ByteRange) => void) | undefined;
}

/** The disk of a restore point, each chunk of it checked against its id as it is read. */
export function openChunkedDisk(repository: Repository, index: ChunkIndex, disk: ChunkList, { isPresent, onLost }: ChunkedDiskOptions = {}): BlockSource {
  const { virtualBytes, dataBytes, chunkBytes } = disk;
  const segments = segmentsOf(repository, disk);
  const chunks = Math.ceil(virtualBytes / chunkBytes);
  let reader = new ChunkReader(repository, index);
  const outdated: ChunkReader[] = [];
  let refreshing: Promise<void> | undefined;
  let isClosed = false;
  const keptIds = new Recent<number, Promise<Buffer>>(segmentsKept);
  const keptChunks = new Recent<number, Promise<Buffer>>(bytesKept / chunkBytes);
  const chunksAtOnce = bytesAtOnce / chunkBytes;
  const lengthOf = (chunk: number): number => Math.min(chunkBytes, virtualBytes - chunk * chunkBytes);

  async function segmentOf(chunk: number): Promise<{ readonly ids: Buffer; readonly at: number }> {
    const segment = Math.floor(chunk / segments.chunksEach);
    const ids = await keptIds.get(segment, () => segments.load(segment));
    return { ids, at: (chunk - segment * segments.chunksEach) * idBytes };
  }
  /** A compaction may have moved a chunk since the index was read: then it is read anew, and again where another one was as fast. */
  async function read(wanted: readonly WantedChunk[]): Promise<void> {
    for (let tries = 1; ; tries++) {
      const used = reader;
      try {
        return await used.read(wanted);
      } catch (error) {
        const mayBeElsewhere = outdated.length === 0 || used !== reader || used.isOutdated;
        if (!isDamage(error) || !mayBeElsewhere || tries === mostTries) throw error;
        if (reader === used) await (refreshing ??= refresh().finally(() => (refreshing = undefined)));
      }
    }
  }
  async function refresh(): Promise<void> {
    const present = await repository.loadIndex();
    outdated.push(reader);
    reader = new ChunkReader(repository, present);
    if (isClosed) await reader.close();
  }
  async function readAsFarAsItGoes(chunks: readonly number[], wanted: readonly WantedChunk[], lose: (lost: ByteRange) => void): Promise<void> {
    const lost = (error: unknown): true => {
      if (!isDamage(error)) throw error;
      return true;
    };
    if (!(await read(wanted).catch(lost))) return;
    for (const [i, each] of wanted.entries()) {
      if (!(await read([each]).catch(lost))) continue;
      each.into.fill(0);
      lose({ offset: (chunks[i] as number) * chunkBytes, length: each.into.length });
    }
  }
  const oneChunk = (chunk: number): Promise<Buffer> =>
    keptChunks.get(chunk, async () => {
      const { ids, at } = await segmentOf(chunk);
      const into = Buffer.allocUnsafeSlow(lengthOf(chunk));
      await read([{ id: ids.subarray(at, at + idBytes), into }]);
      return into;
    });

  async function readPart(chunk: number, within: number, into: Buffer): Promise<void> {
    const { ids, at } = await segmentOf(chunk);
    if (isZeroId(ids, at)) into.fill(0);
    else (await oneChunk(chunk)).copy(into, 0, within, within + into.length);
  }

  async function* extents(range?: ByteRange): AsyncGenerator<Extent> {
    const first = range ? Math.floor(range.offset / chunkBytes) : 0;
    const end = range ? Math.min(chunks, Math.ceil((range.offset + range.length) / chunkBytes)) : chunks;
    for (let chunk = first; chunk < end; ) {
      const segment = Math.floor(chunk / segments.chunksEach);
      const last = Math.min(end, (segment + 1) * segments.chunksEach);
      if (segments.isEmpty(segment)) {
        const extent = clip({ offset: chunk * chunkBytes, length: Math.min(virtualBytes, last * chunkBytes) - chunk * chunkBytes, kind: "zero" }, range);
        if (extent) yield extent;
        chunk = last;
        continue;
      }
      for (; chunk < last; chunk++) {
        const { ids, at } = await segmentOf(chunk);
        const extent = clip({ offset: chunk * chunkBytes, length: lengthOf(chunk), kind: isZeroId(ids, at) ? "zero" : "data" }, range);
        if (extent) yield extent;
      }
    }
  }
  /** The chunks that hold data, in groups that lie in one segment. */
  async function* groups(): AsyncGenerator<readonly number[]> {
    for (let segment = 0; segment < segments.count; segment++) {
      if (segments.isEmpty(segment)) continue;
      const first = segment * segments.chunksEach;
      const { ids } = await segmentOf(first);
      let group: number[] = [];
      for (let at = 0; at < ids.length; at += idBytes) {
        if (isZeroId(ids, at)) continue;
        const chunk = first + at / idBytes;
        if (await isPresent?.(chunk * chunkBytes, lengthOf(chunk), ids.subarray(at, at + idBytes))) continue;
        group.push(chunk);
        if (group.length < chunksAtOnce) continue;
        yield group;
        group = [];
      }
      if (group.length > 0) yield group;
    }
  }

  /** Where in memory each chunk goes: one behind the other, so that neighbours on the disk are one piece, on the grid of pieces. */
  async function layOut(chunks: readonly number[], memory: Buffer, turn: number): Promise<{ wanted: WantedChunk[]; pieces: Piece[] }> {
    const [wanted, pieces]: [WantedChunk[], Piece[]] = [[], []];
    let end = 0;
    for (const chunk of chunks) {
      const { ids, at } = await segmentOf(chunk);
      const [start, offset] = [end, chunk * chunkBytes];
      end += lengthOf(chunk);
      wanted.push({ id: ids.subarray(at, at + idBytes), into: memory.subarray(start, end) });
      const last = pieces.at(-1);
      const isNext = last && last.offset + last.data.length === offset && offset % pieceBytes !== 0;
      if (isNext) pieces[pieces.length - 1] = { ...last, data: memory.subarray(start - last.data.length, end) };
      else pieces.push({ offset, data: memory.subarray(start, end), turn });
    }
    return { wanted, pieces };
  }

  return {
    sizeBytes: virtualBytes,
    dataBytes,
    extents: (range) => joined(extents(range)),
    async read(offset, into) {
      const reading = new Set<Promise<void>>();
      for (let done = 0; done < into.length; ) {
        const chunk = Math.floor((offset + done) / chunkBytes);
        const within = offset + done - chunk * chunkBytes;
        const length = Math.min(into.length - done, lengthOf(chunk) - within);
        const part = into.subarray(done, done + length);
        const one = readPart(chunk, within, part);
        reading.add(one);
        one.finally(() => reading.delete(one)).catch(() => {});
        if (reading.size >= chunksAtOnce) await Promise.race(reading);
        done += length;
      }
      await Promise.all(reading);
    },
    async *pieces(signal?: AbortSignal): AsyncGenerator<Piece> {
      const ring: Buffer[] = [];
      let turn = 0;
      let before: { readonly pieces: readonly Piece[]; readonly done: Promise<void> } | undefined;
      for await (const group of groups()) {
        signal?.throwIfAborted();
        const memory = (ring[turn % ringLength] ??= Buffer.allocUnsafeSlow(Math.min(bytesAtOnce, virtualBytes)));
        const { wanted, pieces } = await layOut(group, memory, turn++);
        const done = onLost ? readAsFarAsItGoes(group, wanted, onLost) : read(wanted);
        done.catch(() => {});
        await before?.done;
        yield* before?.pieces ?? [];
        before = { pieces, done };
      }
      await before?.done;
      yield* before?.pieces ?? [];
    },
    async close() {
      isClosed = true;
      for (const each of [...outdated, reader]) await each.close();
    },
  };
}

/** Every chunk in order, with the id that it has; undefined where it is zeros. */
export async function* chunksOf(repository: Repository, disk: ChunkList): AsyncGenerator<ByteRange & { readonly id: Buffer | undefined }> {
  const { virtualBytes, chunkBytes } = disk;
  const segments = segmentsOf(repository, disk);
  let offset = 0;
  for (let segment = 0; segment < segments.count; segment++) {
    const ids = segments.isEmpty(segment) ? undefined : await segments.load(segment);
    const end = Math.min(virtualBytes, (segment + 1) * segments.chunksEach * chunkBytes);
    for (let at = 0; offset < end; at += idBytes) {
      const length = Math.min(chunkBytes, virtualBytes - offset);
      yield { offset, length, id: ids && !isZeroId(ids, at) ? ids.subarray(at, at + idBytes) : undefined };
      offset += length;
    }
  }
}

/** As of every disk that is read. */
const maxVirtualBytes = 64 * 2 ** 40;

/** The lists of chunk ids that a disk is made of. */
export interface Segments {
  readonly count: number;
  /** Chunks in each but the last. */
  readonly chunksEach: number;
  isEmpty(segment: number): boolean;
  /** 32 bytes for each chunk; zeros for a chunk of zeros. */
  load(segment: number): Promise<Buffer>;
}

export function segmentsOf(repository: Repository, { virtualBytes, chunkBytes, segments }: Omit<ChunkList, "dataBytes">): Segments {
  if (chunkBytes < minChunkBytes || chunkBytes > maxChunkBytes || (chunkBytes & (chunkBytes - 1)) !== 0)
    throw damaged("the manifest", `chunks of ${chunkBytes} bytes are not of this version`);
  if (!(virtualBytes >= 0 && virtualBytes <= maxVirtualBytes)) throw damaged("the manifest", `a disk of ${virtualBytes} bytes is none`);
  const chunks = Math.ceil(virtualBytes / chunkBytes);
  const chunksEach = segmentBytes / chunkBytes;
  const count = Math.ceil(chunks / chunksEach);
  if (segments.length !== count) throw damaged("the manifest", `a disk of ${virtualBytes} bytes has ${count} segments, ${segments.length} are named`);
  return {
    count,
    chunksEach,
    isEmpty: (segment) => segments[segment] === null,
    async load(segment) {
      const inSegment = Math.min(chunksEach, chunks - segment * chunksEach);
      const name = segments[segment];
      return name ? repository.loadSegment(name, chunkBytes, inSegment) : Buffer.alloc(inSegment * idBytes);
    },
  };
}

/** The content hash of a disk, as the ids of its chunks give it: SHA-256 over the hashes of its pieces. */
export async function contentHashOf(repository: Repository, disk: Omit<ChunkList, "dataBytes">): Promise<string> {
  const { virtualBytes, chunkBytes } = disk;
  const segments = segmentsOf(repository, disk);
  const chunks = Math.ceil(virtualBytes / chunkBytes);
  const zero = zeroPieceHash(chunkBytes);
  const hash = createHash("sha256");
  for (let segment = 0; segment < segments.count; segment++) {
    const ids = Buffer.from(await segments.load(segment));
    const first = segment * segments.chunksEach;
    for (let at = 0; at < ids.length; at += idBytes) {
      if (!isZeroId(ids, at)) continue;
      const isCut = first + at / idBytes === chunks - 1 && virtualBytes % chunkBytes !== 0;
      (isCut ? zeroPieceHash(virtualBytes % chunkBytes) : zero).copy(ids, at);
    }
    hash.update(ids);
  }
  return hash.digest("hex");
}

/** The results that were asked for last; a failed one is not kept. */
export class Recent<K, V extends Promise<unknown>> {
  readonly #values = new Map<K, V>();
  readonly #most: number;

  constructor(most: number) {
    this.#most = most;
  }

  get(key: K, make: () => V): V {
    let value = this.#values.get(key);
    this.#values.delete(key);
    if (!value) {
      value = make();
      value.catch(() => this.#values.delete(key));
    }
    this.#values.set(key, value);
    if (this.#values.size > this.#most) this.#values.delete(this.#values.keys().next().value as K);
    return value;
  }
}
