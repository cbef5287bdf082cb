import { TreeHash } from "../model/tree-hash.ts";
import { type BlockSource, type FileSource, isFile, isZero, type Piece, pieceBytes, piecesKept, piecesOf } from "./block-source.ts";
import type { DiskSink, ReadingSink } from "./disk-sink.ts";

export interface PourOptions {
  readonly signal?: AbortSignal;
  /** Called with the bytes of data that were read since the last call. */
  readonly onRead?: (bytes: number) => void;
  /** Compute the hash of the disk's content on the way, over pieces of so many bytes. */
  readonly hashPieceBytes?: number;
}

export interface Poured {
  /** Bytes of data that came from the source. */
  readonly readBytes: number;
  /** Empty when it was not asked for. */
  readonly contentHash: string;
}

/** Pours a disk into a sink: data in order, cut to the sink's blocks, zero blocks left out. */
export async function pour(source: BlockSource, sink: DiskSink | ReadingSink, options: PourOptions = {}): Promise<Poured> {
  if (isFile(source) && "writeFrom" in sink && options.hashPieceBytes === undefined) return pourUnread(source, sink, options);
  const hash = options.hashPieceBytes === undefined ? undefined : new TreeHash(options.hashPieceBytes);
  const blocks = new BlockAssembler(sink, source.sizeBytes);
  const behind: Promise<void>[] = [];
  let readBytes = 0;
  let end = 0;
  let last: Piece | undefined;
  for await (const piece of piecesOf(source, options.signal)) {
    options.signal?.throwIfAborted();
    const { offset, data, turn } = piece;
    if (last && (turn === undefined || turn !== last.turn)) {
      behind.push(sink.settled());
      behind.at(-1)?.catch(() => {});
      // this piece is one of those that are kept
      if (behind.length >= piecesKept - 1) await behind.shift();
    }
    last = piece;
    if (offset < end || offset + data.length > source.sizeBytes) throw new Error(`a source gave ${data.length} bytes at ${offset} after ${end}`);
    if (offset > end) hash?.updateZeros(offset - end);
    hash?.update(data);
    await blocks.add(offset, data);
    end = offset + data.length;
    readBytes += data.length;
    options.onRead?.(data.length);
  }
  hash?.updateZeros(source.sizeBytes - end);
  await blocks.flush();
  await sink.finish();
  return { readBytes, contentHash: hash?.digest() ?? "" };
}

/** The same for a sink that has a file read as it likes: it is told what, in whole blocks and on the grid of pieces. */
async function pourUnread(source: FileSource, sink: ReadingSink, { signal, onRead }: PourOptions): Promise<Poured> {
  const { blockBytes } = sink;
  const gridBytes = Math.max(pieceBytes, blockBytes);
  let readBytes = 0;
  let done = 0;
  for await (const extent of source.extents()) {
    if (extent.kind !== "data") continue;
    const end = extent.offset + extent.length;
    const last = Math.min(Math.ceil(end / blockBytes) * blockBytes, source.sizeBytes);
    let counted = extent.offset;
    // the block in which an extent begins may have been taken with the one before
    for (let offset = Math.max(done, Math.floor(extent.offset / blockBytes) * blockBytes); offset < last; offset = done) {
      signal?.throwIfAborted();
      done = Math.min(last, offset - (offset % gridBytes) + gridBytes);
      await sink.writeFrom(source, { offset, length: done - offset });
      const upTo = Math.min(done, end);
      onRead?.(upTo - counted);
      counted = upTo;
    }
    if (counted < end) onRead?.(end - counted);
    readBytes += extent.length;
  }
  await sink.finish();
  return { readBytes, contentHash: "" };
}

/** Gathers pieces that do not begin or end on a block of the sink; whole blocks pass through without a copy. */
class BlockAssembler {
  readonly #sink: DiskSink;
  readonly #sizeBytes: number;
  readonly #blockBytes: number;
  #open: Buffer;
  #openAt = -1;

  constructor(sink: DiskSink, sizeBytes: number) {
    this.#sink = sink;
    this.#sizeBytes = sizeBytes;
    this.#blockBytes = sink.blockBytes;
    this.#open = Buffer.alloc(0);
  }

  async add(offset: number, data: Buffer): Promise<void> {
    let at = 0;
    while (at < data.length) {
      const position = offset + at;
      const block = Math.floor(position / this.#blockBytes) * this.#blockBytes;
      if (this.#openAt >= 0 && block !== this.#openAt) await this.flush();
      const isLast = offset + data.length === this.#sizeBytes;
      if (position === block && this.#openAt < 0) {
        const whole = isLast ? data.length - at : Math.floor((data.length - at) / this.#blockBytes) * this.#blockBytes;
        if (whole > 0) {
          await this.#writeRuns(position, data.subarray(at, at + whole));
          at += whole;
          continue;
        }
      }
      if (this.#openAt < 0) {
        // a buffer of its own: the last one may still be on its way to the disk
        this.#open = Buffer.alloc(this.#blockBytes);
        this.#openAt = block;
      }
      const take = Math.min(data.length - at, block + this.#blockBytes - position);
      data.copy(this.#open, position - block, at, at + take);
      at += take;
    }
  }

  async flush(): Promise<void> {
    if (this.#openAt < 0) return;
    const length = Math.min(this.#blockBytes, this.#sizeBytes - this.#openAt);
    const at = this.#openAt;
    this.#openAt = -1;
    await this.#writeRuns(at, this.#open.subarray(0, length));
  }

  /** Writes the runs of blocks that are not zero. */
  async #writeRuns(offset: number, data: Buffer): Promise<void> {
    let start = -1;
    for (let at = 0; at < data.length; at += this.#blockBytes) {
      const isHole = isZero(data, at, Math.min(data.length, at + this.#blockBytes));
      if (isHole && start >= 0) {
        await this.#sink.write(offset + start, data.subarray(start, at));
        start = -1;
      } else if (!isHole && start < 0) start = at;
    }
    if (start >= 0) await this.#sink.write(offset + start, data.subarray(start));
  }
}
