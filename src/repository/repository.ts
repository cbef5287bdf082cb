import { promisify } from "node:util";
import { constants, zstdCompressSync, zstdDecompress } from "node:zlib";
import type { Destination, NamedFile } from "../destinations/destination.ts";
import { emptied, getOrNothing, isGone, readListed } from "../destinations/gone.ts";
import { isAsWritten, withDigest } from "../model/digest.ts";
import { HypersdkError } from "../model/errors.ts";
import type { Instant } from "../model/instant.ts";
import type { RepositoryBefore } from "../model/recorded.ts";
import { ChunkIndex } from "./chunk-index.ts";
import { addMissingRecipients, makeKey, unlock } from "./keys.ts";
import {
  condemnedFolder,
  damaged,
  decodeIndex,
  decodeSegment,
  defaultChunkBytes,
  encodeIndex,
  encodeSegment,
  indexFolder,
  maxChunkBytes,
  maxObjectBytes,
  minChunkBytes,
  nameOf,
  type PackDirectory,
  packFileBytes,
  packsFolder,
  pointsFolder,
  repositoryVersion,
  segmentsFolder,
} from "./layout.ts";
import { type Sealing, sealedWith, unsealed } from "./sealing.ts";

const decompress = promisify(zstdDecompress);

/** What a repository is; written once. */
export interface RepositoryConfig {
  readonly formatVersion: typeof repositoryVersion;
  readonly kind: "hypersdk-repository";
  readonly id: string;
  readonly createdAt: Instant;
  /** Chunk size of disks that are stored for the first time. */
  readonly chunkBytes: number;
  /** How everything but this file, `condemned/`, `locks/` and `keys/` is sealed; nothing is where it is missing. */
  readonly encryption?: "aes-256-gcm";
  /** SHA-256 over the compact JSON of everything above. */
  readonly digest: string;
}

export const configPath = "config";

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
  /** Lists of what is condemned that cannot be read: nobody can act on them. */
  readonly unreadable: readonly string[];
  readonly packs: ReadonlyMap<string, StoredObject>;
  readonly segments: ReadonlyMap<string, StoredObject>;
  readonly isUsable: (name: string) => boolean;
}

/** What of packs and segments may be built on. */
export interface Standing {
  /** It is there, and nobody has condemned it. */
  isUsable(name: string): boolean;
  /** It is there as long as it was written. */
  isWhole(pack: PackDirectory): boolean;
}

/** An index object, and what it says of packs: nothing where it is known, or damaged. */
interface IndexObject extends StoredObject {
  readonly directories: readonly PackDirectory[];
}

/** Directories that one index object takes. */
export const fullIndexBytes: number = maxObjectBytes.index / 2;

/** A chunk store at a destination: immutable objects that are named by what they hold. */
export class Repository {
  readonly destination: Destination;
  readonly config: RepositoryConfig;
  readonly sealing: Sealing;

  private constructor(destination: Destination, config: RepositoryConfig, sealing: Sealing) {
    this.destination = destination;
    this.config = config;
    this.sealing = sealing;
  }

  /**
   * Undefined where there is none.
   * @throws ArtifactDamaged for one that cannot be read, or of a newer version; KeyRefused for one that is encrypted and that the
   * destination's key does not open
   */
  static async open(destination: Destination): Promise<Repository | undefined> {
    const config = await Repository.configAt(destination);
    return config && new Repository(destination, config, config.encryption ? sealedWith(await unlock(destination, config.id)) : unsealed);
  }

  /** What can be told of the repository at a destination without its key; undefined where there is none. */
  static async configAt(destination: Destination): Promise<RepositoryConfig | undefined> {
    const bytes = await getOrNothing(destination, configPath, 65_536);
    return bytes && decodeConfig(destination, bytes);
  }

  /** Whether the repository at a destination is sealed; undefined where there is none. */
  static async isSealed(destination: Destination): Promise<boolean | undefined> {
    const config = await Repository.configAt(destination);
    return config && config.encryption !== undefined;
  }

  /** Stands for the key, and tells nothing of it: another key in its place is found out by whoever remembers it. Undefined where nothing is sealed. */
  get keyId(): string | undefined {
    return this.config.encryption && this.sealing.nameFor("hypersdk key");
  }

  /**
   * Opens the repository for an export; undefined where one may be made.
   * @throws KeyRefused, DestinationForeign or DestinationUnreachable where it is not the one that was written to before, or is not encrypted and meant to be
   */
  static async openForExport(destination: Destination, before: RepositoryBefore = {}): Promise<Repository | undefined> {
    const repository = await Repository.open(destination);
    if (repository) requireFitting(repository, before);
    if (repository || before.repositoryId === undefined) return repository;
    const orphans = await folderOfOrphans(destination);
    if (orphans !== undefined) throw withoutConfig(destination, orphans);
    throw emptied(destination);
  }

