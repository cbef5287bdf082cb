import { inflate } from "node:zlib";
import { type Block, blockMapSource } from "../block-map.ts";
import { type BlockSource, type ByteRange, clip, type Extent, joined, type Piece } from "../block-source.ts";
import type { ByteFile } from "../byte-file.ts";
import { damaged } from "../checked.ts";
import { inOrder } from "../in-order.ts";
import { PagedTable } from "../paged-table.ts";
import { ReadWindow } from "./read-window.ts";
import type { SparseHeader } from "./sparse-header.ts";

/** A grain marker: 8 bytes of sector number, 4 bytes of compressed size, then the data. */
const markerBytes = 12;
const inflateWidth = 48;

/** One sparse extent file: grain directory, grain tables, grains, deflated or not. */
export function sparseSource(file: ByteFile, header: SparseHeader): BlockSource {
  const table = new PagedTable(file);
  const { grainBytes, entriesPerTable, capacityBytes } = header;
  const grains = Math.ceil(capacityBytes / grainBytes);

  /** Offsets of grains in the file: 0 is absent, -1 reads as zeros. */
  async function grainOffset(index: number): Promise<number> {
    const tableOffset = await tableOffsetOf(Math.floor(index / entriesPerTable));
    return tableOffset === 0 ? 0 : entryToOffset((await table.bytes(tableOffset + (index % entriesPerTable) * 4, 4)).readUInt32LE(0), index);
  }
  async function tableOffsetOf(directoryIndex: number): Promise<number> {
    const offset = (await table.bytes(header.directoryOffset + directoryIndex * 4, 4)).readUInt32LE(0) * 512;
    if (offset === 0) return 0;
    if (offset + entriesPerTable * 4 > file.sizeBytes)
      throw damaged(file.name, `grain directory entry ${directoryIndex} points to ${offset}, where no grain table lies`);
    return offset;
  }
  function entryToOffset(entry: number, index: number): number {
    if (entry === 0) return 0;
    if (entry === 1 && header.hasZeroGrains) return -1;
    const offset = entry * 512;
    const needed = header.isCompressed ? markerBytes + 1 : lengthOf(index);
    if (overlaps(offset, 0, header.descriptorOffset + header.descriptorBytes) || overlaps(offset, header.directoryOffset, header.directoryBytes))
      throw damaged(file.name, `grain ${index} is at ${offset}, where the image keeps its own structures`);
    if (offset + needed > file.sizeBytes)
      throw damaged(file.name, `grain ${index} has ${needed} bytes at ${offset}, and the file ends at ${file.sizeBytes}: it is cut short`);
    return offset;
  }
  function overlaps(offset: number, from: number, length: number): boolean {
    return offset < from + length && offset + 512 > from;
  }
  function lengthOf(index: number): number {
    return Math.min(grainBytes, capacityBytes - index * grainBytes);
  }
  async function* runs(range: ByteRange = { offset: 0, length: capacityBytes }): AsyncGenerator<Extent> {
    const to = Math.min(grains, Math.ceil((range.offset + range.length) / grainBytes));
    for (let index = Math.floor(range.offset / grainBytes); index < to; ) {
      const tableEnd = Math.min(to, (Math.floor(index / entriesPerTable) + 1) * entriesPerTable);
      const tableOffset = await tableOffsetOf(Math.floor(index / entriesPerTable));
      if (tableOffset === 0) {
        yield extentOf("absent", index, tableEnd);
        index = tableEnd;
        continue;
      }
      const first = index % entriesPerTable;
      const entries = await table.bytes(tableOffset + first * 4, (tableEnd - index) * 4);
      for (let at = 0; index < tableEnd; index++, at += 4) {
        const offset = entryToOffset(entries.readUInt32LE(at), index);
        yield extentOf(offset === 0 ? "absent" : offset < 0 ? "zero" : "data", index, index + 1);
      }
    }
  }
  function extentOf(kind: Extent["kind"], from: number, to: number): Extent {
    const offset = from * grainBytes;
    return { offset, length: Math.min(to * grainBytes, capacityBytes) - offset, kind };
  }
  async function* dataGrains(signal: AbortSignal | undefined): AsyncGenerator<{ index: number; offset: number }> {
    for (let index = 0; index < grains; ) {
      signal?.throwIfAborted();
      const tableEnd = Math.min(grains, (Math.floor(index / entriesPerTable) + 1) * entriesPerTable);
      const tableOffset = await tableOffsetOf(Math.floor(index / entriesPerTable));
      if (tableOffset === 0) {
        index = tableEnd;
        continue;
      }
      const entries = await table.bytes(tableOffset, (tableEnd - index) * 4);
      for (let at = 0; index < tableEnd; index++, at += 4) {
        const offset = entryToOffset(entries.readUInt32LE(at), index);
        if (offset > 0) yield { index, offset };
      }
    }
  }
  async function* pieces(signal?: AbortSignal): AsyncGenerator<Piece> {
    const window = new ReadWindow(file);
    async function* packedGrains(): AsyncGenerator<{ index: number; packed: Buffer }> {
      for await (const { index, offset } of dataGrains(signal)) yield { index, packed: await packedAt(window, offset, index) };
    }
    yield* inOrder(packedGrains(), inflateWidth, async ({ index, packed }) => ({ offset: index * grainBytes, data: await inflateGrain(packed, index) }));
  }
  /** The marker in front of a grain says which grain it is and how long its data is: both are checked. */
  async function packedAt(window: ReadWindow, offset: number, index: number): Promise<Buffer> {
    const marker = await window.view(offset, markerBytes);
    const sector = marker.readBigUInt64LE(0);
    const bytes = marker.readUInt32LE(8);
    if (sector !== BigInt(index * (grainBytes / 512)))
      throw damaged(file.name, `the grain at ${offset} says it is sector ${sector}, the table says ${index * (grainBytes / 512)}`);
    if (bytes === 0 || bytes > grainBytes * 2 || offset + markerBytes + bytes > file.sizeBytes)
      throw damaged(file.name, `the grain at ${offset} says it has ${bytes} compressed bytes`);
    return window.view(offset + markerBytes, bytes);
  }
  function inflateGrain(packed: Buffer, index: number): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      inflate(packed, { maxOutputLength: grainBytes, chunkSize: grainBytes }, (error, data) => {
        const length = lengthOf(index);
        if (error) reject(damaged(file.name, `grain ${index} does not inflate: ${error.message}`));
        else if (data.length < length) reject(damaged(file.name, `grain ${index} inflates to ${data.length} bytes, not ${length}`));
        else resolve(data.length > length ? data.subarray(0, length) : data);
      });
    });
  }

  if (!header.isCompressed) {
    return blockMapSource(file, capacityBytes, grainBytes, async (index): Promise<Block> => {
      const first = index % entriesPerTable;
      const tableOffset = await tableOffsetOf(Math.floor(index / entriesPerTable));
      if (tableOffset === 0) return { kind: "absent", blocks: entriesPerTable - first };
      const entries = await table.bytes(tableOffset + first * 4, (entriesPerTable - first) * 4);
      const offset = entryToOffset(entries.readUInt32LE(0), index);
      return offset > 0 ? { kind: "data", offset } : { kind: offset === 0 ? "absent" : "zero", blocks: equalAtStart(entries) };
    });
  }
  return {
    sizeBytes: capacityBytes,
    // deflated data is about half of what it becomes; known better only by reading
    dataBytes: Math.min(capacityBytes, file.sizeBytes * 2.5),
    async *extents(range) {
      for await (const extent of joined(runs(range))) {
        const part = clip(extent, range);
        if (part) yield part;
      }
    },
    async read(offset, into) {
      for (let done = 0; done < into.length; ) {
        const index = Math.floor((offset + done) / grainBytes);
        const within = offset + done - index * grainBytes;
        const take = Math.min(into.length - done, grainBytes - within);
        const at = await grainOffset(index);
        if (at <= 0) into.fill(0, done, done + take);
        else (await inflateGrain(await packedAt(new ReadWindow(file, grainBytes), at, index), index)).copy(into, done, within, within + take);
        done += take;
      }
    },
    pieces,
    close: () => file.close(),
  };
}

/** How many entries of 4 bytes at the start of a table are the same. */
function equalAtStart(entries: Buffer): number {
  let bytes = 4;
  while (bytes < entries.length && entries.readUInt32LE(bytes) === entries.readUInt32LE(0)) bytes += 4;
  return bytes / 4;
}
