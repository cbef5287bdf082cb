import { type ChunkEntry, entryAt, entryBytes, idBytes, type PackDirectory } from "./layout.ts";

/** Where a chunk is: in which pack, and what the pack's directory says of it. */
export interface ChunkPlace extends ChunkEntry {
  readonly pack: PackInfo;
}

/** A pack that some index names. */
export interface PackInfo {
  readonly name: string;
  readonly directory: Buffer;
  /** False once it is condemned or gone: nothing new may be built on its chunks. */
  usable: boolean;
}

/**
 * All chunks of a repository by id: a hash table of 4 bytes a slot over the directories as they were read, about 60 bytes a chunk
 * in all. Ids are uniform, so that their first bytes are the hash.
 */
export class ChunkIndex {
  readonly #packs = new Map<string, PackInfo>();
  /** By number: the pack and the place in its directory. */
  #packOf: PackInfo[] = [];
  #entryOf: Uint32Array = new Uint32Array(1024);
  /** Number + 1 of the entry; 0 is free. */
  #slots: Uint32Array = new Uint32Array(2048);
  #count = 0;

  get packs(): Iterable<PackInfo> {
    return this.#packs.values();
  }

  get chunks(): number {
    return this.#count;
  }

  pack(name: string): PackInfo | undefined {
    return this.#packs.get(name);
  }

  add({ name, directory }: PackDirectory, usable: boolean = true): PackInfo {
    const known = this.#packs.get(name);
    if (known) return known;
    const pack: PackInfo = { name, directory, usable };
    this.#packs.set(name, pack);
    for (let at = 0; at < directory.length; at += entryBytes) this.#insert(pack, at);
    return pack;
  }

  /** The number of an id, from 0 to {@link chunks}; undefined for one that no pack holds. */
  numberOf(ids: Buffer, at: number = 0): number | undefined {
    const number = this.#slots[this.#slotOf(ids, at)] as number;
    return number === 0 ? undefined : number - 1;
  }

  /** The pack that an id of that number is taken from. */
  packOf(number: number): PackInfo {
    return this.#packOf[number] as PackInfo;
  }

  /** @param ids a buffer that holds the id at `at` */
  find(ids: Buffer, at: number = 0): ChunkPlace | undefined {
    const slot = this.#slotOf(ids, at);
    const number = this.#slots[slot] as number;
    if (number === 0) return undefined;
    const pack = this.#packOf[number - 1] as PackInfo;
    return { ...entryAt(pack.directory, this.#entryOf[number - 1] as number), pack };
  }

  #insert(pack: PackInfo, at: number): void {
    if ((this.#count + 1) * 2 > this.#slots.length) this.#grow();
    const slot = this.#slotOf(pack.directory, at);
    const number = this.#slots[slot] as number;
    if (number !== 0) {
      // the same chunk twice: the one that may be built on counts
      if ((this.#packOf[number - 1] as PackInfo).usable) return;
      this.#packOf[number - 1] = pack;
      this.#entryOf[number - 1] = at;
      return;
    }
    this.#packOf.push(pack);
    this.#entryOf[this.#count] = at;
    this.#slots[slot] = ++this.#count;
  }

  /** The slot that holds the id, or the free one where it belongs. */
  #slotOf(ids: Buffer, at: number): number {
    const mask = this.#slots.length - 1;
    for (let slot = ids.readUInt32LE(at) & mask; ; slot = (slot + 1) & mask) {
      const number = this.#slots[slot] as number;
      if (number === 0) return slot;
      const { directory } = this.#packOf[number - 1] as PackInfo;
      const other = this.#entryOf[number - 1] as number;
      if (directory.compare(ids, at, at + idBytes, other, other + idBytes) === 0) return slot;
    }
  }

  #grow(): void {
    const slots = new Uint32Array(this.#slots.length * 2);
    const entries = new Uint32Array(slots.length / 2);
    entries.set(this.#entryOf.subarray(0, this.#count));
    this.#entryOf = entries;
    this.#slots = slots;
    const mask = slots.length - 1;
    for (let i = 0; i < this.#count; i++) {
      let slot = (this.#packOf[i] as PackInfo).directory.readUInt32LE(this.#entryOf[i] as number) & mask;
      while (slots[slot] !== 0) slot = (slot + 1) & mask;
      slots[slot] = i + 1;
    }
  }
}
