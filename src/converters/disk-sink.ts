import type { ByteRange, FileSource } from "./block-source.ts";

/** Receives a disk in one format. Offsets ascend; what is never written reads as zeros. */
export interface DiskSink {
  /** The allocation unit: a block of zeros that is aligned to it need not be written. */
  readonly blockBytes: number;
  /**
   * `offset` is a multiple of `blockBytes`; so is the length, but at the end of the disk. `data` stays untouched until a later
   * `settled` has resolved.
   */
  write(offset: number, data: Buffer): Promise<void>;
  /** Resolves when the buffers of everything written before the call are free. */
  settled(): Promise<void>;
  /** Writes what is known last. The bytes are not safe before the file under it is finished. */
  finish(): Promise<void>;
}

/** One that has a file read as it likes, such as on other threads. */
export interface ReadingSink extends DiskSink {
  /** As `write`, of a range that nobody has read yet; zeros may be in it. The source stays open until the sink has ended. */
  writeFrom(source: FileSource, range: ByteRange): Promise<void>;
}

/**
 * Holes shorter than this are written as zeros where a format has no unit of its own: each costs a write of its own, and files
 * full of programs have them every few KiB.
 */
export const holeBytes: number = 64 * 1024;
