import type { hash } from "node:crypto";
import { availableParallelism } from "node:os";
import type { Worker } from "node:worker_threads";

/** Bytes that one job holds at most, and jobs that are on their way: one at work and one behind it. */
const jobBytes = 2 ** 20;
const jobsAtOnce = 2;
const fewestPieceBytes = 64 * 1024;
const hashBytes = 32;
/** A thread takes ten milliseconds and as many MiB to begin, which what hashes less never gets back. */
const worthBytes = 64 * 2 ** 20;
const idleMs = 5000;

/** What a job's state is, in memory that both threads see. */
const states = { free: 0, asked: 1, done: 2, lost: 3 } as const;

/** Memory of one job. `control` is its state, its bytes, and how many make a piece. */
interface Room {
  readonly control: Int32Array<SharedArrayBuffer>;
  readonly bytes: Uint8Array<SharedArrayBuffer>;
  readonly hashes: Uint8Array<SharedArrayBuffer>;
}

/** Hashes that are made on the other thread. */
class Job {
  readonly #room: Room;
  readonly #length: number;
  readonly #hold: (isWaiting: boolean) => void;
  #hashes: Buffer | undefined;

  /** @param hold keeps the process for as long as somebody waits */
  constructor(room: Room, data: Buffer, pieceBytes: number, hold: (isWaiting: boolean) => void) {
    this.#room = room;
    this.#hold = hold;
    this.#length = Math.ceil(data.length / pieceBytes) * hashBytes;
    room.bytes.set(data);
    room.control.set([data.length, pieceBytes], 1);
    // last: the other thread may look at any time
    Atomics.store(room.control, 0, states.asked);
    Atomics.notify(room.control, 0);
  }

  /** Takes the hashes out, so that the room is free for another. @returns false while they are not there */
  harvest(): boolean {
    if (this.#hashes) return true;
    if (Atomics.load(this.#room.control, 0) !== states.done) return false;
    this.#hashes = Buffer.from(this.#room.hashes.slice(0, this.#length));
    Atomics.store(this.#room.control, 0, states.free);
    return true;
  }

  /** @returns one after the other; undefined where the thread is gone */
  async hashes(): Promise<Buffer | undefined> {
    if (this.harvest()) return this.#hashes;
    this.#hold(true);
    await Atomics.waitAsync(this.#room.control, 0, states.asked).value;
    this.#hold(false);
    this.harvest();
    return this.#hashes;
  }
}

/**
 * A thread that hashes beside this one, where hashing is what a whole read waits for. The pool of Node cannot do it: a job of its costs as
 * much as it takes a processor with SHA instructions to hash a chunk. So does a message; these two tell one another by memory they share.
 */
class HashThread {
  readonly #worker: Worker;
  readonly #rooms: readonly Room[] = Array.from({ length: jobsAtOnce }, () => ({
    control: new Int32Array(new SharedArrayBuffer(12)),
    bytes: new Uint8Array(new SharedArrayBuffer(jobBytes)),
    hashes: new Uint8Array(new SharedArrayBuffer((jobBytes / fewestPieceBytes) * hashBytes)),
  }));
  /** The latest of each room. Rooms are filled and emptied in turn. */
  readonly #jobs: (Job | undefined)[] = [];
  #turn = 0;
  #isUp = false;
  #isEnding = false;
  #waiting = 0;
  #idle: NodeJS.Timeout | undefined;

  constructor(onEnd: (hasFailed: boolean) => void) {
    const { Worker } = process.getBuiltinModule("node:worker_threads");
    this.#worker = new Worker(`(${onThread})(require("node:worker_threads").workerData, require("node:crypto").hash, ${JSON.stringify(states)})`, {
      eval: true,
      execArgv: [],
      workerData: this.#rooms,
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

  /** @returns undefined where it has enough to do: the caller hashes this himself */
  take(data: Buffer, pieceBytes: number): Job | undefined {
    const at = this.#turn % jobsAtOnce;
    if (!this.#isUp || data.length > jobBytes || pieceBytes < fewestPieceBytes || this.#jobs[at]?.harvest() === false) return undefined;
    this.#turn++;
    this.#idle ??= setTimeout(() => this.end(), idleMs).unref();
    this.#idle.refresh();
    return (this.#jobs[at] = new Job(this.#rooms[at] as Room, data, pieceBytes, (isWaiting) => this.#hold(isWaiting)));
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
function onThread(rooms: readonly Room[], sha256: typeof hash, { asked, done }: typeof states): never {
  for (let turn = 0; ; turn++) {
    const { control, bytes, hashes } = rooms[turn % rooms.length] as Room;
    for (let state = Atomics.load(control, 0); state !== asked; state = Atomics.load(control, 0)) Atomics.wait(control, 0, state);
    const [, length = 0, pieceBytes = 0] = control;
    for (let at = 0, to = 0; at < length; at += pieceBytes, to += 32)
      hashes.set(sha256("sha256", bytes.subarray(at, Math.min(length, at + pieceBytes)), "buffer"), to);
    Atomics.store(control, 0, done);
    Atomics.notify(control, 0);
  }
}

let thread: HashThread | undefined;
let seenBytes = 0;
/** Where the system gives no thread, everything is hashed on this one. */
let canBegin = availableParallelism() > 1;

/**
 * SHA-256 of each piece, one after the other, on another thread.
 * @returns undefined where it is not worth while, or that thread has enough to do
 */
export function hashedAside(data: Buffer, pieceBytes: number): { hashes(): Promise<Buffer | undefined> } | undefined {
  seenBytes += data.length;
  if (seenBytes < worthBytes || !canBegin) return undefined;
  try {
    thread ??= new HashThread((hasFailed) => {
      thread = undefined;
      if (hasFailed) canBegin = false;
    });
  } catch {
    canBegin = false;
  }
  return thread?.take(data, pieceBytes);
}
