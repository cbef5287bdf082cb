import type { Transform, TransformOptions } from "node:stream";
import { promisify } from "node:util";
import { constants, createZstdCompress, createZstdDecompress, type ZstdOptions, zstdCompress, zstdDecompress } from "node:zlib";
import { maxChunkBytes } from "./layout.ts";

/** As many as the pool of threads has by default: more would wait there. */
const lanesAtOnce = 4;
const params = { [constants.ZSTD_c_compressionLevel]: 1 };
/** Output comes as parts of buffers of `chunkSize`. There is room for all of a chunk, or a lane would wait for its reader before it is done. */
const room: ZstdOptions & Pick<TransformOptions, "readableHighWaterMark"> = { chunkSize: 512 * 1024, readableHighWaterMark: 2 * maxChunkBytes };
const compressAlone = promisify(zstdCompress);
const decompressAlone = promisify(zstdDecompress);

/** What zstd writes when it is asked to end a frame that it has just ended. */
const emptyFrame = Buffer.from("28b52ffd2000010000", "hex");

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

// every write ends a frame
const compressing = new Lanes(() => createZstdCompress({ ...room, flush: constants.ZSTD_e_end, params }));
const decompressing = new Lanes(() => createZstdDecompress(room));

/** One zstd frame. */
export async function compressChunk(data: Buffer): Promise<Buffer> {
  const frame = await compressing.pass(data, 2 * maxChunkBytes);
  // the frame ended where a buffer did, and zlib asked once more; what ends so by chance costs only this
  return frame.subarray(-emptyFrame.length).equals(emptyFrame) ? compressAlone(data, { params, pledgedSrcSize: data.length }) : frame;
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
