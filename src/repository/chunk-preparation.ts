import { compress, frameRoom } from "./chunk-codec.ts";
import type { ChunkIndex } from "./chunk-index.ts";
import { sha256 } from "./sha256.ts";

/** Chunks that are looked at. */
export interface Run {
  prepared(i: number): Promise<Prepared>;
  /** The frames are no longer needed: their memory is used again. Without this the collector has it. */
  release(): void;
}

/** A chunk that was looked at. */
export interface Prepared {
  readonly id: Buffer;
  /** Compressed; null where that is no shorter. Undefined where the repository has the chunk, and it was not compressed. */
  readonly frame?: Buffer | null;
}

interface Preparation {
  readonly chunkBytes: number;
  readonly compresses: boolean;
  /** What need not be compressed, as it is there. */
  readonly index: ChunkIndex;
}

/** What a run has as a rule. */
const runBytes = 2 ** 20;

/** Memory for the frames of a run that is used again, by its length: fresh memory for each takes as long as copying them. */
const spare = new Map<number, Buffer[]>();

/**
 * Hashes the chunks of a run, and compresses those that are not known on the threads of the pool.
 * @param data chunks, all whole but the last; it stays as it is for as long as they are asked for
 */
export function prepareChunks(data: Buffer, { chunkBytes, compresses, index }: Preparation): Run {
  const count = Math.ceil(data.length / chunkBytes);
  const roomBytes = frameRoom(chunkBytes);
  const memoryBytes = Math.max(count, runBytes / chunkBytes) * roomBytes;
  let memory: Buffer | undefined;
  const prepare = async (i: number): Promise<Prepared> => {
    const chunk = data.subarray(i * chunkBytes, (i + 1) * chunkBytes);
    const id = await sha256(chunk);
    const number = compresses ? index.numberOf(id) : undefined;
    if (!compresses || (number !== undefined && index.packOf(number).usable)) return { id };
    memory ??= spareOf(memoryBytes).pop() ?? Buffer.allocUnsafeSlow(memoryBytes);
    const room = memory.subarray(i * roomBytes, (i + 1) * roomBytes);
    const length = await compress(chunk, room);
    return { id, frame: length < chunk.length ? room.subarray(0, length) : null };
  };
  const prepared = Array.from({ length: count }, (_, i) => prepare(i));
  // whoever asks for them meets what has failed
  for (const each of prepared) each.catch(() => {});
  return {
    prepared: (i) => prepared[i] as Promise<Prepared>,
    release() {
      if (memory) spareOf(memory.length).push(memory);
      memory = undefined;
    },
  };
}

function spareOf(bytes: number): Buffer[] {
  let list = spare.get(bytes);
  if (!list) spare.set(bytes, (list = []));
  return list;
}
