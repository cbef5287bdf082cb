import { createHash } from "node:crypto";
import type { ReadingSink } from "../converters/disk-sink.ts";
import { HypersdkError } from "../model/errors.ts";
import { zeroPieceHash } from "../model/tree-hash.ts";
import { compressChunk } from "./chunk-codec.ts";
import type { ChunkIndex, PackInfo } from "./chunk-index.ts";
import { type Prepared, prepareChunks, prepareUnread, type Run } from "./chunk-preparation.ts";
import { type ChunkList, segmentsOf } from "./disk-source.ts";
import type { Kept } from "./increment.ts";
import { idBytes, isZeroId, methods, segmentBytes } from "./layout.ts";
import { type PackedChunk, PackWriter } from "./pack-writer.ts";
import { isDamage, type Repository, type Standing } from "./repository.ts";
import { type IndexNow, indexForExport } from "./shared-index.ts";

/** What is sealed at once on the threads of the pool, no fewer chunks than the pool has threads; and what is hashed and not yet placed. */
const bytesAtOnce = 1.5 * 2 ** 20;
const hashedAtOnce = 4 * 2 ** 20;
/** Runs that this thread reads at once: while one is hashed the next one comes. */
const readAtOnce = 2;
const fewestAtOnce = 4;
/** Segments on their way to the store at once, of 256 KiB where chunks have 128. */
const segmentsAtOnce = 4;

/** A disk as a repository holds it. */
export interface StoredDisk {
  readonly chunkBytes: number;
  /** The segments of 1 GiB in order; null where one is all zeros. */
  readonly segments: readonly (string | null)[];
  readonly contentHash: string;
  /** Bytes of the chunks that are not zero, and of those that were not there. */
  readonly dataBytes: number;
  readonly newBytes: number;
}

/** What several disks of one export share: what is there, and what is sent. */
export class ChunkSession {
  readonly repository: Repository;
  readonly index: ChunkIndex;
  readonly writer: PackWriter;
  /** Packs that hold chunks of this export: they must still be there when it is published. */
  readonly used: Set<Pick<PackInfo, "name">> = new Set();
  readonly segments: Set<string> = new Set();
  /** Chunks that are on their way to the store. */
  readonly pending: Set<string> = new Set();
  readonly compresses: boolean;
  readonly standing: Standing;
  segmentBytes = 0;
  /** Segments on their way to the store. */
  readonly #putting = new Set<Promise<void>>();
  /** Wait until sinks have nothing under way. */
  readonly #sinks: (() => Promise<unknown>)[] = [];
  #isAbandoned = false;

  private constructor(repository: Repository, { index, standing }: IndexNow, compresses: boolean) {
    this.repository = repository;
    this.index = index;
    this.standing = standing;
    this.writer = new PackWriter(repository);
    this.compresses = compresses;
  }

  /** @param distrusted packs that nothing is built on */
  static async begin(repository: Repository, compresses: boolean, distrusted?: ReadonlySet<string>): Promise<ChunkSession> {
    return new ChunkSession(repository, await indexForExport(repository, distrusted), compresses);
  }