  /** The same, and makes it where there is none; of two that make it at once, the second opens what the first made. */
  static async openOrCreate(destination: Destination, id: string, createdAt: Instant, before: RepositoryBefore = {}): Promise<Repository> {
    const repository = (await Repository.openForExport(destination, before)) ?? (await Repository.#create(destination, id, createdAt));
    requireFitting(repository, before);
    if (repository.config.encryption) await addMissingRecipients(destination, repository.config.id, createdAt);
    return repository;
  }

  static async #create(destination: Destination, id: string, createdAt: Instant): Promise<Repository> {
    const orphans = await folderOfOrphans(destination);
    if (orphans !== undefined) {
      // somebody else may have made it in between
      const made = await Repository.open(destination);
      if (made) return made;
      throw withoutConfig(destination, orphans);
    }
    const made = destination.encryption?.sealing && (await makeKey(destination, id, createdAt));
    const config: RepositoryConfig = withDigest({
      formatVersion: repositoryVersion,
      kind: "hypersdk-repository" as const,
      id,
      createdAt,
      chunkBytes: defaultChunkBytes,
      ...(made ? { encryption: "aes-256-gcm" as const } : {}),
    } as const);
    try {
      await destination.put(configPath, `${JSON.stringify(config, null, 2)}\n`, { exclusive: true });
      return new Repository(destination, config, made ? sealedWith(made.masterKey) : unsealed);
    } catch (error) {
      const other = error instanceof HypersdkError && error.code === "AlreadyExists" ? await Repository.open(destination) : undefined;
      if (!other) throw error;
      // only where it is somebody else's for sure: without its slots, a repository is lost
      if (other.config.id !== id) for (const path of made?.paths ?? []) await destination.remove(path).catch(() => {});
      return other;
    }
  }

  /**
   * All chunks of all packs that an index names; those of condemned packs and of packs that are gone are not usable. An index that is
   * damaged is passed over: a reader misses only what is in no other, and a writer sends that again.
   * @param withCondemned for those who ask what is there: what is condemned stays as long as a point uses it, and only nothing new is built on it
   */
  async loadIndex({ withCondemned = false }: { readonly withCondemned?: boolean } = {}): Promise<ChunkIndex> {
    const directories = (await this.readIndexes(() => {})).flatMap((each) => each.directories);
    const { isUsable, isWhole } = await this.standing();
    const index = new ChunkIndex(directories);
    for (const each of directories) index.add(each, (withCondemned || isUsable(each.name)) && isWhole(each));
    return index;
  }

  /**
   * Every index object with what it says. A compaction may replace them meanwhile: then they are listed again.
   * @param problem called for one that is damaged; without it, that throws
   * @param isKnown tells of those that need not be read again
   */
  async readIndexes(problem?: NoteProblem, isKnown: (object: StoredObject) => boolean = () => false): Promise<readonly IndexObject[]> {
    const all = await readListed(
      () => this.list(indexFolder),
      async (object): Promise<IndexObject & { readonly error?: HypersdkError }> => {
        const { path, name } = object;
        if (isKnown(object)) return { ...object, directories: [] };
        const bytes = await this.destination.get(path, maxObjectBytes.index);
        try {
          if (nameOf(bytes) !== name) throw damaged(path, "its content is not what its name says");
          return { ...object, directories: decodeIndex(path, await this.sealing.open("index", path, bytes), this.sealing.overheadBytes) };
        } catch (error) {
          if (!problem || !isDamage(error)) throw error;
          return { ...object, directories: [], error };
        }
      },
    );
    for (const { path, error } of all) if (error) problem?.(path, error);
    return all;
  }

  /** One object, or several where the packs are so many. */
  async saveIndex(packs: readonly PackDirectory[]): Promise<void> {
    for (let first = 0; first < packs.length; ) {
      let [end, bytes] = [first, 0];
      while (end < packs.length && (end === first || bytes + (packs[end] as PackDirectory).directory.length < fullIndexBytes))
        bytes += (packs[end++] as PackDirectory).directory.length;
      const content = await this.sealing.seal("index", encodeIndex(packs.slice(first, end)));
      await this.destination.put(`${indexFolder}/${nameOf(content)}`, content, { exclusive: true });
      first = end;
    }
  }

