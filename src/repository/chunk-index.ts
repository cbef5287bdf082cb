import { type ChunkEntry, entryAt, entryBytes, entryWords, idBytes, idWords, type PackDirectory, wordsOf } from "./layout.ts";

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
/** 64 entries in a row share one hint of the pack they are in. */
const hintBits = 6;

/**
 * All chunks of a repository by id: a hash table of 4 bytes a slot over the directories as they were read, about 58 bytes a chunk in all. Every
 * entry of every directory has a number, in the order they were added. Ids are uniform, so that their first bytes are the hash; what a slot has
 * left beside the number holds further bits of the id, so that other chunks are seldom looked at.
 */
export class ChunkIndex {
  readonly #packs = new Map<string, PackInfo>();
  /** In the order they were added, and the number of the first entry of each. */
  readonly #inOrder: PackInfo[] = [];
  /** Their directories, as words. */
  readonly #words: Uint32Array[] = [];
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
    const words = wordsOf(directory);
    this.#inOrder.push(pack);
    this.#words.push(words);
    this.#firsts.push(this.#entries);
    for (let at = 0; at < words.length; at += entryWords) this.#insert(words, at);
    return pack;
  }

  /** The number of an id, from 0 to {@link numbers}; undefined for one that no pack holds. */
  numberOf(id: Buffer): number | undefined {
    const value = this.#slots[this.#slotOf(wordsOf(id), 0)] as number;
    return value === 0 ? undefined : this.#numberIn(value);
  }

  /**
   * {@link numberOf} for each id of a list, -1 where no pack holds it; what a list means by an id of zeros is not asked here. A call for each
   * of a disk's thousands takes twice as long in a program that has just begun.
   * @param ids a list of ids, or a directory with `eachBytes` of {@link entryBytes}
   */
  numbersOf(ids: Buffer, eachBytes: number = idBytes): Int32Array {
    const words = wordsOf(ids);
    const eachWords = eachBytes / 4;
    const numbers = new Int32Array(words.length / eachWords);
    for (let i = 0; i < numbers.length; i++) {
      const value = this.#slots[this.#slotOf(words, i * eachWords)] as number;
      numbers[i] = value === 0 ? -1 : this.#numberIn(value);
    }
    return numbers;
  }

  /** The pack that an id of that number is taken from. */
  packOf(number: number): PackInfo {
    return this.#inOrder[this.#placeOf(number)] as PackInfo;
  }

  find(id: Buffer): ChunkPlace | undefined {
    const number = this.numberOf(id);
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

  #insert(words: Uint32Array, at: number): void {
    if (this.#entries + 1 > this.#slots.length * mostTaken) this.#grow();
    const number = this.#entries++;
    if (number === this.#hints.length << hintBits) this.#hints.push(this.#inOrder.length - 1);
    const slot = this.#slotOf(words, at);
    const there = this.#slots[slot] as number;
    if (there === 0) this.#chunks++;
    // the same chunk twice: the one that may be built on counts
    else if (this.packOf(this.#numberIn(there)).usable) return;
    this.#slots[slot] = this.#valueOf(number, words, at);
  }

  /** The slot that holds the id, or the free one where it belongs. */
  #slotOf(ids: Uint32Array, at: number): number {
    const slots = this.#slots;
    const numberBits = this.#numberBits;
    const mask = slots.length - 1;
    const above = (ids[at + 1] as number) >>> numberBits;
    for (let slot = (ids[at] as number) & mask; ; slot = (slot + 1) & mask) {
      const value = slots[slot] as number;
      if (value === 0) return slot;
      if (value >>> numberBits !== above) continue;
      const number = this.#numberIn(value);
      const place = this.#placeOf(number);
      if (areSame(ids, at, this.#words[place] as Uint32Array, (number - (this.#firsts[place] as number)) * entryWords)) return slot;
    }
  }

  /** As many bits of an id as a slot has room for, none of them among those that choose the slot. */
  #valueOf(number: number, ids: Uint32Array, at: number): number {
    return ((((ids[at + 1] as number) >>> this.#numberBits) << this.#numberBits) | (number + 1)) >>> 0;
  }

  #numberIn(value: number): number {
    return (value & (this.#slots.length - 1)) - 1;
  }

  /** Which of the packs holds the entry of a number. */
  #placeOf(number: number): number {
    let place = this.#hints[number >>> hintBits] as number;
    while (place + 1 < this.#firsts.length && (this.#firsts[place + 1] as number) <= number) place++;
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
      const words = this.#words[place] as Uint32Array;
      const at = (number - (this.#firsts[place] as number)) * entryWords;
      let slot = (words[at] as number) & mask;
      while (this.#slots[slot] !== 0) slot = (slot + 1) & mask;
      this.#slots[slot] = this.#valueOf(number, words, at);
    }
  }
}

function areSame(a: Uint32Array, at: number, b: Uint32Array, bAt: number): boolean {
  for (let i = 0; i < idWords; i++) if (a[at + i] !== b[bAt + i]) return false;
  return true;
}

function sharedSlots(count: number): Uint32Array<SharedArrayBuffer> {
  return new Uint32Array(new SharedArrayBuffer(count * 4));
}

/** There are fewer entries than slots, so that a number and one more fits. */
function numberBitsOf(slots: number): number {
  return Math.log2(slots);
}
