/**
 * A file that is written from front to back, but for a head whose content is known last. It is what a local file, a
 * multi-part upload and a hash can all do, so that a format written over it goes to any store.
 *
 * `append` resolves when the next may come, not when the data is written: a buffer that was given to it stays untouched until a
 * later `settled` has resolved.
 */
export interface ByteSink {
  /** Leaves room for `head`; before anything is appended. */
  reserveHead(bytes: number): void;
  append(data: Uint8Array): Promise<void>;
  /** Resolves when the buffers of everything appended before the call are free. */
  settled(): Promise<void>;
  /** Zero bytes, which a store may keep as a hole. */
  skip(bytes: number): Promise<void>;
  /** The reserved bytes; exactly as many as were reserved. */
  head(data: Uint8Array): Promise<void>;
  /** Bytes appended, skipped and reserved so far: the offset of what comes next. */
  readonly position: number;
}
