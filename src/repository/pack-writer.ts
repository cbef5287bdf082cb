import { crc32 } from "node:zlib";
import { pageMemory } from "../model/page-memory.ts";
import { encodeEntry, nameOf, type PackDirectory, packBytes, packsFolder, packTrailer } from "./layout.ts";
import type { Repository } from "./repository.ts";

/** Packs on their way to the store at once: each is held in memory until it is there. */
const uploadsAtOnce = 2;
/** An index is written after this many packs, so that an export that is cut off need not send them again. */
const packsAnIndex = 32;

/** Chunks are gathered in parts of so many bytes, which are used again: fresh memory for each costs more than copying them. */
const partBytes = 2 ** 20;

/** A chunk as it will be stored. */
export interface PackedChunk {
  readonly id: Buffer;
  readonly stored: Uint8Array;
  readonly rawBytes: number;
  readonly method: number;
}

/** A pack that is being filled. */
interface OpenPack {
  /** All full but the last. */
  readonly parts: Buffer[];
  readonly directory: Buffer[];
  bytes: number;
  crc: number;
}

/** Gathers chunks into packs and sends them; what has arrived is soon in an index at the store. */
export class PackWriter {
  readonly #repository: Repository;
  readonly #uploads = new Set<Promise<void>>();
  #pack: OpenPack = emptyPack();
  readonly #spare: Buffer[] = [];
  #unindexed: PackDirectory[] = [];
  /** Packs that this writer has sent. */
  readonly packs: PackDirectory[] = [];
  /** Bytes of packs and indexes that were sent. */
  sentBytes = 0;

  constructor(repository: Repository) {
    this.#repository = repository;
  }

  /** `stored` is copied before this waits for anything. */
  async add({ id, stored, rawBytes, method }: PackedChunk): Promise<void> {
    const pack = this.#pack;
    pack.directory.push(encodeEntry({ id, offset: pack.bytes, storedBytes: stored.length, rawBytes, method }));
    pack.crc = crc32(stored, pack.crc);
    append(stored, pack, () => this.#spare.pop() ?? pageMemory(partBytes));
    if (pack.bytes >= packBytes) await this.#close();
  }

  /** Sends what is left and writes the index: every chunk that was added can be found by others then. */
  async finish(): Promise<void> {
    await this.#close();
    await Promise.all(this.#uploads);
    await this.#saveIndex();
  }

  /** Waits for what is on its way, without caring how it ends. What has arrived is indexed, so that the next try need not send it again. */
  async abandon(): Promise<void> {
    await Promise.allSettled(this.#uploads);
    await this.#saveIndex().catch(() => {});
  }

  async #close(): Promise<void> {
    const { parts, directory: entries, bytes, crc } = this.#pack;
    if (entries.length === 0) return;
    this.#pack = emptyPack();
    const directory = Buffer.concat(entries);
    const trailer = packTrailer(entries.length, crc);
    const sealed = await this.#repository.sealing.seal("directory", directory);
    const name = nameOf(sealed, trailer);
    const content = [...parts.map((part, i) => part.subarray(0, bytes - i * partBytes)), sealed, trailer];
    const upload = this.#repository.destination.put(`${packsFolder}/${name}`, content, { exclusive: true }).then(() => {
      this.#spare.push(...parts);
      this.sentBytes += bytes + sealed.length + trailer.length;
      this.packs.push({ name, directory });
      this.#unindexed.push({ name, directory });
    });
    this.#uploads.add(upload);
    // a failed one stays in the set: whoever waits next meets it
    upload.then(() => this.#uploads.delete(upload)).catch(() => {});
    if (this.#uploads.size >= uploadsAtOnce) await Promise.race(this.#uploads);
    if (this.#unindexed.length >= packsAnIndex) await this.#saveIndex();
  }

  async #saveIndex(): Promise<void> {
    if (this.#unindexed.length === 0) return;
    const packs = this.#unindexed;
    this.#unindexed = [];
    await this.#repository.saveIndex(packs);
    this.sentBytes += packs.reduce((sum, { directory }) => sum + directory.length, 0);
  }
}

/** Copies a chunk behind what is there. */
function append(stored: Uint8Array, pack: OpenPack, memory: () => Buffer): void {
  for (let done = 0; done < stored.length; ) {
    const at = pack.bytes % partBytes;
    if (at === 0) pack.parts.push(memory());
    const piece = stored.subarray(done, done + partBytes - at);
    pack.parts.at(-1)?.set(piece, at);
    pack.bytes += piece.length;
    done += piece.length;
  }
}

function emptyPack(): OpenPack {
  return { parts: [], directory: [], bytes: 0, crc: 0 };
}
