import { crc32 } from "node:zlib";
import type { ByteFile } from "../converters/byte-file.ts";
import { isGone, openNamed } from "../destinations/gone.ts";
import { HypersdkError } from "../model/errors.ts";
import { decompressChunk } from "./chunk-codec.ts";
import type { ChunkIndex, ChunkPlace, PackInfo } from "./chunk-index.ts";
import { type ChunkEntry, damaged, entryAt, entryBytes, idBytes, maxPackBytes, methods, packsFolder, trailerBytes } from "./layout.ts";
import { isDamage, type Repository } from "./repository.ts";
import { sha256 } from "./sha256.ts";

/** Pack files that stay open. */
const openAtOnce = 16;
/** Neighbours in a pack are read in one go, up to this much, over gaps up to this much. */
const readBytes = 4 * 2 ** 20;
const gapBytes = 64 * 1024;

/** Reads chunks by id, each checked against its id; where one is damaged and another pack has it too, from there. */
export class ChunkReader {
  readonly #repository: Repository;
  readonly #index: ChunkIndex;
  /** Most recently used last. */
  readonly #files = new Map<string, OpenPack>();
  #isOutdated = false;

  constructor(repository: Repository, index: ChunkIndex) {
    this.#repository = repository;
    this.#index = index;
  }

  /**
   * The chunks whose ids stand at the given places, in that order. Those that lie beside one another in a pack are read together.
   * @throws ArtifactDamaged for a chunk that is missing or is not what its id says
   */
  async read(ids: Buffer, places: readonly number[]): Promise<Buffer[]> {
    const wanted = places.map((at) => ({ id: ids.subarray(at, at + idBytes), place: this.#placeOf(ids, at) }));
    const raw: Promise<Buffer>[] = [];
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
      run.catch(() => {});
      for (let i = first; i <= last; i++) {
        const { id, place } = wanted[i] as (typeof wanted)[number];
        const stored = run.then((bytes) => bytes.subarray(place.offset - start.offset, place.offset - start.offset + place.storedBytes));
        raw.push(stored.then((bytes) => unpack(this.#repository, place, id, bytes)).catch((error: unknown) => this.#readCopy(id, error)));
      }
      first = last + 1;
    }
    const all = await Promise.allSettled(raw);
    return all.map((result) => {
      if (result.status === "rejected") throw result.reason;
      return result.value;
    });
  }

  /** Whether a pack has gone since the index was read that was there then: what it held is in another one. */
  get isOutdated(): boolean {
    return this.#isOutdated;
  }

  async close(): Promise<void> {
    const files = [...this.#files.values()];
    this.#files.clear();
    await Promise.all(files.map(closeWhenRead));
  }

  /** @throws `error`, where no other pack has the chunk */
  async #readCopy(id: Buffer, error: unknown): Promise<Buffer> {
    if (!isDamage(error) && !isGone(error)) throw error;
    for (const place of this.#index.copiesOf(id)) {
      try {
        return await unpack(this.#repository, place, id, await this.#readRange(place, place.storedBytes));
      } catch (other) {
        if (!isDamage(other) && !isGone(other)) throw other;
      }
    }
    throw error;
  }

  #placeOf(ids: Buffer, at: number): ChunkPlace {
    const place = this.#index.find(ids.subarray(at, at + idBytes));
    if (!place) throw damaged(`chunk ${ids.toString("hex", at, at + idBytes)}`, "no pack holds it");
    return place;
  }

  #readRange({ pack, offset }: ChunkPlace, length: number): Promise<Buffer> {
    const path = `${packsFolder}/${pack.name}`;
    const open = this.#open(path, pack.usable);
    const reading = open.file.then(async (file) => {
      if (offset + length > file.sizeBytes) throw damaged(path, `it has ${file.sizeBytes} bytes, its chunks go to ${offset + length}`);
      const bytes = Buffer.allocUnsafeSlow(length);
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

async function unpack({ sealing }: Repository, { pack, rawBytes, method, offset }: ChunkPlace, id: Buffer, stored: Buffer): Promise<Buffer> {
  const packed = await sealing.open("chunk", `${packsFolder}/${pack.name}: the chunk at ${offset}`, stored);
  const isRight = async (data: Buffer): Promise<boolean> => (await sha256(data)).equals(id);
  const raw =
    method === methods.zstd ? await decompressChunk(packed, rawBytes, isRight) : packed.length === rawBytes && (await isRight(packed)) ? packed : undefined;
  if (!raw) throw damaged(`${packsFolder}/${pack.name}`, `the chunk at ${offset} is not ${id.toString("hex")}`);
  return raw;
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
  for (let at = 0; at < pack.directory.length; at += entryBytes) {
    const entry = entryAt(pack.directory, at);
    const record = pack.directory.subarray(at, at + entryBytes);
    const stored = bytes.subarray(entry.offset, entry.offset + entry.storedBytes);
    const isThere = stored.length === entry.storedBytes;
    const raw = isThere
      ? unpack(repository, { ...entry, pack }, entry.id, stored)
      : Promise.reject(damaged(path, `it ends before the chunk at ${entry.offset}`));
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
    if (checking.length >= checkedAtOnce) yield (await checking.shift()) as ReadChunk;
  }
  for (const each of checking) yield await each;
  // bits that change nothing of what unpacks
  if (!isWhole && isSound) noteUnsound?.(damaged(path, "its bytes are not those that were stored, though every chunk of them unpacks"));
}

/** What is wrong with the bytes of a pack. */
export async function damageOf(repository: Repository, pack: PackInfo): Promise<string[]> {
  const damage: string[] = [];
  for await (const { problem } of readPack(repository, pack, ({ message }) => damage.push(message))) if (problem) damage.push(problem.message);
  return damage;
}

const checkedAtOnce = 16;
