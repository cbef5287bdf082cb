import type { hash } from "node:crypto";
import type { readSync } from "node:fs";
import { availableParallelism } from "node:os";
import type { MessagePort, receiveMessageOnPort, Worker } from "node:worker_threads";
import type * as zlib from "node:zlib";
import { compressor, frameRoom } from "./chunk-codec.ts";
import { type IdFilter, mayHold } from "./chunk-index.ts";
import type { Preparation, Prepared } from "./chunk-preparation.ts";
import { FrameMemory } from "./frame-memory.ts";
import { idBytes } from "./layout.ts";

/** Bytes that one job holds at most, and jobs of a thread that are on their way: one at work and one behind it. */
const jobBytes = 2 ** 20;
const jobsAtOnce = 2;
const fewestChunkBytes = 64 * 1024;
const chunksAtMost = jobBytes / fewestChunkBytes;
const framesBytes = frameRoom(jobBytes);
/** A thread takes some 75 ms of a processor to begin, as much as 20 MiB do, and for less than so much the pool is as fast. */
const worthBytes = 256 * 2 ** 20;
const mostThreads = 3;
const idleMs = 5000;

/** What a job's state is, in memory that both threads see: lost where the thread is gone, unread where it could not read. */
const states = { free: 0, asked: 1, done: 2, lost: 3, unread: 4 } as const;

/** What the other thread says of a chunk instead of how long its frame is: it may be known, is stored as it is, or is zeros. */
const noFrame = { known: 0, asItIs: -1, zeros: -2 } as const;

/** Bytes of an open file that the other thread reads; `offset` is a multiple of a chunk. */
export interface Unread {
  readonly descriptor: number;
  readonly offset: number;
  readonly length: number;
}

/** A chunk that was prepared there; with the bytes that were read there, where it is stored as it is. */
export interface JobChunk extends Prepared {
  readonly bytes?: Buffer;
}

/** Memory of one job. */
interface Room {
  /**
   * Its state, its bytes, the bytes of a chunk, whether to compress, whether a new filter waits at the port; then the file to read and how many
   * chunks of it are before these, or -1 where the bytes are there.
   */
  readonly control: Int32Array<SharedArrayBuffer>;
  readonly bytes: Uint8Array<SharedArrayBuffer>;
  readonly ids: Uint8Array<SharedArrayBuffer>;
  /** How long each frame is, or why there is none. */
  readonly lengths: Int32Array<SharedArrayBuffer>;
  readonly frames: Uint8Array<SharedArrayBuffer>;
}

/** Chunks that are prepared on the other thread. */
class Job {
  readonly #room: Room;
  readonly #length: number;
  readonly #chunkBytes: number;
  readonly #isUnread: boolean;
  readonly #hold: (isWaiting: boolean) => void;
  readonly memory: FrameMemory = new FrameMemory();
  #prepared: (JobChunk | null)[] | undefined;
  #isOut = false;

  /** @param hold keeps the process for as long as somebody waits */
  constructor(room: Room, data: Buffer | Unread, { chunkBytes, compresses }: Preparation, hasFilter: boolean, hold: (isWaiting: boolean) => void) {
    this.#room = room;
    this.#hold = hold;
    this.#length = data.length;
    this.#chunkBytes = chunkBytes;
    this.#isUnread = !Buffer.isBuffer(data);
    const { descriptor, offset } = Buffer.isBuffer(data) ? { descriptor: -1, offset: 0 } : data;
    if (Buffer.isBuffer(data)) room.bytes.set(data);
    room.control.set([data.length, chunkBytes, Number(compresses), Number(hasFilter), descriptor, offset / chunkBytes], 1);
    // last: the other thread may look at any time
    Atomics.store(room.control, 0, states.asked);
    Atomics.notify(room.control, 0);
  }