  /** Looks again at what is condemned, then at what is there: in this order, whatever was condemned before the call is seen. */
  async present(): Promise<Present> {
    const unreadable: string[] = [];
    const condemned = await this.condemnations((path) => void unreadable.push(path));
    const names = namesOf(condemned);
    const packs = new Map((await this.list(packsFolder)).map((each) => [each.name, each]));
    const segments = new Map((await this.list(segmentsFolder)).map((each) => [each.name, each]));
    return { condemned, unreadable, packs, segments, isUsable: (name) => !names.has(name) && (packs.has(name) || segments.has(name)) };
  }

  /** As {@link present}, for those who build on it: of packs it asks for names and sizes, of segments for names. */
  async standing(): Promise<Standing> {
    const condemned = namesOf(await this.condemnations());
    const packs = new Map((await this.list(packsFolder)).map(({ name, bytes }) => [name, bytes]));
    const segments = await this.#names(segmentsFolder);
    return {
      isUsable: (name) => !condemned.has(name) && (packs.has(name) || segments.has(name)),
      isWhole: ({ name, directory }) => packs.get(name) === packFileBytes(directory, this.sealing.overheadBytes),
    };
  }

  /** Which of some packs and segments may not be built on any more. It looks as {@link present} does, in that order, and asks for names alone. */
  async goneOf(names: readonly string[]): Promise<string[]> {
    const condemned = namesOf(await this.condemnations());
    const there = new Set([...(await this.#names(packsFolder)), ...(await this.#names(segmentsFolder))]);
    return names.filter((name) => condemned.has(name) || !there.has(name));
  }

  async condemnations(unreadable: (path: string) => void = () => {}): Promise<Condemnation[]> {
    const listed = async (): Promise<NamedFile[]> => objectsOf(condemnedFolder, await this.destination.names(condemnedFolder)).map(({ file }) => file);
    const all = await readListed(listed, async ({ path }) => {
      const value = jsonOf(await this.destination.get(path, 64 * 2 ** 20)) as Partial<Condemnation> | undefined;
      const isList = (names: unknown): boolean => Array.isArray(names) && names.every((name) => typeof name === "string");
      const isWhole = typeof value?.at === "string" && typeof value.id === "string" && isList(value.packs) && isList(value.segments);
      return isWhole ? (value as Condemnation) : path;
    });
    for (const each of all) if (typeof each === "string") unreadable(each);
    return all.filter((each) => typeof each !== "string");
  }

  /** A list of ids as an object of its own. @returns what it will be called, and puts it there */
  async packSegment(chunkBytes: number, ids: Buffer): Promise<{ readonly name: string; readonly bytes: number; put(): Promise<void> }> {
    const packed = zstdCompressSync(encodeSegment(chunkBytes, ids), { params: { [constants.ZSTD_c_compressionLevel]: 1 } });
    const content = await this.sealing.seal("segment", packed);
    const name = nameOf(content);
    return { name, bytes: content.length, put: () => this.destination.put(`${segmentsFolder}/${name}`, content, { exclusive: true }) };
  }

  /** Whether a segment is there and is what its name says. */
  async hasSegment(name: string): Promise<boolean> {
    const bytes = await getOrNothing(this.destination, `${segmentsFolder}/${name}`, maxObjectBytes.segment);
    return bytes !== undefined && nameOf(bytes) === name;
  }

  /** @returns the ids, 32 bytes for each chunk */
  async loadSegment(name: string, chunkBytes: number, chunks: number): Promise<Buffer> {
    const path = `${segmentsFolder}/${name}`;
    const bytes = await this.destination.get(path, maxObjectBytes.segment).catch((error: unknown) => {
      throw isGone(error) ? damaged(path, "it is gone") : error;
    });
    if (nameOf(bytes) !== name) throw damaged(path, "its content is not what its name says");
    const packed = await this.sealing.open("segment", path, bytes);
    const content = await decompress(packed, { maxOutputLength: maxObjectBytes.segment }).catch(() => undefined);
    if (!content) throw damaged(path, "it does not unpack");
    return decodeSegment(path, content, chunkBytes, chunks);
  }

  /** A manifest, as it was put. @throws NotFound when it is not there */
  async getPoint(path: string): Promise<Buffer> {
    return this.sealing.open("point", path, await this.destination.get(path, maxObjectBytes.point));
  }

  async putPoint(path: string, manifest: string): Promise<void> {
    await this.destination.put(path, await this.sealing.seal("point", Buffer.from(manifest)));
  }

  /** The objects of a folder; foreign files and what was never finished are left out. */
  async list(folder: string): Promise<StoredObject[]> {
    return objectsOf(folder, await this.destination.list(folder)).map(({ name, file: { path, bytes, modifiedMs } }) => ({ path, bytes, modifiedMs, name }));
  }

  async #names(folder: string): Promise<Set<string>> {
    return new Set(objectsOf(folder, await this.destination.names(folder)).map(({ name }) => name));
  }
}

/** @throws KeyRefused or DestinationForeign where a repository is not the one that was written to before, or is not encrypted and meant to be */
function requireFitting({ config, keyId, destination }: Repository, before: RepositoryBefore): void {
  const { name } = destination.spec;
  if (before.keyId !== undefined && keyId !== before.keyId)
    throw new HypersdkError("KeyRefused", `the repository at ${name} has another key than when it was last written to: somebody has replaced it`, {
      hint: "where that was you, --adopt takes it as it is",
    });
  if (before.repositoryId !== undefined && config.id !== before.repositoryId)
    throw new HypersdkError("DestinationForeign", `the repository at ${name} is another one than when it was last written to`, {
      hint: "put the one back that was there; where it is gone for good, --adopt takes this one as it is",
    });
  if (destination.encryption?.sealing && !config.encryption)
    throw new HypersdkError("KeyRefused", `the files want ${name} encrypted, and the repository there is not`, {
      hint: "what is there cannot be sealed in place: name a new destination, and let this one expire",
    });
}

/** A folder that holds something of a repository. */
async function folderOfOrphans(destination: Destination): Promise<string | undefined> {
  for (const folder of [packsFolder, pointsFolder]) if ((await destination.list(folder)).some(({ isPartial }) => !isPartial)) return folder;
  return undefined;
}

/** What was a repository, and cannot be read as one. @param folder that is there nevertheless */
export function withoutConfig({ spec }: Destination, folder: string): HypersdkError {
  return new HypersdkError("ArtifactDamaged", `${spec.name} holds ${folder} and no config: it was a repository whose config is gone`, {
    hint: "put the file config back, from a copy of the destination; with another one, nothing that is there can be read",
  });
}

/** @returns those that are named as objects are */
function objectsOf<F extends NamedFile>(folder: string, files: readonly F[]): { readonly file: F; readonly name: string }[] {
  const objects: { file: F; name: string }[] = [];
  for (const file of files) {
    if (file.isPartial) continue;
    const name = refuseLink(file).path.slice(folder.length + 1, file.path.endsWith(".json") ? -5 : undefined);
    if (/^[0-9a-f-]{32,64}$/.test(name)) objects.push({ file, name });
  }
  return objects;
}

function namesOf(condemnations: readonly Condemnation[]): Set<string> {
  return new Set(condemnations.flatMap(({ packs, segments }) => [...packs, ...segments]));
}

/** A link would be read by some and not be seen by others. @throws ArtifactDamaged */
export function refuseLink<F extends NamedFile>(file: F): F {
  if (file.isLink) throw damaged(file.path, "it is a symbolic link, and a repository holds files: put what it leads to in its place");
  return file;
}

function jsonOf(bytes: Buffer): object | undefined {
  try {
    const value: unknown = JSON.parse(bytes.toString("utf8"));
    return typeof value === "object" && value !== null ? value : undefined;
  } catch {
    return undefined;
  }
}

function decodeConfig(destination: Destination, bytes: Buffer): RepositoryConfig {
  const path = `${configPath} of ${destination.spec.name}`;
  const config = jsonOf(bytes) as Partial<RepositoryConfig> | undefined;
  if (!config) throw damaged(path, "it is no JSON object");
  if (config.kind !== "hypersdk-repository") throw damaged(path, "this is no repository of hypersdk");
  // before anything else is believed, the version too; the digest is the same in all of them
  if (!isAsWritten(config)) throw damaged(path, "it is not what was written: its digest is wrong");
  if (typeof config.formatVersion !== "number") throw damaged(path, "it says no version");
  if (config.formatVersion > repositoryVersion)
    throw new HypersdkError("Failed", `${path} has format version ${config.formatVersion}: a newer hypersdk wrote it`, { hint: "use that version" });
  if (typeof config.id !== "string" || typeof config.chunkBytes !== "number") throw damaged(path, "fields are missing");
  const { chunkBytes } = config;
  if (!(chunkBytes >= minChunkBytes && chunkBytes <= maxChunkBytes && (chunkBytes & (chunkBytes - 1)) === 0))
    throw damaged(path, `chunks of ${chunkBytes} bytes are not of this version`);
  if (config.encryption !== undefined && config.encryption !== "aes-256-gcm") throw damaged(path, `it is sealed with ${String(config.encryption)}`);
  return config as RepositoryConfig;
}

/** Called for each object that is damaged. */
export type NoteProblem = (path: string, error: HypersdkError) => void;

export function isDamage(error: unknown): error is HypersdkError {
  return error instanceof HypersdkError && error.code === "ArtifactDamaged";
}
