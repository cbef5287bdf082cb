/** What a file system that is written past its cache asks of offsets and lengths at most; pages of memory are no smaller. */
const pageBytes = 4096;

const onPages = new WeakSet<ArrayBufferLike>();

/**
 * Memory that a file can be written from past the page cache: it begins on a page, as that of resizable buffers does, while that of others
 * begins behind a word of the allocator's. It is not resized.
 */
export function pageMemory(bytes: number): Buffer {
  const memory = new ArrayBuffer(bytes, { maxByteLength: bytes });
  onPages.add(memory);
  return Buffer.from(memory, 0, bytes);
}

/** How much of the beginning of some buffers, one behind the other, is whole pages of {@link pageMemory}. */
export function wholePagesOf(content: readonly Uint8Array[]): Uint8Array[] {
  const pages: Uint8Array[] = [];
  for (const data of content) {
    const bytes = onPages.has(data.buffer) && data.byteOffset % pageBytes === 0 ? data.length - (data.length % pageBytes) : 0;
    if (bytes > 0) pages.push(data.subarray(0, bytes));
    if (bytes < data.length) break;
  }
  return pages;
}
