import * as zlib from "node:zlib";
import type { Compress } from "./chunk-codec.ts";

/** As {@link Compress}, on a thread of the pool. */
export type CompressOnPool = (...args: Parameters<Compress>) => Promise<number>;

/** As many as the pool has threads by default: more would wait there, and keep those who read and write waiting. */
const contextsAtMost = 4;
const levelOne: zlib.ZstdOptions = { params: { [zlib.constants.ZSTD_c_compressionLevel]: 1 } };
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

/**
 * Compresses on the threads of the pool. The first frames are compared with those of the public call, which is taken from then on should they
 * differ, or Node have no such thing any more.
 */
export function poolCompressor({ createZstdCompress, zstdCompressSync }: Pick<typeof zlib, "createZstdCompress" | "zstdCompressSync"> = zlib): CompressOnPool {
  const idle: CompressContext[] = [];
  const waiting: (() => void)[] = [];
  let contexts = 0;
  let isUsable = Number(process.versions.node.split(".")[0]) <= newestNodeSeen;
  let unseen = 2;

  async function onPool(chunk: Uint8Array, into: Uint8Array): Promise<number | undefined> {
    while (isUsable && idle.length === 0 && contexts >= contextsAtMost) await new Promise<void>((resolve) => waiting.push(resolve));
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
    // zstd cuts blocks otherwise where it has to give out what it has in parts
    const length = isUsable ? await onPool(chunk, into) : undefined;
    if (length !== undefined) {
      if (unseen === 0 || zstdCompressSync(chunk, { ...levelOne, chunkSize: into.length }).equals(into.subarray(0, length))) {
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

/** For all exports of this process. */
export const compressOnPool: CompressOnPool = poolCompressor();
