import { type ByteFile, readBytes } from "../byte-file.ts";

/**
 * Small reads out of large ones: grains lie one behind the other, so that one read of 1 MiB serves a dozen of them. Views
 * stay valid: each window is a buffer of its own.
 */
export class ReadWindow {
  readonly #file: ByteFile;
  readonly #bytes: number;
  #window: Buffer = Buffer.alloc(0);
  #start = 0;

  constructor(file: ByteFile, bytes: number = 1 << 20) {
    this.#file = file;
    this.#bytes = bytes;
  }

  async view(offset: number, length: number): Promise<Buffer> {
    if (offset < this.#start || offset + length > this.#start + this.#window.length) {
      const wanted = Math.max(length, Math.min(this.#bytes, this.#file.sizeBytes - offset));
      this.#window = await readBytes(this.#file, offset, wanted);
      this.#start = offset;
    }
    return this.#window.subarray(offset - this.#start, offset - this.#start + length);
  }
}