  /** Takes everything out, so that the room is free for another. @returns false while it is not there */
  harvest(): boolean {
    if (this.#isOut) return true;
    const { control } = this.#room;
    const state = Atomics.load(control, 0);
    if (state !== states.done && state !== states.unread) return false;
    if (state === states.done) this.#prepared = this.#takeOut();
    this.#isOut = true;
    Atomics.store(control, 0, states.free);
    return true;
  }

  #takeOut(): (JobChunk | null)[] {
    const { bytes, ids, lengths, frames } = this.#room;
    const chunks = Math.ceil(this.#length / this.#chunkBytes);
    const allIds = Buffer.from(ids.slice(0, chunks * idBytes));
    let at = 0;
    return Array.from(lengths.subarray(0, chunks), (length, i) => {
      if (length === noFrame.zeros) return null;
      const id = allIds.subarray(i * idBytes, (i + 1) * idBytes);
      if (length === noFrame.known) return { id };
      if (length > 0) return { id, frame: this.memory.copy(frames.subarray(at, (at += length))) };
      // nobody else has the bytes
      const from = i * this.#chunkBytes;
      return { id, frame: null, ...(this.#isUnread ? { bytes: this.memory.copy(bytes.subarray(from, Math.min(this.#length, from + this.#chunkBytes))) } : {}) };
    });
  }

  /** @returns chunk by chunk, null for one of zeros; undefined where the thread is gone, or could not read */
  async prepared(): Promise<readonly (JobChunk | null)[] | undefined> {
    const { control } = this.#room;
    // whoever waits may be woken by word of the job before in the same room
    while (!this.harvest() && Atomics.load(control, 0) !== states.lost) {
      this.#hold(true);
      await Atomics.waitAsync(control, 0, states.asked).value;
      this.#hold(false);
    }
    return this.#prepared;
  }
}

/**
 * A thread that hashes and compresses beside this one. Node's pool could, but handing it a job takes 0.1 ms and more, which is as long as a
 * processor with SHA instructions hashes a chunk, and so does a message: these two tell one another by memory that they share, eight
 * chunks at a time.
 */
class ChunkThread {
  readonly #worker: Worker;
  readonly #port: MessagePort;
  readonly #rooms: readonly Room[] = Array.from({ length: jobsAtOnce }, () => ({
    control: new Int32Array(new SharedArrayBuffer(28)),
    bytes: new Uint8Array(new SharedArrayBuffer(jobBytes)),
    ids: new Uint8Array(new SharedArrayBuffer(chunksAtMost * idBytes)),
    lengths: new Int32Array(new SharedArrayBuffer(chunksAtMost * 4)),
    frames: new Uint8Array(new SharedArrayBuffer(framesBytes)),
  }));
  /** The latest of each room. Rooms are filled and emptied in turn. */
  readonly #jobs: (Job | undefined)[] = [];
  #known: IdFilter | undefined;
  #turn = 0;
  #isUp = false;
  #isEnding = false;
  #waiting = 0;

