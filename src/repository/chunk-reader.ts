import { crc32 } from "node:zlib";
import type { ByteFile } from "../converters/byte-file.ts";
import { isGone, openNamed } from "../destinations/gone.ts";
import { HypersdkError } from "../model/errors.ts";
import type { ChunkIndex, ChunkPlace, PackInfo } from "./chunk-index.ts";
import { FrameMemory } from "./frame-memory.ts";
import { type ChunkEntry, damaged, entryAt, entryBytes, maxPackBytes, methods, packsFolder, trailerBytes } from "./layout.ts";
import { isDamage, type Repository } from "./repository.ts";
import { sha256 } from "./sha256.ts";
import { decompressChunk } from "./zstd-pool.ts";

/** Pack files that stay open. */
const openAtOnce = 16;
/** Neighbours in a pack are read in one go, up to this much, over gaps up to this much. */
const readBytes = 4 * 2 ** 20;
const gapBytes = 64 * 1024;

/** Memory that neighbours were read into, to be used again: for fresh memory each time, the collector works as long as zstd. */
const spareRanges: Buffer[] = [];
const spareRangesAtMost = 4;

/** Reads chunks by id, each checked against its id; where one is damaged and another pack has it too, from there. */
export class ChunkReader {
  readonly #repository: Repository;
  readonly #index: ChunkIndex;
  /** Most recently used last. */
  readonly #files = new Map<string, OpenPack>();
  #isOutdated = false;
  #isClosed = false;

  constructor(repository: Repository, index: ChunkIndex) {
    this.#repository = repository;
    this.#index = index;
  }

