import { randomBytes } from "node:crypto";
import { promisify } from "node:util";
import { constants, zstdCompressSync, zstdDecompress } from "node:zlib";
import type { Destination, StoredFile } from "../destinations/destination.ts";
import { isAsWritten, withDigest } from "../model/digest.ts";
import { HypersdkError } from "../model/errors.ts";
import type { Instant } from "../model/instant.ts";
import { ChunkIndex } from "./chunk-index.ts";
import {
  condemnedFolder,
  damaged,
  decodeIndex,
  decodeSegment,
  defaultChunkBytes,
  encodeIndex,
  encodeSegment,
  indexFolder,
  maxObjectBytes,
  nameOf,
  type PackDirectory,
  packsFolder,
  repositoryVersion,
  segmentsFolder,
} from "./layout.ts";

const decompress = promisify(zstdDecompress);

/** What a repository is; written once. */
export interface RepositoryConfig {
  readonly formatVersion: typeof repositoryVersion;
  readonly kind: "hypersdk-repository";
  readonly id: string;
  readonly createdAt: Instant;
  /** Chunk size of disks that are stored for the first time. */
  readonly chunkBytes: number;
  /** SHA-256 over the compact JSON of everything above. */
  readonly digest: string;
}

const configPath = "config";

/** What is condemned: packs and segments that a compaction will remove, and on which nothing new may be built. */
export interface Condemnation {
  readonly id: string;
  readonly at: Instant;
  readonly packs: readonly string[];
  readonly segments: readonly string[];
}

/** An object of the repository as its folder lists it. */
export interface StoredObject {
  readonly name: string;
  readonly path: string;
  readonly bytes: number;
  readonly modifiedMs: number;
}

/** What is there of packs and segments, with its size, and what of it may be built on. */
export interface Present {
  readonly condemned: readonly Condemnation[];
  readonly packs: ReadonlyMap<string, StoredObject>;
  readonly segments: ReadonlyMap<string, StoredObject>;
  readonly isCondemned: IsCondemned;
  readonly isUsable: (name: string) => boolean;
}

/** A chunk store at a destination: immutable objects that are named by what they hold. */
export class Repository {
  readonly destination: Destination;
  readonly config: RepositoryConfig;

  private constructor(destination: Destination, config: RepositoryConfig) {
    this.destination = destination;
    this.config = config;
  }

  /** Undefined where there is none. @throws ArtifactDamaged for one that cannot be read, or of a newer version */
  static async open(destination: Destination): Promise<Repository | undefined> {
    const bytes = await getOrNothing(destination, configPath, 65_536);
    return bytes && new Repository(destination, decodeConfig(destination, bytes));
  }

  /** Opens the repository, or makes it; of two that make it at once, the second opens what the first made. */
  static async openOrCreate(destination: Destination, id: string, createdAt: Instant): Promise<Repository> {
    const there = await Repository.open(destination);
    if (there) return there;
    const config: RepositoryConfig = withDigest({
      formatVersion: repositoryVersion,
      kind: "hypersdk-repository" as const,
      id,
      createdAt,
      chunkBytes: defaultChunkBytes,
    } as const);
    try {
      await destination.put(configPath, `${JSON.stringify(config, null, 2)}\n`, { exclusive: true });
      return new Repository(destination, config);
    } catch (error) {
      const other = error instanceof HypersdkError && error.code === "AlreadyExists" ? await Repository.open(destination) : undefined;
      if (other) return other;
      throw error;
    }
  }

  /** All chunks of all packs that an index names; those of condemned packs and of packs that are gone are not usable. */
  async loadIndex(): Promise<{ readonly index: ChunkIndex; readonly present: Present }> {
    const directories = (await this.readIndexes()).flatMap((each) => each.directories);
    const present = await this.present();
    const index = new ChunkIndex();
    for (const each of directories) index.add(each, present.isUsable(each.name));
    return { index, present };
  }

