import { compress, frameRoom } from "./chunk-codec.ts";
import { compressOnPool } from "./compress-pool.ts";
import { minChunkBytes } from "./layout.ts";

/** Room for the frames of a run of 1 MiB, however its chunks are cut. */
const framesBytes = (2 ** 20 / minChunkBytes) * frameRoom(minChunkBytes);

/** What an export has on its way; more would be kept for ever by a process that watches. */
const sparesAtMost = 16;

/** Memory for the frames of a run, taken with the first of them: fresh memory for each run costs as much as copying them. */
export class FrameMemory {
  static readonly #spare: Buffer[] = [];
  #memory: Buffer | undefined;
  #end = 0;

  /** Compresses a chunk to the end of what is there. @returns null where it does not get shorter */
  compress(chunk: Buffer): Buffer | null {
    const length = compress(chunk, this.#from(frameRoom(chunk.length)));
    return length < chunk.length ? this.#take(length) : null;
  }

  /** The same on a thread of the pool, where several may be at it at once: each has all the room that it may need. */
  async compressOnPool(chunk: Buffer): Promise<Buffer | null> {
    const room = this.room(frameRoom(chunk.length));
    const length = await compressOnPool(chunk, room);
    return length < chunk.length ? room.subarray(0, length) : null;
  }

  copy(frame: Uint8Array): Buffer {
    this.#from(frame.length).set(frame);
    return this.#take(frame.length);
  }

  room(bytes: number): Buffer {
    this.#from(bytes);
    return this.#take(bytes);
  }

  #from(bytes: number): Buffer {
    if (!this.#memory || this.#end + bytes > this.#memory.length) {
      this.#memory = (bytes <= framesBytes ? FrameMemory.#spare.pop() : undefined) ?? Buffer.allocUnsafeSlow(Math.max(bytes, framesBytes));
      this.#end = 0;
    }
    return this.#memory.subarray(this.#end);
  }

  #take(length: number): Buffer {
    return (this.#memory as Buffer).subarray(this.#end, (this.#end += length));
  }

  release(): void {
    if (this.#memory?.length === framesBytes && FrameMemory.#spare.length < sparesAtMost) FrameMemory.#spare.push(this.#memory);
    this.#memory = undefined;
  }
}
