import { hash } from "node:crypto";
import { type IdFilter, mayHold } from "./chunk-index.ts";
import { hasChunkThreads, prepareOnThread } from "./chunk-thread.ts";
import { FrameMemory } from "./frame-memory.ts";
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
  /** Compressed; null where that is no shorter. Undefined where the repository may have the chunk, and it was not compressed. */
  readonly frame?: Buffer | null;
}

export interface Preparation {
  readonly chunkBytes: number;
  readonly compresses: boolean;
  /** What need not be compressed, as it may be there. */
  readonly known: IdFilter;
}

/**
 * Hashes the chunks of a run, and compresses those that are not known. Of much data a thread of ours does it as long as it has room, and this one
 * what is left; otherwise the threads of the pool compress, which need not begin. Beside threads of ours the pool would only take their processors.
 * @param data chunks, all whole but the last; it stays as it is for as long as they are asked for
 */
export function prepareChunks(data: Buffer, preparation: Preparation): Run {
  const { chunkBytes } = preparation;
  const job = prepareOnThread(data, preparation);
  const memory = job?.memory ?? new FrameMemory();
  const release = (): void => memory.release();
  const chunkOf = (i: number): Buffer => data.subarray(i * chunkBytes, (i + 1) * chunkBytes);
  if (job) return { prepared: async (i) => (await job.prepared())?.[i] ?? prepareHere(chunkOf(i), preparation, memory), release };
  const prepare = hasChunkThreads() ? prepareHere : prepareOnPool;
  const prepared = Array.from({ length: Math.ceil(data.length / chunkBytes) }, (_, i) => prepare(chunkOf(i), preparation, memory));
  // whoever asks for them meets what has failed
  for (const each of prepared) Promise.resolve(each).catch(() => {});
  return { prepared: async (i) => prepared[i] as Prepared | Promise<Prepared>, release };
}

function prepareHere(chunk: Buffer, { compresses, known }: Preparation, memory: FrameMemory): Prepared {
  const id = hash("sha256", chunk, "buffer");
  return compresses && !mayHold(known, id, 0) ? { id, frame: memory.compress(chunk) } : { id };
}

async function prepareOnPool(chunk: Buffer, { compresses, known }: Preparation, memory: FrameMemory): Promise<Prepared> {
  const id = await sha256(chunk);
  return compresses && !mayHold(known, id, 0) ? { id, frame: await memory.compressOnPool(chunk) } : { id };
}
