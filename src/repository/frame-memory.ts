import { compress, frameRoom } from "./chunk-codec.ts";
import { minChunkBytes } from "./layout.ts";
import { compressOnPool } from "./zstd-pool.ts";

/** Room for the frames of a run of 1 MiB, however its chunks are cut. */
const blockBytes = (2 ** 20 / minChunkBytes) * frameRoom(minChunkBytes);

/** What an export has on its way; more would be kept for ever by a process that watches. */
const sparesAtMost = 16;

/** Memory for what a run needs: its frames, and its bytes where it was read for them. Fresh memory for each run costs as much as copying them. */
export class FrameMemory {
  static readonly #spare: Buffer[] = [];
  readonly #blocks: Buffer[] = [];
  /** Of the last block. */
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

  copy(bytes: Uint8Array): Buffer {
    this.#from(bytes.length).set(bytes);
    return this.#take(bytes.length);
  }

  room(bytes: number): Buffer {
    this.#from(bytes);
    return this.#take(bytes);
  }

  #from(bytes: number): Buffer {
    const last = this.#blocks.at(-1);
    if (last && this.#end + bytes <= last.length) return last.subarray(this.#end);
    const block = (bytes <= blockBytes ? FrameMemory.#spare.pop() : undefined) ?? Buffer.allocUnsafeSlow(Math.max(bytes, blockBytes));
    this.#blocks.push(block);
    this.#end = 0;
    return block;
  }

  #take(length: number): Buffer {
    return (this.#blocks.at(-1) as Buffer).subarray(this.#end, (this.#end += length));
  }

  release(): void {
    for (const block of this.#blocks.splice(0)) if (block.length === blockBytes && FrameMemory.#spare.length < sparesAtMost) FrameMemory.#spare.push(block);
    this.#end = 0;
  }
}