  constructor(onEnd: (hasFailed: boolean) => void) {
    const { MessageChannel, Worker } = process.getBuiltinModule("node:worker_threads");
    const { port1, port2 } = new MessageChannel();
    this.#port = port1;
    port1.unref();
    const named = `require("node:crypto").hash, require("node:fs").readSync, require("node:zlib"), require("node:worker_threads").receiveMessageOnPort`;
    const words = JSON.stringify({ ...states, ...noFrame });
    this.#worker = new Worker(`(${onThread})(require("node:worker_threads").workerData, ${named}, ${mayHold}, ${compressor}, ${words})`, {
      eval: true,
      execArgv: [],
      // where memory is limited, the room that V8 sets aside for code by default would not be had, which ends the process
      resourceLimits: { codeRangeSizeMb: 16, maxOldGenerationSizeMb: 64, maxYoungGenerationSizeMb: 16 },
      workerData: { rooms: this.#rooms, port: port2 },
      transferList: [port2],
    });
    this.#worker.unref();
    this.#worker.on("online", () => (this.#isUp = true));
    const lose = (hasFailed: boolean): void => {
      onEnd(hasFailed);
      for (const { control } of this.#rooms) {
        Atomics.compareExchange(control, 0, states.asked, states.lost);
        Atomics.notify(control, 0);
      }
    };
    this.#worker.on("error", () => lose(true));
    this.#worker.on("exit", () => lose(!this.#isEnding));
  }

  /** @returns undefined where it has enough to do */
  take(data: Buffer | Unread, preparation: Preparation): Job | undefined {
    const at = this.#turn % jobsAtOnce;
    if (!this.#isUp || this.#jobs[at]?.harvest() === false) return undefined;
    this.#turn++;
    const isOther = preparation.known !== this.#known;
    if (isOther) this.#port.postMessage((this.#known = preparation.known));
    return (this.#jobs[at] = new Job(this.#rooms[at] as Room, data, preparation, isOther, (isWaiting) => this.#hold(isWaiting)));
  }

  #hold(isWaiting: boolean): void {
    this.#waiting += isWaiting ? 1 : -1;
    if (this.#waiting === 0) this.#worker.unref();
    else this.#worker.ref();
  }

  end(): void {
    this.#isUp = false;
    this.#isEnding = true;
    void this.#worker.terminate();
  }
}

/** What runs there. It is taken as text, and knows nothing of this file. */
function onThread(
  { rooms, port }: { readonly rooms: readonly Room[]; readonly port: MessagePort },
  sha256: typeof hash,
  read: typeof readSync,
  { createZstdCompress, zstdCompressSync }: typeof zlib,
  receive: typeof receiveMessageOnPort,
  isKnown: typeof mayHold,
  makeCompressor: typeof compressor,
  words: typeof states & typeof noFrame,
): never {
  const compress = makeCompressor({ createZstdCompress, zstdCompressSync });
  const zeros = new Uint8Array(65536);
  let known: IdFilter | undefined;

  function fill(bytes: Uint8Array, descriptor: number, offset: number): boolean {
    try {
      for (let at = 0; at < bytes.length; ) {
        const count = read(descriptor, bytes, at, bytes.length - at, offset + at);
        if (count === 0) return false;
        at += count;
      }
      return true;
    } catch {
      return false;
    }
  }
  function isZero(chunk: Uint8Array): boolean {
    for (let at = 0; at < chunk.length; at += zeros.length) {
      const part = chunk.subarray(at, at + zeros.length);
      if (Buffer.compare(part, part.length < zeros.length ? zeros.subarray(0, part.length) : zeros) !== 0) return false;
    }
    return true;
  }
  /** @returns false where something could not be read */
  function prepare({ control, bytes, ids, lengths, frames }: Room): boolean {
    const [, length = 0, chunkBytes = 0, compresses, , descriptor = -1, before = 0] = control;
    for (let at = 0, i = 0, end = 0; at < length; at += chunkBytes, i++) {
      const chunk = bytes.subarray(at, Math.min(length, at + chunkBytes));
      // one by one: each is hashed while the processor's cache has it
      if (descriptor >= 0 && !fill(chunk, descriptor, before * chunkBytes + at)) return false;
      lengths[i] = words.zeros;
      if (isZero(chunk)) continue;
      ids.set(sha256("sha256", chunk, "buffer"), i * 32);
      lengths[i] = words.known;
      if (known && isKnown(known, ids, i * 32)) continue;
      const frameBytes = compresses ? compress(chunk, frames.subarray(end)) : chunk.length;
      lengths[i] = frameBytes < chunk.length ? frameBytes : words.asItIs;
      // the next is written over one that is longer
      if (frameBytes < chunk.length) end += frameBytes;
    }
    return true;
  }

  for (let turn = 0; ; turn++) {
    const room = rooms[turn % rooms.length] as Room;
    const { control } = room;
    for (let state = Atomics.load(control, 0); state !== words.asked; state = Atomics.load(control, 0)) Atomics.wait(control, 0, state);
    if (control[4]) known = receive(port)?.message as IdFilter;
    Atomics.store(control, 0, prepare(room) ? words.done : words.unread);
    Atomics.notify(control, 0);
  }
}

const threads: ChunkThread[] = [];
/** Where the system gives none, everything is done on this one. */
let most = Math.min(mostThreads, availableParallelism() - 1);
let users = 0;
let idle: NodeJS.Timeout | undefined;

/** Has as many threads as so many bytes are worth. @returns says that they are no longer used: after a while they end */
export function useChunkThreads(bytes: number): () => void {
  clearTimeout(idle);
  users++;
  try {
    while (threads.length < Math.min(most, Math.floor(bytes / worthBytes))) begin();
  } catch {
    most = 0;
  }
  return () => {
    if (--users > 0) return;
    idle = setTimeout(() => {
      for (const thread of threads.splice(0)) thread.end();
    }, idleMs).unref();
  };
}

/** Begins them for bytes that come soon, so that they are there by then. They end after a while where none come. */
export function expectBytes(bytes: number): void {
  useChunkThreads(bytes)();
}

function begin(): void {
  const thread: ChunkThread = new ChunkThread((hasFailed) => {
    if (threads.includes(thread)) threads.splice(threads.indexOf(thread), 1);
    if (hasFailed) most = 0;
  });
  threads.push(thread);
}

/** Whether there is one, be it one that has enough to do. */
export function hasChunkThreads(): boolean {
  return threads.length > 0;
}

/** @returns undefined where there is none with room */
export function prepareOnThread(data: Buffer | Unread, preparation: Preparation): Job | undefined {
  if (data.length > jobBytes || preparation.chunkBytes < fewestChunkBytes) return undefined;
  for (const thread of threads) {
    const job = thread.take(data, preparation);
    if (job) return job;
  }
  return undefined;
}
