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

/** Writes one zstd frame of level 1 to the beginning of `into`, which has room for any, and returns its length. */
export type Compress = (chunk: Uint8Array, into: Uint8Array) => number;

/**
 * `zstdCompressSync` makes a context and a buffer for each chunk, and what the collector does about them takes as much CPU as compressing: here
 * one context is kept, through what `node:zlib` itself has of a stream. Its first frames are compared with those of the public call, which is
 * taken from then on should they differ, or Node have no such thing any more. This is also taken as text, by a thread.
 */
export function compressor({ createZstdCompress, zstdCompressSync }: Pick<typeof zlib, "createZstdCompress" | "zstdCompressSync">): Compress {
  interface Inside {
    readonly _handle?: { writeSync?(flush: number, from: Uint8Array, at: number, length: number, into: Uint8Array, intoAt: number, room: number): void };
    /** What is left of the room, and of what came in. */
    readonly _writeState?: Uint32Array;
  }
  // ZSTD_c_compressionLevel, ZSTD_e_end
  const [options, end] = [{ params: { 100: 1 } }, 2];
  let stream: (Inside & { readonly destroyed: boolean }) | undefined = createZstdCompress(options) as object as Inside & { readonly destroyed: boolean };
  let unseen = 2;
  return (chunk, into) => {
    if (stream?._handle?.writeSync && stream._writeState) {
      stream._handle.writeSync(end, chunk, 0, chunk.length, into, 0, into.length);
      const [room = 0, rest] = stream._writeState;
      const length = into.length - room;
      const isWhole = rest === 0 && room > 0 && !stream.destroyed;
      if (isWhole && (unseen === 0 || zstdCompressSync(chunk, { ...options, chunkSize: into.length }).equals(into.subarray(0, length)))) {
        unseen = Math.max(0, unseen - 1);
        return length;
      }
      stream = undefined;
    }
    const frame = zstdCompressSync(chunk, options);
    into.set(frame);
    return frame.length;
  };
}

let onThis: Compress | undefined;

/** {@link Compress}, on this thread. */
export const compress: Compress = (chunk, into) => (onThis ??= compressor(zlib))(chunk, into);

/** One zstd frame; null where it is no shorter than the chunk. */
export function compressChunk(chunk: Buffer): Buffer | null {
  const room = Buffer.allocUnsafeSlow(frameRoom(chunk.length));
  const length = compress(chunk, room);
  return length < chunk.length ? room.subarray(0, length) : null;
}

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
