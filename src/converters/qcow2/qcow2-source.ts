import { inflateRaw } from "node:zlib";
import { type BlockSource, type ByteRange, clip, type Extent, joined, type Piece } from "../block-source.ts";
import type { ByteFile } from "../byte-file.ts";
import { damaged } from "../checked.ts";
import { inOrder } from "../in-order.ts";
import { PagedTable } from "../paged-table.ts";
import { type Qcow2Header, readHeader } from "./header.ts";
import { compressed, compressedOffsetBits, offsetMask, zeroFlag } from "./layout.ts";

/** Where the content of one cluster is. */
export type Cluster =
  | { readonly kind: "absent" | "zero" }
  | { readonly kind: "data"; readonly offset: number }
  | { readonly kind: "compressed"; readonly offset: number; readonly length: number };

const absent: Cluster = { kind: "absent" };
const zero: Cluster = { kind: "zero" };
const inflateWidth = 8;

/** A QCOW2 image, version 2 or 3, with zlib clusters. Internal snapshots are not looked at. */
export async function openQcow2(file: ByteFile): Promise<BlockSource & { readonly header: Qcow2Header }> {
  const header = await readHeader(file);
  const table = new PagedTable(file);
  const { clusterBytes, virtualBytes } = header;
  const clusters = Math.ceil(virtualBytes / clusterBytes);

  async function* runs(range: ByteRange = { offset: 0, length: virtualBytes }): AsyncGenerator<Extent> {
    const from = Math.floor(range.offset / clusterBytes);
    const to = Math.min(clusters, Math.ceil((range.offset + range.length) / clusterBytes));
    const perTable = clusterBytes / 8;
    for (let index = from; index < to; ) {
      const l2 = await l2Offset(file.name, header, table, Math.floor(index / perTable), file.sizeBytes);
      const tableEnd = Math.min(to, (Math.floor(index / perTable) + 1) * perTable);
      if (l2 === undefined) {
        yield extentOf("absent", index, tableEnd);
        index = tableEnd;
        continue;
      }
      for (; index < tableEnd; index++) {
        const cluster = decodeEntry(file, header, await entryAt(table, l2 + (index % perTable) * 8), index);
        yield extentOf(cluster.kind === "compressed" ? "data" : cluster.kind, index, index + 1);
      }
    }
  }
  function extentOf(kind: Extent["kind"], from: number, to: number): Extent {
    const offset = from * clusterBytes;
    return { offset, length: Math.min(to * clusterBytes, virtualBytes) - offset, kind };
  }
  async function readCluster(index: number, within: number, into: Buffer): Promise<void> {
    const cluster = await clusterAt(file, header, table, index);
    if (cluster.kind === "data") await file.read(cluster.offset + within, into);
    else if (cluster.kind === "compressed") (await inflate(file, header, cluster, index)).copy(into, 0, within, within + into.length);
    else into.fill(0);
  }
  async function* dataClusters(signal: AbortSignal | undefined): AsyncGenerator<{ index: number; cluster: Cluster }> {
    for await (const extent of joined(runs())) {
      if (extent.kind !== "data") continue;
      const end = Math.ceil((extent.offset + extent.length) / clusterBytes);
      for (let index = extent.offset / clusterBytes; index < end; index++) {
        signal?.throwIfAborted();
        yield { index, cluster: await clusterAt(file, header, table, index) };
      }
    }
  }

  return {
    header,
    sizeBytes: virtualBytes,
    dataBytes: Math.min(virtualBytes, file.sizeBytes * ((await hasCompressed(file, header, table)) ? 4 : 1)),
    async *extents(range) {
      for await (const extent of joined(runs(range))) {
        const part = clip(extent, range);
        if (part) yield part;
      }
    },
    async read(offset, into) {
      for (let done = 0; done < into.length; ) {
        const index = Math.floor((offset + done) / clusterBytes);
        const within = offset + done - index * clusterBytes;
        const take = Math.min(into.length - done, clusterBytes - within);
        await readCluster(index, within, into.subarray(done, done + take));
        done += take;
      }
    },
    pieces: (signal) => pieces(signal),
    close: () => file.close(),
  };

  async function* pieces(signal?: AbortSignal): AsyncGenerator<Piece> {
    yield* inOrder(mergedReads(dataClusters(signal), clusterBytes), inflateWidth, async ({ index, count, cluster }): Promise<Piece> => {
      const offset = index * clusterBytes;
      const length = Math.min(count * clusterBytes, virtualBytes - offset);
      if (cluster.kind === "compressed") return { offset, data: (await inflate(file, header, cluster, index)).subarray(0, length) };
      const data = Buffer.allocUnsafeSlow(length);
      if (cluster.kind === "data") await file.read(cluster.offset, data.subarray(0, Math.min(length, file.sizeBytes - cluster.offset)));
      return { offset, data };
    });
  }
}

interface Read {
  readonly index: number;
  readonly count: number;
  readonly cluster: Cluster;
}

