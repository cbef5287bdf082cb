import type { ByteFile } from "./byte-file.ts";

const pageBytes = 65_536;
const maxPages = 32;

/**
 * Metadata of a file, read by pages of 64 KiB of which at most 32 are kept: 2 MiB however large the tables of a disk are.
 */
export class PagedTable {
  readonly #file: ByteFile;
  readonly #pages = new Map<number, Promise<Buffer>>();

  constructor(file: ByteFile) {
    this.#file = file;
  }

  /** A view of `length` bytes at `offset` that stays inside one page, or a copy where it does not. */
  async bytes(offset: number, length: number): Promise<Buffer> {
    const page = Math.floor(offset / pageBytes);
    const from = offset - page * pageBytes;
    if (from + length <= pageBytes) return (await this.#page(page)).subarray(from, from + length);
    const copy = Buffer.allocUnsafe(length);
    await this.#file.read(offset, copy);
    return copy;
  }

  #page(index: number): Promise<Buffer> {
    const known = this.#pages.get(index);
    if (known) {
      // the map's order is the order of use
      this.#pages.delete(index);
      this.#pages.set(index, known);
      return known;
    }
    const start = index * pageBytes;
    const page = Buffer.alloc(pageBytes);
    const length = Math.max(0, Math.min(pageBytes, this.#file.sizeBytes - start));
    const loading = this.#file.read(start, page.subarray(0, length)).then(() => page);
    loading.catch(() => this.#pages.delete(index));
    this.#pages.set(index, loading);
    for (const oldest of this.#pages.keys()) {
      if (this.#pages.size <= maxPages) break;
      this.#pages.delete(oldest);
    }
    return loading;
  }
}
