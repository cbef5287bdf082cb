/**
 * Everything that holds a disk. The one idea under the converters: a conversion is the extents of a source poured into a
 * sink, so that holes cost nothing and memory is a few buffers, whatever the size of the disk.
 */
export interface BlockSource {
  readonly sizeBytes: number;
  /** Bytes that extents of kind `data` hold, as far as is known without reading: what progress is measured against. */
  readonly dataBytes: number;
  /** An open file that is the disk, each byte at its own offset: others may read it there, for as long as the source is open. */
  readonly descriptor?: number;
  /** The whole range without gaps, in order; found without reading data. The whole disk by default. */
  extents(range?: ByteRange): AsyncIterable<Extent>;
  /** Fills `into` with the content at `offset`, zeros where there is no data. The range lies inside the disk. */
  read(offset: number, into: Buffer): Promise<void>;
  /**
   * The data in disk order, each piece with its bytes; what is left out reads as zeros. For sources that are faster in one
   * pass, or can be read only once. A piece's buffer stays untouched until {@link piecesKept} more have been asked for.
   */
  pieces?(signal?: AbortSignal): AsyncIterable<Piece>;
  close(): Promise<void>;
}

/** A source that is a file, and nothing more than that. */
export interface FileSource extends BlockSource {
  readonly descriptor: number;
}

export function isFile(source: BlockSource): source is FileSource {
  return source.descriptor !== undefined;
}

export interface ByteRange {
  readonly offset: number;
  readonly length: number;
}

/** `zero` is known to read as zeros; `absent` was never written here, so that a backing image would show through. */
export interface Extent extends ByteRange {
  readonly kind: "data" | "zero" | "absent";
}

export interface Piece {
  readonly offset: number;
  readonly data: Buffer;
  /** Small pieces in a row that share a buffer have one number, and count as one for who keeps them; without it, a piece counts for itself. */
  readonly turn?: number;
}

/** Pieces keep to this grid, so that clusters and hash pieces are never cut. */
export const pieceBytes: number = 1 << 20;
const readAhead = 3;
/** How many pieces may be asked for before the buffer of the first is used again: what is written behind lives on them. */
export const piecesKept: number = 4;

/** The data of a source in disk order, read ahead by three buffers of 1 MiB; small pieces share one, so that many of them are on their way. */
export async function* piecesOf(source: BlockSource, signal?: AbortSignal): AsyncGenerator<Piece> {
  if (source.pieces) {
    yield* source.pieces(signal);
    return;
  }
  const ring: Buffer[] = [];
  const ringLength = readAhead + 1 + piecesKept;
  const reading: { piece: Piece & { readonly turn: number }; done: Promise<void> }[] = [];
  let turn = -1;
  let filled = pieceBytes;
  try {
    for await (const extent of source.extents()) {
      if (extent.kind !== "data") continue;
      const end = extent.offset + extent.length;
      for (let offset = extent.offset; offset < end; ) {
        signal?.throwIfAborted();
        const length = Math.min(end - offset, pieceBytes - (offset % pieceBytes));
        if (filled + length > pieceBytes) {
          turn++;
          filled = 0;
          while (reading[0] && turn - reading[0].piece.turn > readAhead) yield* first(reading);
        }
        const buffer = (ring[turn % ringLength] ??= Buffer.allocUnsafeSlow(Math.min(pieceBytes, source.sizeBytes)));
        const data = buffer.subarray(filled, filled + length);
        filled += length;
        const done = source.read(offset, data);
        done.catch(() => {});
        reading.push({ piece: { offset, data, turn }, done });
        offset += length;
      }
    }
    while (reading.length > 0) yield* first(reading);
  } finally {
    await Promise.allSettled(reading.map(({ done }) => done));
  }
}

async function* first(reading: { piece: Piece; done: Promise<void> }[]): AsyncGenerator<Piece> {
  const next = reading.shift();
  if (!next) return;
  await next.done;
  yield next.piece;
}

const zeros = Buffer.alloc(1 << 16);

/** True when the bytes from `from` to `to` are all zero. */
export function isZero(data: Uint8Array, from: number = 0, to: number = data.length): boolean {
  // most blocks of data give themselves away at once
  if (to > from && (data[from] !== 0 || data[to - 1] !== 0 || data[(from + to) >> 1] !== 0)) return false;
  for (let at = from; at < to; at += zeros.length) {
    const end = Math.min(to, at + zeros.length);
    if (zeros.compare(data, at, end, 0, end - at) !== 0) return false;
  }
  return true;
}

/** The part of an extent inside a range, or undefined. */
export function clip(extent: Extent, range: ByteRange | undefined): Extent | undefined {
  if (!range) return extent.length > 0 ? extent : undefined;
  const offset = Math.max(extent.offset, range.offset);
  const end = Math.min(extent.offset + extent.length, range.offset + range.length);
  return end > offset ? { offset, length: end - offset, kind: extent.kind } : undefined;
}

/** Joins neighbours of one kind, so that a map of a million clusters is a few lines. */
export async function* joined(extents: AsyncIterable<Extent>): AsyncGenerator<Extent> {
  let last: Extent | undefined;
  for await (const extent of extents) {
    if (last && last.kind === extent.kind && last.offset + last.length === extent.offset) {
      last = { offset: last.offset, length: last.length + extent.length, kind: last.kind };
    } else {
      if (last) yield last;
      last = extent;
    }
  }
  if (last) yield last;
}
