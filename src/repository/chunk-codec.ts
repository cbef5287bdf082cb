import type { Transform, TransformOptions } from "node:stream";
import { promisify } from "node:util";
import * as zlib from "node:zlib";
import { maxChunkBytes } from "./layout.ts";

/** As many as the pool of threads has by default: more would wait there. */
const lanesAtOnce = 4;
/** Output comes as parts of buffers of `chunkSize`. There is room for all of a chunk, or a lane would wait for its reader before it is done. */
const roomForChunk: zlib.ZstdOptions & Pick<TransformOptions, "readableHighWaterMark"> = { chunkSize: 512 * 1024, readableHighWaterMark: 2 * maxChunkBytes };
const decompressAlone = promisify(zlib.zstdDecompress);

/**
 * Contexts of zstd that are kept from chunk to chunk, each for one chunk at a time on a thread of the pool. The calls of `node:zlib` for one
 * buffer make a context each time, and what the collector does about their memory takes more CPU than compressing 128 KiB.
 */
class Lanes {
  readonly #make: () => Transform;
  readonly #idle: Transform[] = [];
  readonly #waiting: ((lane: Transform) => void)[] = [];
  #lanes = 0;

  constructor(make: () => Transform) {
    this.#make = make;
  }

  /** Passes one buffer through. @throws when it cannot be, or what comes out is longer than `mostBytes` */
  async pass(data: Buffer, mostBytes: number): Promise<Buffer> {
    const lane = this.#idle.pop() ?? (this.#lanes < lanesAtOnce ? this.#add() : await new Promise<Transform>((resolve) => this.#waiting.push(resolve)));
    try {
      const out = await passThrough(lane, data, mostBytes);
      this.#free(lane);
      return out;
    } catch (error) {
      // nobody knows what it has in it
      lane.destroy();
      this.#lanes--;
      if (this.#waiting.length > 0) this.#free(this.#add());
      throw error;
    }
  }

  #add(): Transform {
    this.#lanes++;
    return this.#make();
  }

  #free(lane: Transform): void {
    const next = this.#waiting.shift();
    if (next) next(lane);
    else this.#idle.push(lane);
  }
}

function passThrough(lane: Transform, data: Buffer, mostBytes: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const look = (): void => {
      if (lane.readableLength > mostBytes) end(new Error(`more than ${mostBytes} bytes come of it`));
    };
    const end = (error?: Error | null): void => {
      lane.off("error", end).off("readable", look);
      const out = error ? undefined : ((lane.read() ?? Buffer.alloc(0)) as Buffer);
      if (out && out.length <= mostBytes) resolve(out);
      else {
        lane.on("error", () => {});
        reject(error ?? new Error(`more than ${mostBytes} bytes come of it`));
      }
    };
    lane.on("error", end).on("readable", look);
    lane.write(data, end);
  });
}

const decompressing = new Lanes(() => zlib.createZstdDecompress(roomForChunk));

/** Room that a frame of so many bytes needs at most: what cannot be compressed grows by a 256th and its head. */
export function frameRoom(chunkBytes: number): number {
  return chunkBytes + Math.ceil(chunkBytes / 256) + 64;
}

const levelOne: zlib.ZstdOptions = { params: { [zlib.constants.ZSTD_c_compressionLevel]: 1 } };

/** One zstd frame, made at once on this thread; null where it is no shorter than the chunk. */
export function compressChunk(chunk: Uint8Array): Buffer | null {
  const frame = zlib.zstdCompressSync(chunk, levelOne);
  return frame.length < chunk.length ? frame : null;
}

/** Chunks that are given to the pool at once: several for each of its threads, as to wake one that has nothing to do takes 0.1 ms of this one. */
const compressingAtOnce = 16;
/** What is used here of the inside of `node:zlib` was seen in Node 22 to 26. */
const newestNodeSeen = 26;

/** What a stream of `node:zlib` has inside. */
interface Inside {
  readonly _handle?: {
    write?(flush: number, from: Uint8Array, at: number, length: number, into: Uint8Array, intoAt: number, room: number): void;
    /** Called when the other thread is done. */
    cb?: () => void;
    availInBefore?: number;
  };
  /** What is left of the room, and of what came in. */
  readonly _writeState?: Uint32Array;
}

/**
 * A context of zstd that is kept, and put to work on a thread of the pool through what `node:zlib` itself calls. Writing to the stream and reading
 * from it takes this thread up to half as long as compressing 128 KiB takes the other; with a context for each chunk, as the calls for one
 * buffer make it, what the collector does about their memory takes as much as compressing.
 */
