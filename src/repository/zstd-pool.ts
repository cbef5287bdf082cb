import { promisify } from "node:util";
import * as zlib from "node:zlib";
import type { Compress } from "./chunk-codec.ts";
import { maxChunkBytes } from "./layout.ts";

/** As {@link Compress}, on a thread of the pool. */
export type CompressOnPool = (...args: Parameters<Compress>) => Promise<number>;

/** Fills `into` with what a frame holds, on a thread of the pool. @returns whether it holds exactly so much */
export type DecompressOnPool = (frame: Uint8Array, into: Uint8Array) => Promise<boolean>;

/** As many as the pool has threads by default: more would wait there, and keep those who read and write waiting. */
const contextsAtMost = 4;
const levelOne: zlib.ZstdOptions = { params: { [zlib.constants.ZSTD_c_compressionLevel]: 1 } };
/** No chunk needs more; a frame may ask for 128 MiB otherwise. */
const smallWindow: zlib.ZstdOptions = { params: { [zlib.constants.ZSTD_d_windowLogMax]: Math.log2(maxChunkBytes) } };
/** What zlib takes at least; its default of 16 KiB makes many trips to the pool of one chunk. */
const minChunkSize = 64;
/** What is used here of the inside of `node:zlib` was seen in Node 22 to 26. */
const newestNodeSeen = 26;

type ZstdStream = zlib.ZstdCompress | zlib.ZstdDecompress;

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

type Handle = Required<NonNullable<Inside["_handle"]>>;

/**
 * A context of zstd that is kept, and put to work on a thread of the pool through what `node:zlib` itself calls. Writing to the stream and reading
 * from it takes this thread up to half as long as compressing 128 KiB takes the other; with a context for each chunk, as the calls for one
 * buffer make it, what the collector does about their memory takes as much as compressing.
 */
class Context {
  readonly #stream: ZstdStream;
  readonly #write: Handle["write"];
  readonly #handle: Handle;
  /** Held for as long as the other thread is at it: it has no more than addresses. */
  #job: { readonly from: Uint8Array; readonly into: Uint8Array; end(length: number | undefined): void } | undefined;

  /** @throws where a stream is made in another way */
  constructor(stream: ZstdStream) {
    const { _handle, _writeState: state } = stream as Inside;
    if (!_handle?.write || !state) throw new Error("a stream has no such thing inside");
    const handle = _handle as Handle;
    this.#stream = stream;
    this.#handle = handle;
    this.#write = handle.write.bind(handle);
    // what a stream would take for its reader: nothing, as it is where it is wanted
    Object.defineProperty(handle, "availOutBefore", { get: () => state[0], set: () => {} });
    const done = (): void => {
      const [room = 0, rest] = state;
      this.#end(rest === 0 && !stream.destroyed ? room : undefined);
    };
    handle.cb = done;
    // which a stream calls for more room, where all that was given is taken
    handle.write = done;
    stream.on("error", () => this.#end(undefined));
  }

  /**
   * Takes all of `from` in, and writes what comes of it to the beginning of `into`.
   * @returns how much that is; undefined where that failed: nobody knows what is left in it, and it is of no use any more
   */
  write(from: Uint8Array, into: Uint8Array): Promise<number | undefined> {
    return new Promise((end) => {
      this.#job = { from, into, end };
      this.#handle.availInBefore = from.length;
      this.#write(zlib.constants.ZSTD_e_end, from, 0, from.length, into, 0, into.length);
    });
  }

  destroy(): void {
    this.#stream.destroy();
  }

  #end(room: number | undefined): void {
    const job = this.#job;
    this.#job = undefined;
    job?.end(room === undefined ? undefined : job.into.length - room);
  }
}

