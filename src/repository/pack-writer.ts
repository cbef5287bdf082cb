import { crc32 } from "node:zlib";
import type { ChunkIndex, PackInfo } from "./chunk-index.ts";
import { encodeEntry, nameOf, type PackDirectory, packBytes, packsFolder, packTrailer } from "./layout.ts";
import type { Repository } from "./repository.ts";

/** Packs on their way to the store at once: each is held in memory until it is there. */
const uploadsAtOnce = 2;
/** An index is written after this many packs, so that an export that is cut off need not send them again. */
const packsAnIndex = 32;

/** A chunk as it will be stored. */
export interface PackedChunk {
  readonly id: Buffer;
  readonly stored: Buffer;
  readonly rawBytes: number;
  readonly method: number;
}

/** Gathers chunks into packs and sends them: a pack that has arrived is in the index of this process, and soon in one at the store. */
export class PackWriter {
  readonly #repository: Repository;
  readonly #index: ChunkIndex;
  readonly #uploads = new Set<Promise<void>>();
  #chunks: PackedChunk[] = [];
  #bytes = 0;
  #unindexed: PackDirectory[] = [];
  /** Packs that this writer has sent. */
  readonly packs: PackInfo[] = [];
  /** Bytes of packs and indexes that were sent. */
  sentBytes = 0;

  constructor(repository: Repository, index: ChunkIndex) {
    this.#repository = repository;
    this.#index = index;
  }

  async add(chunk: PackedChunk): Promise<void> {
    this.#chunks.push(chunk);
    this.#bytes += chunk.stored.length;
    if (this.#bytes >= packBytes) await this.#close();
  }

  /** Sends what is left and writes the index: every chunk that was added can be found by others then. */
  async finish(): Promise<void> {
    await this.#close();
    await Promise.all(this.#uploads);
    await this.#saveIndex();
  }

  /** Waits for what is on its way, without caring how it ends. */
  async abandon(): Promise<void> {
    await Promise.allSettled(this.#uploads);
  }

  async #close(): Promise<void> {
    if (this.#chunks.length === 0) return;
    const chunks = this.#chunks;
    [this.#chunks, this.#bytes] = [[], 0];
    let offset = 0;
    const directory = Buffer.concat(
      chunks.map(({ id, stored, rawBytes, method }) => {
        const entry = encodeEntry({ id, offset, storedBytes: stored.length, rawBytes, method });
        offset += stored.length;
        return entry;
      }),
    );
    const crc = chunks.reduce((sum, { stored }) => crc32(stored, sum), 0);
    const trailer = packTrailer(chunks.length, crc);
    const sealed = await this.#repository.sealing.seal("directory", directory);
    const name = nameOf(sealed, trailer);
    const content = [...chunks.map(({ stored }) => stored), sealed, trailer];
    const upload = this.#repository.destination.put(`${packsFolder}/${name}`, content, { exclusive: true }).then(() => {
      this.sentBytes += offset + sealed.length + trailer.length;
      this.packs.push(this.#index.add({ name, directory }));
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
