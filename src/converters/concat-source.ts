import { type BlockSource, type ByteRange, clip, type Extent, type Piece, piecesOf } from "./block-source.ts";

/** Sources laid end to end as one disk. */
export function concatSource(parts: readonly BlockSource[]): BlockSource {
  const starts: number[] = [];
  let sizeBytes = 0;
  for (const part of parts) {
    starts.push(sizeBytes);
    sizeBytes += part.sizeBytes;
  }
  return {
    sizeBytes,
    dataBytes: parts.reduce((sum, part) => sum + part.dataBytes, 0),
    async *extents(range: ByteRange = { offset: 0, length: sizeBytes }): AsyncGenerator<Extent> {
      for (const [i, part] of parts.entries()) {
        const start = starts[i] as number;
        const whole: Extent = { offset: start, length: part.sizeBytes, kind: "data" };
        const wanted = clip(whole, range);
        if (!wanted) continue;
        for await (const extent of part.extents({ offset: wanted.offset - start, length: wanted.length })) yield { ...extent, offset: extent.offset + start };
      }
    },
    async read(offset, into) {
      for (let done = 0; done < into.length; ) {
        const at = offset + done;
        let i = starts.findLastIndex((start) => start <= at);
        while ((parts[i] as BlockSource).sizeBytes === 0) i++;
        const within = at - (starts[i] as number);
        const take = Math.min(into.length - done, (parts[i] as BlockSource).sizeBytes - within);
        await (parts[i] as BlockSource).read(within, into.subarray(done, done + take));
        done += take;
      }
    },
    async *pieces(signal): AsyncGenerator<Piece> {
      for (const [i, part] of parts.entries()) {
        for await (const piece of piecesOf(part, signal)) yield { offset: piece.offset + (starts[i] as number), data: piece.data };
      }
    },
    async close() {
      await Promise.all(parts.map((part) => part.close()));
    },
  };
}

/** A disk or a part of one that reads as zeros. */
export function zeroSource(sizeBytes: number): BlockSource {
  return {
    sizeBytes,
    dataBytes: 0,
    async *extents(range) {
      const part = clip({ offset: 0, length: sizeBytes, kind: "zero" }, range);
      if (part) yield part;
    },
    async read(_offset, into) {
      into.fill(0);
    },
    async close() {},
  };
}

/** The part of a source that begins at `start`: a flat extent inside a larger file. */
export function partOf(source: BlockSource, start: number, sizeBytes: number): BlockSource {
  return {
    sizeBytes,
    dataBytes: Math.min(source.dataBytes, sizeBytes),
    async *extents(range: ByteRange = { offset: 0, length: sizeBytes }): AsyncGenerator<Extent> {
      for await (const extent of source.extents({ offset: start + range.offset, length: range.length })) yield { ...extent, offset: extent.offset - start };
    },
    read: (offset, into) => source.read(start + offset, into),
    close: () => source.close(),
  };
}