  /**
   * Every index object with what it says. A compaction may replace them meanwhile: then they are listed again.
   * @param problem called for one that is damaged, which is left out; without it, that throws
   */
  async readIndexes(problem?: NoteProblem): Promise<readonly { readonly path: string; readonly directories: readonly PackDirectory[] }[]> {
    return this.#all(indexFolder, async (path, name) => {
      const bytes = await this.destination.get(path, maxObjectBytes.index);
      try {
        if (nameOf(bytes) !== name) throw damaged(path, "its content is not what its name says");
        return { path, directories: decodeIndex(path, bytes) };
      } catch (error) {
        if (!problem || !isDamage(error)) throw error;
        problem(path, error);
        return { path, directories: [] };
      }
    });
  }

  async saveIndex(packs: readonly PackDirectory[]): Promise<string> {
    const bytes = encodeIndex(packs);
    const path = `${indexFolder}/${nameOf(bytes)}`;
    await this.putOnce(path, bytes);
    return path;
  }

  /** Looks again at what is condemned, then at what is there: in this order, whatever was condemned before the call is seen. */
  async present(): Promise<Present> {
    const condemned = await this.condemnations();
    const names = new Set(condemned.flatMap(({ packs, segments }) => [...packs, ...segments]));
    const isCondemned = (name: string): boolean => names.has(name);
    const packs = new Map((await this.list(packsFolder)).map((each) => [each.name, each]));
    const segments = new Map((await this.list(segmentsFolder)).map((each) => [each.name, each]));
    return { condemned, packs, segments, isCondemned, isUsable: (name) => !names.has(name) && (packs.has(name) || segments.has(name)) };
  }

  async condemnations(): Promise<Condemnation[]> {
    return this.#all(condemnedFolder, async (path) => {
      const bytes = await this.destination.get(path, 64 * 2 ** 20);
      const value = JSON.parse(bytes.toString("utf8")) as Condemnation;
      if (!Array.isArray(value.packs) || !Array.isArray(value.segments)) throw damaged(path, "it is no list of what is condemned");
      return value;
    });
  }

  /** @param isTaken whether the content needs another name, since an object of that name is condemned */
  async saveSegment(chunkBytes: number, ids: Buffer, isTaken: IsCondemned): Promise<{ readonly name: string; readonly bytes: number }> {
    const { name, bytes } = unlessCondemned(isTaken, (salt) => {
      const bytes = zstdCompressSync(encodeSegment(chunkBytes, ids, salt), { params: { [constants.ZSTD_c_compressionLevel]: 1 } });
      return { bytes, name: nameOf(bytes) };
    });
    await this.putOnce(`${segmentsFolder}/${name}`, bytes);
    return { name, bytes: bytes.length };
  }

  /** @returns the ids, 32 bytes for each chunk */
  async loadSegment(name: string, chunkBytes: number, chunks: number): Promise<Buffer> {
    const path = `${segmentsFolder}/${name}`;
    const bytes = await this.destination.get(path, maxObjectBytes.segment).catch((error: unknown) => {
      throw isGone(error) ? damaged(path, "it is gone") : error;
    });
    if (nameOf(bytes) !== name) throw damaged(path, "its content is not what its name says");
    const content = await decompress(bytes, { maxOutputLength: maxObjectBytes.segment }).catch(() => undefined);
    if (!content) throw damaged(path, "it does not unpack");
    return decodeSegment(path, content, chunkBytes, chunks);
  }

  /** Objects never change: one that is there already is the one. */
  async putOnce(path: string, bytes: Uint8Array): Promise<void> {
    try {
      await this.destination.put(path, bytes, { exclusive: true });
    } catch (error) {
      if (!(error instanceof HypersdkError && error.code === "AlreadyExists")) throw error;
    }
  }

  /** The objects of a folder; foreign files and what was never finished are left out. */
  async list(folder: string): Promise<StoredObject[]> {
    return (await this.destination.list(folder))
      .filter((file: StoredFile) => !file.isPartial)
      .map(({ path, bytes, modifiedMs }) => ({ path, bytes, modifiedMs, name: path.slice(folder.length + 1).replace(/\.json$/, "") }))
      .filter(({ name }) => /^[0-9a-f-]{32,64}$/.test(name));
  }

  async #all<T>(folder: string, read: (path: string, name: string) => Promise<T>): Promise<T[]> {
    for (let attempt = 0; ; attempt++) {
      try {
        const all: T[] = [];
        for (const { path, name } of await this.list(folder)) all.push(await read(path, name));
        return all;
      } catch (error) {
        if (!isGone(error) || attempt === 10) throw error;
      }
    }
  }
}

function decodeConfig(destination: Destination, bytes: Buffer): RepositoryConfig {
  const path = `${configPath} of ${destination.spec.name}`;
  let config: Partial<RepositoryConfig>;
  try {
    config = JSON.parse(bytes.toString("utf8")) as RepositoryConfig;
  } catch (error) {
    throw new HypersdkError("ArtifactDamaged", `${path} is no JSON`, { cause: error });
  }
  if (config.kind !== "hypersdk-repository") throw damaged(path, "this is no repository of hypersdk");
  if (typeof config.formatVersion !== "number" || config.formatVersion > repositoryVersion)
    throw new HypersdkError("ArtifactDamaged", `${path} has format version ${config.formatVersion}: a newer hypersdk wrote it`, { hint: "use that version" });
  if (typeof config.id !== "string" || typeof config.chunkBytes !== "number") throw damaged(path, "fields are missing");
  if (!isAsWritten(config)) throw damaged(path, "it is not what was written: its digest is wrong");
  return config as RepositoryConfig;
}

async function getOrNothing(destination: Destination, path: string, maxBytes: number): Promise<Buffer | undefined> {
  try {
    return await destination.get(path, maxBytes);
  } catch (error) {
    if (isGone(error)) return undefined;
    throw error;
  }
}

export type IsCondemned = (name: string) => boolean;

/** An object as it is, or, where one of its content is about to go, with a salt that gives it a name of its own. */
export function unlessCondemned<T extends { readonly name: string }>(isCondemned: IsCondemned, make: (salt: number) => T): T {
  const plain = make(0);
  return isCondemned(plain.name) ? make(randomBytes(4).readUInt32LE() || 1) : plain;
}

/** Called for each object that is damaged. */
export type NoteProblem = (path: string, error: HypersdkError) => void;

export function isDamage(error: unknown): error is HypersdkError {
  return error instanceof HypersdkError && error.code === "ArtifactDamaged";
}

export function isGone(error: unknown): boolean {
  return error instanceof HypersdkError && error.code === "NotFound";
}
