import { type BlockSource, type ByteRange, clip, type Extent, joined } from "./block-source.ts";

/** A disk over its parent: where nothing was ever written on top, the parent shows through, and beyond the parent's end zeros. */
export function overlaySource(top: BlockSource, base: BlockSource): BlockSource {
  const whole: ByteRange = { offset: 0, length: top.sizeBytes };

  /** Extents with the source that holds each; undefined for zeros that neither has. */
  async function* layers(range: ByteRange): AsyncGenerator<Extent & { readonly from: BlockSource | undefined }> {
    for await (const extent of top.extents(range)) {
      if (extent.kind !== "absent") {
        yield { ...extent, from: top };
        continue;
      }
      const below = clip(extent, { offset: 0, length: base.sizeBytes });
      if (below) for await (const part of base.extents(below)) yield { ...part, from: base };
      const end = extent.offset + extent.length;
      const beyond = Math.max(extent.offset, base.sizeBytes);
      if (beyond < end) yield { offset: beyond, length: end - beyond, kind: "zero", from: undefined };
    }
  }

  return {
    sizeBytes: top.sizeBytes,
    dataBytes: Math.min(top.sizeBytes, top.dataBytes + base.dataBytes),
    async *extents(range = whole) {
      yield* joined(layers(range));
    },
    async read(offset, into) {
      for await (const { offset: at, length, kind, from } of layers({ offset, length: into.length })) {
        const part = into.subarray(at - offset, at - offset + length);
        if (kind === "data" && from) await from.read(at, part);
        else part.fill(0);
      }
    },
    async close() {
      await Promise.all([top.close(), base.close()]);
    },
  };
}