  /** Sends a list of ids, and waits while many are on their way. @returns its name */
  async saveSegment(chunkBytes: number, ids: Buffer): Promise<string> {
    const { name, bytes, put } = await this.repository.packSegment(chunkBytes, ids);
    this.segmentBytes += bytes;
    const putting = put();
    this.#putting.add(putting);
    // a failed one stays in the set: whoever waits next meets it
    putting.then(() => this.#putting.delete(putting)).catch(() => {});
    if (this.#putting.size >= segmentsAtOnce) await Promise.race(this.#putting);
    return name;
  }

  /** Everything is at the store and can be found. */
  async finish(): Promise<void> {
    // all of it: what still went on when an export has failed would be written after its lock is gone
    const ended = await Promise.allSettled([this.writer.finish(), ...this.#putting]);
    for (const each of ended) if (each.status === "rejected") throw each.reason;
    for (const pack of this.writer.packs) this.used.add(pack);
  }

  /** A sink that places chunks. @param idle waits until it does not, however that ends */
  addSink(idle: () => Promise<unknown>): void {
    this.#sinks.push(idle);
  }

  /** Whether nothing more is to be placed. */
  get isAbandoned(): boolean {
    return this.#isAbandoned;
  }

  /** Waits for what is on its way, without caring how it ends. What can be found then need not be sent again. */
  async abandon(): Promise<void> {
    this.#isAbandoned = true;
    // a chunk that is placed now may fill a pack, which would be written after the export's lock is gone
    for (const idle of this.#sinks) await idle();
    await Promise.allSettled([this.writer.abandon(), ...this.#putting]);
  }
}

/**
 * Stores a disk chunk by chunk: what the repository has is not sent again, what is zero is not stored at all.
 * @param before the same disk in an earlier point: the lists of what did not change are taken from there
 * @param kept chunks that are as they were then; they are not written
 */
export function chunkSink(session: ChunkSession, sizeBytes: number, before?: ChunkList, kept?: Kept): ReadingSink & { stored(): StoredDisk } {
  const { repository, index, writer, used, pending } = session;
  const { chunkBytes } = repository.config;
  const chunks = Math.ceil(sizeBytes / chunkBytes);
  const perSegment = segmentBytes / chunkBytes;
  const preparation = { chunkBytes, compresses: session.compresses, known: index.filter };
  const chunksAtOnce = Math.max(fewestAtOnce, bytesAtOnce / chunkBytes);
  const placingAtOnce = Math.max(fewestAtOnce, hashedAtOnce / chunkBytes);
  const segments: (string | null)[] = [];
  const content = createHash("sha256");
  const placing: Promise<void>[] = [];
  const packing: Promise<void>[] = [];
  const reading: Promise<void>[] = [];
  /** Runs of which something may still be read or used. */
  const runs = new Set<Run>();
  /** Chunks are hashed side by side and placed one after the other, in the order of the disk. */
  let placed: Promise<void> = Promise.resolve();
  let ids = Buffer.alloc(0);
  let next = 0;
  let [dataBytes, newBytes] = [0, 0];
  for (const pack of kept?.packs ?? []) used.add(pack);
  session.addSink(async () => {
    await Promise.allSettled([placed, ...[...runs].map((run) => run.ended())]);
    await Promise.allSettled(packing);
  });

  /** All chunks before `chunk` that were not written are kept, or zeros; a segment that is full is stored. */
  async function passTo(chunk: number): Promise<void> {
    while (next < chunk) {
      const end = Math.min(chunk, (segments.length + 1) * perSegment);
      const isCut = end === chunks && sizeBytes % chunkBytes !== 0;
      const zeros = zeroHashes(chunkBytes).subarray(0, (end - next - (isCut ? 1 : 0)) * idBytes);
      const hashes = isCut ? Buffer.concat([zeros, zeroPieceHash(sizeBytes % chunkBytes)]) : zeros;
      content.update(kept ? await keep(next, end, kept, hashes) : hashes);
      next = end;
      if (next === (segments.length + 1) * perSegment || next === chunks) await endSegment();
    }
  }
  /** Lists the chunks that are kept. @returns the hashes of all in the range */
  async function keep(from: number, to: number, { has, idsOf }: Kept, zeroes: Buffer): Promise<Buffer> {
    const first = segments.length * perSegment;
    const old = await idsOf(segments.length);
    const hashes = Buffer.from(zeroes);
    for (let chunk = from; chunk < to; ) {
      // in runs: a copy for each chunk of a large disk takes longer than all else about those that did not change
      let end = chunk;
      while (end < to && has(end) && !isZeroId(old, (end - first) * idBytes)) end++;
      if (end === chunk) {
        chunk++;
        continue;
      }
      openSegment();
      const [at, endAt] = [(chunk - first) * idBytes, (end - first) * idBytes];
      old.copy(ids, at, at, endAt);
      old.copy(hashes, (chunk - from) * idBytes, at, endAt);
      dataBytes += Math.min(end * chunkBytes, sizeBytes) - chunk * chunkBytes;
      chunk = end;
    }
    return hashes;
  }
  function openSegment(): void {
    if (ids.length === 0) ids = Buffer.alloc(Math.min(perSegment, chunks - segments.length * perSegment) * idBytes);
  }
  async function endSegment(): Promise<void> {
    if (ids.length === 0) segments.push(null);
    else {
      const name = (await sameAsBefore(segments.length)) ?? (await session.saveSegment(chunkBytes, ids));
      session.segments.add(name);
      segments.push(name);
    }
    ids = Buffer.alloc(0);
  }
  /** The segment of the point before, where nothing of this GiB has changed since. */
  async function sameAsBefore(segment: number): Promise<string | undefined> {
    const name = before?.segments[segment];
    if (!before || !name || before.virtualBytes !== sizeBytes || before.chunkBytes !== chunkBytes || !session.standing.isUsable(name)) return undefined;
    try {
      const there = kept ? await kept.idsOf(segment) : await segmentsOf(repository, before).load(segment);
      return there.equals(ids) ? name : undefined;
    } catch (error) {
      // one that is damaged is written anew
      if (isDamage(error)) return undefined;
      throw error;
    }
  }
  async function place(chunk: number, length: number, run: Run, i: number): Promise<void> {
    const prepared = await run.prepared(i);
    if (session.isAbandoned) throw new HypersdkError("Failed", "the export was given up");
    // zeros are passed over, as what was not written
    if (!prepared) return;
    const { id } = prepared;
    await passTo(chunk);
    content.update(id);
    openSegment();
    id.copy(ids, (chunk % perSegment) * idBytes);
    dataBytes += length;
    next = chunk + 1;
    const there = index.find(id);
    if (there?.pack.usable) used.add(there.pack);
    else if (!pending.has(id.toString("latin1"))) {
      pending.add(id.toString("latin1"));
      newBytes += length;
      const packed = pack({ id, rawBytes: length, ...(await storedForm(run, i, prepared)) });
      packed.catch(() => {});
      packing.push(packed);
      if (packing.length > chunksAtOnce) await packing.shift();
    }
    if (next === (segments.length + 1) * perSegment || next === chunks) await endSegment();
  }
  /** What of a chunk is stored. Where it seemed to be there, and is not, it is compressed now. */
  async function storedForm(run: Run, i: number, { frame }: Prepared): Promise<Pick<PackedChunk, "stored" | "method">> {
    if (frame) return { stored: frame, method: methods.zstd };
    const bytes = await run.bytesOf(i);
    const late = frame === undefined && session.compresses ? compressChunk(bytes) : null;
    return late ? { stored: late, method: methods.zstd } : { stored: bytes, method: methods.stored };
  }
  async function pack(chunk: PackedChunk): Promise<void> {
    await writer.add({ ...chunk, stored: await repository.sealing.seal("chunk", chunk.stored) });
  }
  /** Places the chunks of a run after all that were there before, and waits while there are many. */
  async function take(offset: number, length: number, run: Run): Promise<void> {
    runs.add(run);
    for (let at = 0; at < length; at += chunkBytes) {
      const [chunk, i, bytes] = [(offset + at) / chunkBytes, at / chunkBytes, Math.min(chunkBytes, length - at)];
      placed = placed.then(() => place(chunk, bytes, run, i));
      placed.catch(() => {});
      placing.push(placed);
      if (placing.length > placingAtOnce) await placing.shift();
    }
    // once it is placed, its frames are in a pack or among those that are sealed just then
    const release = (): void => {
      runs.delete(run);
      run.release();
    };
    placed.then(() => Promise.all(packing)).then(release, () => {});
  }

  return {
    blockBytes: chunkBytes,
    write: (offset, data) => take(offset, data.length, prepareChunks(data, preparation)),
    async writeFrom(source, range) {
      const run = prepareUnread(source, range, preparation);
      if (run.reading && reading.push(run.reading) >= readAtOnce) await reading.shift();
      await take(range.offset, range.length, run);
    },
    async settled() {
      await placed;
      await Promise.all(packing);
    },
    async finish() {
      await placed;
      await passTo(chunks);
      await Promise.all(packing);
    },
    stored: () => ({ chunkBytes, segments, contentHash: content.digest("hex"), dataBytes, newBytes }),
  };
}

const slabs = new Map<number, Buffer>();

/** The hashes of as many zero chunks as a segment has. */
function zeroHashes(chunkBytes: number): Buffer {
  let slab = slabs.get(chunkBytes);
  if (!slab) slabs.set(chunkBytes, (slab = Buffer.alloc((segmentBytes / chunkBytes) * idBytes, zeroPieceHash(chunkBytes))));
  return slab;
}