  /**
   * Reads the chunks whose ids are given, each into its memory. Those that lie beside one another in a pack are read together. Nothing is
   * written to the memory any more when this has ended, however it did.
   * @throws ArtifactDamaged for a chunk that is missing, is not what its id says, or does not fill its memory
   */
  async read(chunks: readonly WantedChunk[]): Promise<void> {
    const wanted = chunks.map((chunk) => ({ ...chunk, place: this.#placeOf(chunk) }));
    const unpacked: Promise<void>[] = [];
    const runs: Promise<Buffer>[] = [];
    for (let first = 0; first < wanted.length; ) {
      const start = (wanted[first] as (typeof wanted)[number]).place;
      let [last, end] = [first, start.offset + start.storedBytes];
      for (let i = first + 1; i < wanted.length; i++) {
        const { place } = wanted[i] as (typeof wanted)[number];
        if (place.pack !== start.pack || place.offset < end || place.offset > end + gapBytes || place.offset + place.storedBytes - start.offset > readBytes)
          break;
        [last, end] = [i, place.offset + place.storedBytes];
      }
      const run = this.#readRange(start, end - start.offset);
      runs.push(run);
      for (let i = first; i <= last; i++) {
        const { id, place, into } = wanted[i] as (typeof wanted)[number];
        const stored = run.then((bytes) => bytes.subarray(place.offset - start.offset, place.offset - start.offset + place.storedBytes));
        unpacked.push(stored.then((bytes) => unpack(this.#repository, place, id, bytes, into)).catch((error: unknown) => this.#readCopy(id, into, error)));
      }
      first = last + 1;
    }
    const ended = await Promise.allSettled(unpacked);
    for (const run of await Promise.allSettled(runs)) if (run.status === "fulfilled") releaseRange(run.value);
    for (const result of ended) if (result.status === "rejected") throw result.reason;
  }

  /** Whether a pack has gone since the index was read that was there then: what it held is in another one. */
  get isOutdated(): boolean {
    return this.#isOutdated;
  }

  /** What is still being read fails, or ends with what it has open. */
  async close(): Promise<void> {
    this.#isClosed = true;
    const files = [...this.#files.values()];
    this.#files.clear();
    await Promise.all(files.map(closeWhenRead));
  }

  /** @throws `error`, where no other pack has the chunk */
  async #readCopy(id: Buffer, into: Buffer, error: unknown): Promise<void> {
    if (!isDamage(error) && !isGone(error)) throw error;
    for (const place of this.#index.copiesOf(id)) {
      try {
        return await unpack(this.#repository, place, id, await this.#readRange(place, place.storedBytes), into);
      } catch (other) {
        if (!isDamage(other) && !isGone(other)) throw other;
      }
    }
    throw error;
  }

  #placeOf({ id }: WantedChunk): ChunkPlace {
    const place = this.#index.find(id);
    if (!place) throw damaged(`chunk ${id.toString("hex")}`, "no pack holds it");
    return place;
  }

  #readRange({ pack, offset }: ChunkPlace, length: number): Promise<Buffer> {
    const path = `${packsFolder}/${pack.name}`;
    // nobody would close it
    if (this.#isClosed) return Promise.reject(new Error(`${path} is read for nobody any more`));
    const open = this.#open(path, pack.usable);
    const reading = open.file.then(async (file) => {
      if (offset + length > file.sizeBytes) throw damaged(path, `it has ${file.sizeBytes} bytes, its chunks go to ${offset + length}`);
      const bytes = roomForRange(length);
      await file.read(offset, bytes);
      return bytes;
    });
    open.reads.add(reading);
    reading.finally(() => open.reads.delete(reading)).catch(() => {});
    return reading;
  }

  #open(path: string, wasThere: boolean): OpenPack {
    const known = this.#files.get(path);
    const open: OpenPack = known ?? {
      reads: new Set(),
      file: openNamed(this.#repository.destination, path).catch((error: unknown) => {
        this.#files.delete(path);
        if (wasThere && error instanceof HypersdkError && isGone(error.cause)) this.#isOutdated = true;
        throw error;
      }),
    };
    this.#files.delete(path);
    this.#files.set(path, open);
    if (this.#files.size > openAtOnce) {
      const [oldest] = this.#files as Iterable<[string, OpenPack]>;
      if (oldest) {
        this.#files.delete(oldest[0]);
        void closeWhenRead(oldest[1]);
      }
    }
    return open;
  }
}

function roomForRange(bytes: number): Buffer {
  const isUsual = bytes > readBytes / 8 && bytes <= readBytes;
  return isUsual ? (spareRanges.pop() ?? Buffer.allocUnsafeSlow(readBytes)).subarray(0, bytes) : Buffer.allocUnsafeSlow(bytes);
}

function releaseRange(range: Buffer): void {
  if (range.buffer.byteLength === readBytes && spareRanges.length < spareRangesAtMost) spareRanges.push(Buffer.from(range.buffer));
}

/** A chunk that is read, and the memory that it fills. */
export interface WantedChunk {
  readonly id: Buffer;
  readonly into: Buffer;
}

interface OpenPack {
  readonly file: Promise<ByteFile>;
  readonly reads: Set<Promise<unknown>>;
}

async function closeWhenRead({ file, reads }: OpenPack): Promise<void> {
  await Promise.allSettled(reads);
  await file.then(
    (open) => open.close(),
    () => {},
  );
}

/** Fills `into` with a chunk. @throws ArtifactDamaged where it is another one, or of another length: then `into` holds nothing of use */
async function unpack({ sealing }: Repository, { pack, rawBytes, method, offset }: ChunkPlace, id: Buffer, stored: Buffer, into: Buffer): Promise<void> {
  const path = `${packsFolder}/${pack.name}`;
  if (rawBytes !== into.length) throw damaged(path, `the chunk at ${offset} has ${rawBytes} bytes, not ${into.length}`);
  const packed = await sealing.open("chunk", `${path}: the chunk at ${offset}`, stored);
  const isIt = async (raw: Buffer): Promise<boolean> => (await sha256(raw)).equals(id);
  if (!(await (method === methods.zstd ? decompressChunk(packed, into, isIt) : copyChunk(packed, into, isIt))))
    throw damaged(path, `the chunk at ${offset} is not ${id.toString("hex")}`);
}

async function copyChunk(packed: Buffer, into: Buffer, isIt: (raw: Buffer) => Promise<boolean>): Promise<boolean> {
  if (packed.length !== into.length) return false;
  packed.copy(into);
  return isIt(into);
}

/** A chunk of one pack as it was read from it. */
export interface ReadChunk {
  readonly entry: ChunkEntry;
  /** The bytes of the directory that name it. */
  readonly record: Buffer;
  readonly stored: Buffer;
  /** What is wrong with it; undefined for a sound one. */
  readonly problem: HypersdkError | undefined;
}

/**
 * Every chunk of one pack, in the order of its directory, each checked against its id.
 * @param noteUnsound called when the bytes of the pack changed and no chunk of it did
 * @throws NotFound when the pack is gone, before the first chunk
 */
export async function* readPack(repository: Repository, pack: PackInfo, noteUnsound?: (problem: HypersdkError) => void): AsyncGenerator<ReadChunk> {
  const path = `${packsFolder}/${pack.name}`;
  const file = await repository.destination.open(path);
  let bytes: Buffer;
  try {
    bytes = Buffer.allocUnsafeSlow(Math.min(file.sizeBytes, maxPackBytes));
    await file.read(0, bytes);
  } finally {
    await file.close();
  }
  const data = bytes.subarray(0, Math.max(0, bytes.length - trailerBytes - pack.directory.length - repository.sealing.overheadBytes));
  const crc = bytes.length >= trailerBytes ? bytes.readUInt32LE(bytes.length - trailerBytes + 12) : -1;
  const isWhole = crc32(data) === crc;
  let isSound = true;
  const checking: Promise<ReadChunk>[] = [];
  let checkedBytes = 0;
  for (let at = 0; at < pack.directory.length; at += entryBytes) {
    const entry = entryAt(pack.directory, at);
    const record = pack.directory.subarray(at, at + entryBytes);
    const stored = bytes.subarray(entry.offset, entry.offset + entry.storedBytes);
    const isThere = stored.length === entry.storedBytes;
    const raw = isThere ? checked(repository, { ...entry, pack }, stored) : Promise.reject(damaged(path, `it ends before the chunk at ${entry.offset}`));
    checking.push(
      raw.then(
        () => ({ entry, record, stored, problem: undefined }),
        (problem: unknown) => {
          if (!isDamage(problem)) throw problem;
          isSound = false;
          return { entry, record, stored, problem };
        },
      ),
    );
    checkedBytes += entry.rawBytes;
    while (checking.length >= checkedAtOnce || checkedBytes > checkedBytesAtOnce) {
      const first = (await checking.shift()) as ReadChunk;
      checkedBytes -= first.entry.rawBytes;
      yield first;
    }
  }
  for (const each of checking) yield await each;
  // bits that change nothing of what unpacks
  if (!isWhole && isSound) noteUnsound?.(damaged(path, "its bytes are not those that were stored, though every chunk of them unpacks"));
}

async function checked(repository: Repository, place: ChunkPlace & Pick<ChunkEntry, "id">, stored: Buffer): Promise<void> {
  const memory = new FrameMemory();
  try {
    await unpack(repository, place, place.id, stored, memory.room(place.rawBytes));
  } finally {
    memory.release();
  }
}

/** What is wrong with the bytes of a pack. */
export async function damageOf(repository: Repository, pack: PackInfo): Promise<string[]> {
  const damage: string[] = [];
  for await (const { problem } of readPack(repository, pack, ({ message }) => damage.push(message))) if (problem) damage.push(problem.message);
  return damage;
}

const checkedAtOnce = 16;
const checkedBytesAtOnce = 8 * 2 ** 20;
