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

/** What tells of most ids that a repository does not hold them. Other threads may look into it while it fills. */
export interface IdFilter {
  readonly slots: Uint32Array<SharedArrayBuffer>;
  readonly numberBits: number;
}

/** Whether the id at `at` may be among them; false is certain of those that were there before the call. It is also taken as text, by a thread. */
export function mayHold({ slots, numberBits }: IdFilter, ids: Uint8Array, at: number): boolean {
  const word = (from: number): number =>
    ((ids[from] as number) | ((ids[from + 1] as number) << 8) | ((ids[from + 2] as number) << 16) | ((ids[from + 3] as number) << 24)) >>> 0;
  const mask = slots.length - 1;
  const above = word(at + 4) >>> numberBits;
  for (let slot = word(at) & mask; ; slot = (slot + 1) & mask) {
    const value = slots[slot] as number;
    if (value === 0) return false;
    if (value >>> numberBits === above) return true;
  }
}

/** Slots are doubled once more than this share of them is taken. */
const mostTaken = 0.7;
/** So many entries in a row share one hint of the pack they are in. */
const hintEntries = 64;

/**
 * All chunks of a repository by id: a hash table of 4 bytes a slot over the directories as they were read, about 58 bytes a chunk in all. Every
 * entry of every directory has a number, in the order they were added. Ids are uniform, so that their first bytes are the hash; what a slot has
 * left beside the number holds further bits of the id, so that other chunks are seldom looked at.
 */
export class ChunkIndex {
  readonly #packs = new Map<string, PackInfo>();
  /** In the order they were added, and the number of the first entry of each. */
  readonly #inOrder: PackInfo[] = [];
  readonly #firsts: number[] = [];
  /** For every so many numbers, the place of the pack that has the first of them. */
  readonly #hints: number[] = [];
  /** Number + 1 of an entry, and above it bits of its id; 0 is free. */
  #slots: Uint32Array<SharedArrayBuffer>;
  #numberBits: number;
  #entries = 0;
  #chunks = 0;

  /** @param directories what will be added: room for it is made at once */
  constructor(directories: Iterable<PackDirectory> = []) {
    let entries = 0;
    for (const { directory } of directories) entries += directory.length / entryBytes;
    const slots = 2 ** Math.ceil(Math.log2(Math.max(2048, (entries + 1) / mostTaken)));
    this.#slots = sharedSlots(slots);
    this.#numberBits = numberBitsOf(slots);
  }

  get packs(): Iterable<PackInfo> {
    return this.#packs.values();
  }

  /** How many different chunks there are. */
  get chunks(): number {
    return this.#chunks;
  }

  /** One more than the highest number. */
  get numbers(): number {
    return this.#entries;
  }

