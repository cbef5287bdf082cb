/** Receives a disk in one format. Offsets ascend; what is never written reads as zeros. */
export interface DiskSink {
  /** The allocation unit: a block of zeros that is aligned to it need not be written. */
  readonly blockBytes: number;
  /** `offset` is a multiple of `blockBytes`; so is the length, but at the end of the disk. */
  write(offset: number, data: Buffer): Promise<void>;
  /** Writes what is known last. The bytes are not safe before the file under it is finished. */
  finish(): Promise<void>;
}
