import { hash } from "node:crypto";
import { type ByteRange, type FileSource, isZero } from "../converters/block-source.ts";
import { HypersdkError } from "../model/errors.ts";
import { type IdFilter, mayHold } from "./chunk-index.ts";
import { hasChunkThreads, type JobChunk, prepareOnThread } from "./chunk-thread.ts";
import { FrameMemory } from "./frame-memory.ts";
import { sha256 } from "./sha256.ts";

/** Chunks that are looked at. */
export interface Run {
  /** Null for a chunk of zeros. */
  prepared(i: number): Promise<Prepared | null>;
  /** The bytes that were looked at. */
  bytesOf(i: number): Promise<Buffer>;
  /** Resolves when nothing is read for it any more; it never rejects. */
  ended(): Promise<void>;
  /** Set where this thread has to read it: resolves when that is done. */
  readonly reading?: Promise<void>;
  /** Frames and bytes are no longer needed: their memory is used again. Without this the collector has it. */
  release(): void;
}

/** A chunk that was looked at. */
export interface Prepared {
  readonly id: Buffer;
  /** Compressed; null where it is stored as it is. Undefined where the repository may have the chunk, and it was not compressed. */
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
  if (!job) return prepareWithoutThreads(data, preparation);
  return {
    async prepared(i) {
      const chunks = await job.prepared();
      return chunks ? (chunks[i] as Prepared | null) : prepareHere(chunkOf(data, i, chunkBytes), preparation, job.memory);
    },
    bytesOf: async (i) => chunkOf(data, i, chunkBytes),
    ended: async () => void (await job.prepared()),
    release: () => job.memory.release(),
  };
}

/**
 * The same where nobody has read the chunks yet: a thread of ours reads what it prepares, so that no byte is handed over.
 * @param range begins on a chunk, and ends on one or at the end of the disk
 */
export function prepareUnread(source: FileSource, range: ByteRange, preparation: Preparation): Run {
  const { chunkBytes } = preparation;
  const job = prepareOnThread({ ...range, descriptor: source.descriptor }, preparation);
  if (!job) return prepareAfterReading(source, range, preparation);
  let here: Run | undefined;
  // decided once: two readings of a disk that changes are not the same. Where the thread is gone, or could not read, who reads here meets the error
  let answer: Promise<readonly (JobChunk | null)[] | Run> | undefined;
  const answered = (): Promise<readonly (JobChunk | null)[] | Run> =>
    (answer ??= job.prepared().then((chunks) => chunks ?? (here = prepareAfterReading(source, range, preparation))));
  return {
    async prepared(i) {
      const by = await answered();
      return "prepared" in by ? by.prepared(i) : (by[i] as JobChunk | null);
    },
    async bytesOf(i) {
      const by = await answered();
      if ("prepared" in by) return by.bytesOf(i);
      const { id, bytes } = by[i] as JobChunk;
      return bytes ?? readAgain(source, range.offset + i * chunkBytes, Math.min(chunkBytes, range.length - i * chunkBytes), id);
    },
    async ended() {
      await job.prepared();
      await here?.ended();
    },
    release() {
      job.memory.release();
      here?.release();
    },
  };
}

function prepareAfterReading(source: FileSource, { offset, length }: ByteRange, preparation: Preparation): Run {
  const memory = new FrameMemory();
  const data = memory.room(length);
  const run = source.read(offset, data).then(() => prepareWithoutThreads(data, preparation, memory));
  // whoever asks for a chunk meets what has failed
  const reading = run.then(
    () => {},
    () => {},
  );
  return {
    prepared: async (i) => (await run).prepared(i),
    bytesOf: async (i) => (await run).bytesOf(i),
    ended: () => reading,
    reading,
    release: () => memory.release(),
  };
}

/** Bytes that were not kept, as it seemed that they need not be stored. @throws SourceChanged where they are others now */
async function readAgain(source: FileSource, offset: number, length: number, id: Buffer): Promise<Buffer> {
  const data = Buffer.allocUnsafeSlow(length);
  await source.read(offset, data);
  if (!hash("sha256", data, "buffer").equals(id))
    throw new HypersdkError("SourceChanged", `the disk changed at ${offset} while it was read`, { hint: "export it while nothing writes to it" });
  return data;
}

function prepareWithoutThreads(data: Buffer, preparation: Preparation, memory: FrameMemory = new FrameMemory()): Run {
  const { chunkBytes } = preparation;
  const prepare = hasChunkThreads() ? prepareHere : prepareOnPool;
  const prepared = Array.from({ length: Math.ceil(data.length / chunkBytes) }, (_, i) => prepare(chunkOf(data, i, chunkBytes), preparation, memory));
  // whoever asks for them meets what has failed
  for (const each of prepared) Promise.resolve(each).catch(() => {});
  return {
    prepared: async (i) => prepared[i] as Prepared | null | Promise<Prepared | null>,
    bytesOf: async (i) => chunkOf(data, i, chunkBytes),
    ended: async () => void (await Promise.allSettled(prepared)),
    release: () => memory.release(),
  };
}

function chunkOf(data: Buffer, i: number, chunkBytes: number): Buffer {
  return data.subarray(i * chunkBytes, (i + 1) * chunkBytes);
}

function prepareHere(chunk: Buffer, { compresses, known }: Preparation, memory: FrameMemory): Prepared | null {
  if (isZero(chunk)) return null;
  const id = hash("sha256", chunk, "buffer");
  if (mayHold(known, id, 0)) return { id };
  return { id, frame: compresses ? memory.compress(chunk) : null };
}

async function prepareOnPool(chunk: Buffer, { compresses, known }: Preparation, memory: FrameMemory): Promise<Prepared | null> {
  if (isZero(chunk)) return null;
  const id = await sha256(chunk);
  if (mayHold(known, id, 0)) return { id };
  return { id, frame: compresses ? await memory.compressOnPool(chunk) : null };
}