  /** Of what is there now, and of what is added until there is no more room in it. */
  get filter(): IdFilter {
    return { slots: this.#slots, numberBits: this.#numberBits };
  }

  pack(name: string): PackInfo | undefined {
    return this.#packs.get(name);
  }

  add({ name, directory }: PackDirectory, usable: boolean = true): PackInfo {
    const known = this.#packs.get(name);
    if (known) return known;
    const pack: PackInfo = { name, directory, usable };
    this.#packs.set(name, pack);
    this.#inOrder.push(pack);
    this.#firsts.push(this.#entries);
    for (let at = 0; at < directory.length; at += entryBytes) this.#insert(pack, at);
    return pack;
  }

  /** The number of an id, from 0 to {@link numbers}; undefined for one that no pack holds. */
  numberOf(ids: Buffer, at: number = 0): number | undefined {
    const value = this.#slots[this.#slotOf(ids, at)] as number;
    return value === 0 ? undefined : this.#numberIn(value);
  }

  /** The pack that an id of that number is taken from. */
  packOf(number: number): PackInfo {
    return this.#inOrder[this.#placeOf(number)] as PackInfo;
  }

  /** @param ids a buffer that holds the id at `at` */
  find(ids: Buffer, at: number = 0): ChunkPlace | undefined {
    const number = this.numberOf(ids, at);
    if (number === undefined) return undefined;
    const place = this.#placeOf(number);
    const pack = this.#inOrder[place] as PackInfo;
    return { ...entryAt(pack.directory, (number - (this.#firsts[place] as number)) * entryBytes), pack };
  }

  /** Every place of a chunk that {@link find} does not name. A walk over all directories: for when that one is damaged. */
  *copiesOf(id: Buffer): Generator<ChunkPlace> {
    const first = this.find(id)?.pack;
    for (const pack of this.#inOrder) {
      if (pack === first) continue;
      for (let at = pack.directory.indexOf(id); at >= 0; at = pack.directory.indexOf(id, at + 1))
        if (at % entryBytes === 0) yield { ...entryAt(pack.directory, at), pack };
    }
  }

  #insert(pack: PackInfo, at: number): void {
    if (this.#entries + 1 > this.#slots.length * mostTaken) this.#grow();
    const number = this.#entries++;
    if (number % hintEntries === 0) this.#hints.push(this.#inOrder.length - 1);
    const slot = this.#slotOf(pack.directory, at);
    const there = this.#slots[slot] as number;
    if (there === 0) this.#chunks++;
    // the same chunk twice: the one that may be built on counts
    else if (this.packOf(this.#numberIn(there)).usable) return;
    this.#slots[slot] = this.#valueOf(number, pack.directory, at);
  }

  /** The slot that holds the id, or the free one where it belongs. */
  #slotOf(ids: Buffer, at: number): number {
    const mask = this.#slots.length - 1;
    const above = this.#bitsOf(ids, at);
    for (let slot = ids.readUInt32LE(at) & mask; ; slot = (slot + 1) & mask) {
      const value = this.#slots[slot] as number;
      if (value === 0) return slot;
      if (value >>> this.#numberBits !== above) continue;
      const number = this.#numberIn(value);
      const place = this.#placeOf(number);
      const other = (number - (this.#firsts[place] as number)) * entryBytes;
      if ((this.#inOrder[place] as PackInfo).directory.compare(ids, at, at + idBytes, other, other + idBytes) === 0) return slot;
    }
  }

  /** As many bits of an id as a slot has room for, none of them among those that choose the slot. */
  #bitsOf(ids: Buffer, at: number): number {
    return ids.readUInt32LE(at + 4) >>> this.#numberBits;
  }

  #valueOf(number: number, ids: Buffer, at: number): number {
    return ((this.#bitsOf(ids, at) << this.#numberBits) | (number + 1)) >>> 0;
  }

  #numberIn(value: number): number {
    return (value & (2 ** this.#numberBits - 1)) - 1;
  }

  /** Which of the packs holds the entry of a number. */
  #placeOf(number: number): number {
    let place = this.#hints[Math.floor(number / hintEntries)] as number;
    while ((this.#firsts[place + 1] ?? Number.POSITIVE_INFINITY) <= number) place++;
    return place;
  }

  #grow(): void {
    const [old, oldMask] = [this.#slots, 2 ** this.#numberBits - 1];
    this.#slots = sharedSlots(old.length * 2);
    this.#numberBits = numberBitsOf(this.#slots.length);
    const mask = this.#slots.length - 1;
    for (const value of old) {
      if (value === 0) continue;
      const number = (value & oldMask) - 1;
      const place = this.#placeOf(number);
      const { directory } = this.#inOrder[place] as PackInfo;
      const at = (number - (this.#firsts[place] as number)) * entryBytes;
      let slot = directory.readUInt32LE(at) & mask;
      while (this.#slots[slot] !== 0) slot = (slot + 1) & mask;
      this.#slots[slot] = this.#valueOf(number, directory, at);
    }
  }
}

function sharedSlots(count: number): Uint32Array<SharedArrayBuffer> {
  return new Uint32Array(new SharedArrayBuffer(count * 4));
}

/** There are fewer entries than slots, so that a number and one more fits. */
function numberBitsOf(slots: number): number {
  return Math.log2(slots);
}