/** Contexts of one kind, each at one job at a time. */
class Contexts {
  readonly #make: () => ZstdStream;
  readonly #isWhole: (length: number, room: number) => boolean;
  readonly #idle: Context[] = [];
  readonly #waiting: (() => void)[] = [];
  #count = 0;
  /** False where this Node has no such thing. */
  #isUsable = Number(process.versions.node.split(".")[0]) <= newestNodeSeen;

  /** @param isWhole whether so much is all that can come, in so much room: otherwise something may be left in the context */
  constructor(make: () => ZstdStream, isWhole: (length: number, room: number) => boolean) {
    this.#make = make;
    this.#isWhole = isWhole;
  }

  /** @returns how much was written to the beginning of `into`; undefined where that is not all, or there are no contexts */
  async write(from: Uint8Array, into: Uint8Array): Promise<number | undefined> {
    while (this.#isUsable && this.#idle.length === 0 && this.#count >= contextsAtMost) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    if (!this.#isUsable) return undefined;
    let context = this.#idle.pop();
    try {
      if (!context) {
        this.#count++;
        context = new Context(this.#make());
      }
      const length = await context.write(from, into);
      const isWhole = length !== undefined && this.#isWhole(length, into.length);
      if (isWhole) this.#idle.push(context);
      else {
        this.#count--;
        context.destroy();
      }
      this.#waiting.shift()?.();
      return isWhole ? length : undefined;
    } catch {
      this.giveUp();
      return undefined;
    }
  }

  /** Uses none from now on. */
  giveUp(): void {
    this.#isUsable = false;
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

/**
 * Compresses on the threads of the pool. The first frames are compared with those of the public call, which is taken from then on should they
 * differ, or Node have no such thing any more.
 */
export function poolCompressor({ createZstdCompress, zstdCompressSync }: Pick<typeof zlib, "createZstdCompress" | "zstdCompressSync"> = zlib): CompressOnPool {
  const contexts = new Contexts(
    () => createZstdCompress(levelOne),
    (length, room) => length < room,
  );
  let unseen = 2;
  return async (chunk, into) => {
    const length = await contexts.write(chunk, into);
    // zstd cuts blocks otherwise where it has to give out what it has in parts
    if (length !== undefined && (unseen === 0 || zstdCompressSync(chunk, { ...levelOne, chunkSize: into.length }).equals(into.subarray(0, length)))) {
      unseen = Math.max(0, unseen - 1);
      return length;
    }
    contexts.giveUp();
    const frame = zstdCompressSync(chunk, levelOne);
    into.set(frame);
    return frame.length;
  };
}

/** For all exports of this process. */
export const compressOnPool: CompressOnPool = poolCompressor();

/** Decompresses on the threads of the pool. Where Node has no such thing any more, nothing is. */
export function poolDecompressor({ createZstdDecompress }: Pick<typeof zlib, "createZstdDecompress"> = zlib): DecompressOnPool {
  const contexts = new Contexts(
    // nothing comes out of the stream itself
    () => createZstdDecompress({ ...smallWindow, chunkSize: minChunkSize }),
    (length, room) => length === room,
  );
  return async (frame, into) => (await contexts.write(frame, into)) !== undefined;
}

const decompressOnPool = poolDecompressor();
const decompressAlone = promisify(zlib.zstdDecompress);

/**
 * Fills `into` with what a frame holds, where `isRight` says so of it. A frame that ends early may leave something in its context that the next
 * one meets: whatever is not right is unpacked alone once more.
 * @returns whether it is right; otherwise `into` holds nothing of use
 */
export async function decompressChunk(frame: Uint8Array, into: Buffer, isRight: (raw: Buffer) => Promise<boolean>): Promise<boolean> {
  if ((await decompressOnPool(frame, into)) && (await isRight(into))) return true;
  const options = { ...smallWindow, maxOutputLength: into.length, chunkSize: Math.max(minChunkSize, into.length) };
  const alone = await decompressAlone(frame, options).catch(() => undefined);
  if (alone?.length !== into.length || !(await isRight(alone))) return false;
  alone.copy(into);
  return true;
}