/** Neighbouring clusters that are neighbours in the file too become one read of at most 1 MiB. */
async function* mergedReads(clusters: AsyncIterable<{ index: number; cluster: Cluster }>, clusterBytes: number): AsyncGenerator<Read> {
  const most = Math.max(1, (1 << 20) / clusterBytes);
  let run: { index: number; count: number; cluster: Cluster } | undefined;
  for await (const { index, cluster } of clusters) {
    const follows =
      run?.cluster.kind === "data" &&
      cluster.kind === "data" &&
      run.index + run.count === index &&
      run.cluster.offset + run.count * clusterBytes === cluster.offset;
    if (run && follows && run.count < most && index % most !== 0) run.count++;
    else {
      if (run) yield run;
      run = { index, count: 1, cluster };
    }
  }
  if (run) yield run;
}

/** Where the entry of a cluster says its content is. */
export async function clusterAt(file: ByteFile, header: Qcow2Header, table: PagedTable, index: number): Promise<Cluster> {
  const perTable = header.clusterBytes / 8;
  const l2 = await l2Offset(file.name, header, table, Math.floor(index / perTable), file.sizeBytes);
  return l2 === undefined ? absent : decodeEntry(file, header, await entryAt(table, l2 + (index % perTable) * 8), index);
}

export async function l2Offset(name: string, header: Qcow2Header, table: PagedTable, l1Index: number, fileBytes: number): Promise<number | undefined> {
  const offset = Number((await entryAt(table, header.l1Offset + l1Index * 8)) & offsetMask);
  if (offset === 0) return undefined;
  if (offset % header.clusterBytes !== 0 || offset + header.clusterBytes > fileBytes)
    throw damaged(name, `L1 entry ${l1Index} points to ${offset}, where no L2 table lies`);
  return offset;
}

async function entryAt(table: PagedTable, offset: number): Promise<bigint> {
  return (await table.bytes(offset, 8)).readBigUInt64BE(0);
}

function decodeEntry(file: ByteFile, header: Qcow2Header, entry: bigint, index: number): Cluster {
  if (entry === 0n) return absent;
  if (entry & compressed) {
    const bits = BigInt(compressedOffsetBits(header.clusterBits));
    const offset = Number(entry & ((1n << bits) - 1n));
    const sectors = Number((entry & (compressed - 1n)) >> bits) + 1;
    const length = sectors * 512 - (offset % 512);
    if (offset >= file.sizeBytes) throw damaged(file.name, `cluster ${index} is compressed at ${offset}, beyond the end of the file`);
    return { kind: "compressed", offset, length: Math.min(length, file.sizeBytes - offset) };
  }
  if (header.version === 3 && entry & zeroFlag) return zero;
  const offset = Number(entry & offsetMask);
  if (offset === 0) return absent;
  if (offset % header.clusterBytes !== 0) throw damaged(file.name, `cluster ${index} is at ${offset}, which is no multiple of ${header.clusterBytes}`);
  if (offset >= file.sizeBytes) throw damaged(file.name, `cluster ${index} is at ${offset}, beyond the end of the file`);
  return { kind: "data", offset };
}

/** QCOW2 clusters are raw deflate with a window of 4 KiB; no more than a cluster is ever inflated. */
function inflate(file: ByteFile, header: Qcow2Header, cluster: { readonly offset: number; readonly length: number }, index: number): Promise<Buffer> {
  const packed = Buffer.allocUnsafe(cluster.length);
  return file.read(cluster.offset, packed).then(
    () =>
      new Promise((resolve, reject) => {
        // the last sector holds bytes of the next cluster: what follows the end of the stream is ignored
        inflateRaw(packed, { maxOutputLength: header.clusterBytes, chunkSize: header.clusterBytes }, (error, data) => {
          if (error) reject(damaged(file.name, `compressed cluster ${index} at ${cluster.offset} does not inflate: ${error.message}`));
          else if (data.length !== header.clusterBytes)
            reject(damaged(file.name, `compressed cluster ${index} inflates to ${data.length} bytes, not ${header.clusterBytes}`));
          else resolve(data);
        });
      }),
  );
}

/** A look at the first entries, only for the estimate of how much data there is. */
async function hasCompressed(file: ByteFile, header: Qcow2Header, table: PagedTable): Promise<boolean> {
  const perTable = header.clusterBytes / 8;
  const tables = Math.ceil(header.virtualBytes / (header.clusterBytes * perTable));
  for (let l1 = 0; l1 < Math.min(tables, 8); l1++) {
    const l2 = await l2Offset(file.name, header, table, l1, file.sizeBytes);
    if (l2 === undefined) continue;
    const entries = await table.bytes(l2, Math.min(header.clusterBytes, 4096));
    for (let at = 0; at < entries.length; at += 8) if (entries.readBigUInt64BE(at) & compressed) return true;
  }
  return false;
}
