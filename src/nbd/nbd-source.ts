import { type BlockSource, type ByteRange, clip, type Extent, joined } from "../converters/block-source.ts";
import type { NbdClient } from "./client.ts";
import { allocation } from "./protocol.ts";

/** A disk that a server has, as a block source: holes are those that it tells of. Closing it closes the connection. */
export function nbdSource(client: NbdClient, dataBytes: number = client.sizeBytes): BlockSource {
  async function* runs(range: ByteRange): AsyncGenerator<Extent> {
    const hasAllocation = client.contexts.has(allocation.context);
    if (!hasAllocation) return void (yield { ...range, kind: "data" });
    for await (const { offset, length, flags } of statusOf(client, allocation.context, range))
      yield { offset, length, kind: flags & allocation.zero ? "zero" : "data" };
  }
  return {
    sizeBytes: client.sizeBytes,
    dataBytes,
    async *extents(range = { offset: 0, length: client.sizeBytes }) {
      for await (const extent of joined(runs(range))) {
        const part = clip(extent, range);
        if (part) yield part;
      }
    },
    read: (offset, into) => client.read(offset, into),
    close: () => client.close(),
  };
}

/** What a context says 1 of, such as the dirty blocks of a bitmap, in order. */
export async function* setRanges(client: NbdClient, context: string): AsyncGenerator<ByteRange> {
  for await (const { offset, length, flags } of statusOf(client, context, { offset: 0, length: client.sizeBytes })) if (flags & 1) yield { offset, length };
}

/** All extents of a context in a range, in order. */
export async function* statusOf(client: NbdClient, context: string, { offset, length }: ByteRange): AsyncGenerator<ByteRange & { readonly flags: number }> {
  const end = offset + length;
  for (let at = offset; at < end; ) {
    for (const extent of await client.status(context, at, end - at)) {
      yield extent;
      at = extent.offset + extent.length;
    }
  }
}