class CompressContext {
  readonly #stream: zlib.ZstdCompress;
  readonly #handle: Required<NonNullable<Inside["_handle"]>>;
  /** Held for as long as the other thread is at it: it has no more than addresses. */
  #job: { readonly chunk: Uint8Array; readonly into: Uint8Array; end(length: number | undefined): void } | undefined;

  /** @throws where a stream is made in another way */
  constructor(create: typeof zlib.createZstdCompress) {
    this.#stream = create(levelOne);
    const { _handle: handle, _writeState: state } = this.#stream as Inside;
    if (!handle?.write || !state) throw new Error("a stream has no such thing inside");
    this.#handle = handle as Required<typeof handle>;
    // what a stream would take for its reader: nothing, as the frame is where it is wanted
    Object.defineProperty(handle, "availOutBefore", { get: () => state[0], set: () => {} });
    handle.cb = () => {
      const [room = 0, rest] = state;
      this.#end(rest === 0 && room > 0 && !this.#stream.destroyed ? room : undefined);
    };
    this.#stream.on("error", () => this.#end(undefined));
  }

  /** Writes one frame to the beginning of `into`. @returns its length; undefined where that failed, and this is of no use any more */
  write(chunk: Uint8Array, into: Uint8Array): Promise<number | undefined> {
    return new Promise((end) => {
      this.#job = { chunk, into, end };
      this.#handle.availInBefore = chunk.length;
      this.#handle.write(zlib.constants.ZSTD_e_end, chunk, 0, chunk.length, into, 0, into.length);
    });
  }

  #end(room: number | undefined): void {
    const job = this.#job;
    this.#job = undefined;
    job?.end(room === undefined ? undefined : job.into.length - room);
  }
}

/** Writes one zstd frame of level 1 to the beginning of `into`, which has room for any, and returns its length. */
export type Compress = (chunk: Uint8Array, into: Uint8Array) => Promise<number>;

/**
 * Compresses on the threads of the pool. The first frames are compared with those of the public call, which is taken from then on should they
 * differ, or Node have no such thing any more.
 */
export function compressor({ createZstdCompress, zstdCompressSync }: Pick<typeof zlib, "createZstdCompress" | "zstdCompressSync"> = zlib): Compress {
  const idle: CompressContext[] = [];
  const waiting: (() => void)[] = [];
  let contexts = 0;
  let isUsable = Number(process.versions.node.split(".")[0]) <= newestNodeSeen;
  let unseen = 2;

  async function onPool(chunk: Uint8Array, into: Uint8Array): Promise<number | undefined> {
    while (isUsable && idle.length === 0 && contexts >= compressingAtOnce) await new Promise<void>((resolve) => waiting.push(resolve));
    if (!isUsable) return undefined;
    try {
      const context = idle.pop() ?? makeContext();
      const length = await context.write(chunk, into);
      // nobody knows what is left in it
      if (length === undefined) isUsable = false;
      else idle.push(context);
      return length;
    } catch {
      isUsable = false;
      return undefined;
    } finally {
      if (isUsable) waiting.shift()?.();
      else for (const resolve of waiting.splice(0)) resolve();
    }
  }
  function makeContext(): CompressContext {
    contexts++;
    return new CompressContext(createZstdCompress);
  }

  return async (chunk, into) => {
    const length = isUsable ? await onPool(chunk, into) : undefined;
    if (length !== undefined) {
      if (unseen === 0 || zstdCompressSync(chunk, levelOne).equals(into.subarray(0, length))) {
        unseen = Math.max(0, unseen - 1);
        return length;
      }
      isUsable = false;
    }
    const frame = zstdCompressSync(chunk, levelOne);
    into.set(frame);
    return frame.length;
  };
}

/** {@link Compress}, for all exports of this process. */
export const compress: Compress = compressor();

/** What zlib takes at least; its default of 16 KiB makes many trips to the pool of one chunk. */
const minChunkSize = 64;

/**
 * What a frame holds, where `isRight` says so of it; undefined where nothing does. A frame that ends early leaves something in its lane that
 * the next one meets: whatever is not right is unpacked alone once more.
 * @param rawBytes how long it must be; no more is unpacked
 */
export async function decompressChunk(frame: Buffer, rawBytes: number, isRight: (raw: Buffer) => Promise<boolean>): Promise<Buffer | undefined> {
  const raw = await decompressing.pass(frame, rawBytes).catch(() => undefined);
  if (raw?.length === rawBytes && (await isRight(raw))) return raw;
  const alone = await decompressAlone(frame, { maxOutputLength: rawBytes, chunkSize: Math.max(minChunkSize, rawBytes) }).catch(() => undefined);
  return alone?.length === rawBytes && (await isRight(alone)) ? alone : undefined;
}
