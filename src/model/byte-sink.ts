/**
 * A file that is written from front to back, but for a few gaps whose content is known later. It is what a local file, a
 * multi-part upload and a hash can all do, so that a format written over it goes to any store.
 *
 * `append` resolves when the next may come, not when the data is written: a buffer that was given to it stays untouched until a
 * later `settled` has resolved.
 */
export interface ByteSink {
  /** Leaves a gap at the present position, of at most {@link maxGapBytes}. @returns fills it, once, with exactly as many bytes */
  reserve(bytes: number): FillGap;
  append(data: Uint8Array): Promise<void>;
  /** Resolves when the buffers of everything appended before the call are free. */
  settled(): Promise<void>;
  /** Zero bytes, which a store may keep as a hole. */
  skip(bytes: number): Promise<void>;
  /** Bytes appended, skipped and reserved so far: the offset of what comes next. */
  readonly position: number;
}

export type FillGap = (data: Uint8Array) => Promise<void>;

/** A part of an upload is held back for each gap in it: a gap is no larger than a part. */
export const maxGapBytes: number = 8 * 2 ** 20;

/** All of a small file, or of one that is held in memory: several buffers follow each other. */
export type FileContent = string | Uint8Array | readonly Uint8Array[];
