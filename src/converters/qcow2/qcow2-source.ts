import { inflateRaw, zstdDecompress } from "node:zlib";
import { type BlockSource, type ByteRange, clip, type Extent, joined, type Piece } from "../block-source.ts";
import type { ByteFile } from "../byte-file.ts";
import { damaged, unsupported } from "../checked.ts";
import { inOrder } from "../in-order.ts";
import type { ImageDetails, Layer, ParentReference } from "../layer.ts";
import { PagedTable } from "../paged-table.ts";
import { type Qcow2Header, readHeader } from "./header.ts";
import { compressed, compressedOffsetBits, copied, offsetMask, subclustersPerCluster, zeroFlag } from "./layout.ts";
import { zstdFrameLength } from "./zstd-frame.ts";

/** Where the content of one cluster is. */
export type Cluster =
  | { readonly kind: "absent" | "zero" }
  | { readonly kind: "data"; readonly offset: number }
  | { readonly kind: "compressed"; readonly offset: number; readonly length: number }
  /** Each of the 32 subclusters has a state of its own; bit n is that of subcluster n. */
  | { readonly kind: "mixed"; readonly offset: number; readonly allocated: number; readonly zeros: number };

const absent: Cluster = { kind: "absent" };
const zero: Cluster = { kind: "zero" };
const inflateWidth = 8;

/** A QCOW2 image, version 2 or 3, with zlib or zstd clusters, over a backing file or not. Internal snapshots are not looked at. */
export async function openQcow2(file: ByteFile): Promise<Layer> {
  const header = await readHeader(file);
  return {
    format: "qcow2",
    variant: `v${header.version}`,
    source: await sourceOf(file, header),
    details: detailsOf(header),
    ...(header.backing ? { parent: backingOf(file.name, header.backing) } : {}),
  };
}

function backingOf(image: string, { name, format }: NonNullable<Qcow2Header["backing"]>): ParentReference {
  if (format === undefined) return { names: [name] };
  const known = ({ raw: "raw", qcow2: "qcow2", vmdk: "vmdk", vpc: "vhd", vhdx: "vhdx", vdi: "vdi" } as const)[format];
  if (!known) throw unsupported(image, `a backing file of format ${JSON.stringify(format.slice(0, 40))} is not read`);
  return { names: [name], format: known };
}

function detailsOf(header: Qcow2Header): ImageDetails {
  const features = [
    `${header.compression} where clusters are compressed`,
    ...(header.entryBytes === 16 ? ["extended L2"] : []),
    `${header.refcountBits}-bit refcounts`,
  ];
  const notes = [
    ...(header.snapshots > 0
      ? [`${header.snapshots} internal ${header.snapshots === 1 ? "snapshot is" : "snapshots are"} not looked at: the disk is its present state`]
      : []),
    ...(header.isDirty ? ["the image was not closed cleanly: its refcounts may be wrong, its content is not touched by that"] : []),
  ];
  return { blockBytes: header.clusterBytes, features, notes };
}

async function sourceOf(file: ByteFile, header: Qcow2Header): Promise<BlockSource> {
  const table = new PagedTable(file);
  const { clusterBytes, virtualBytes, entryBytes } = header;
  const clusters = Math.ceil(virtualBytes / clusterBytes);
  const subclusterBytes = clusterBytes / subclustersPerCluster;

  async function* runs(range: ByteRange = { offset: 0, length: virtualBytes }): AsyncGenerator<Extent> {
    const from = Math.floor(range.offset / clusterBytes);
    const to = Math.min(clusters, Math.ceil((range.offset + range.length) / clusterBytes));
    const perTable = clusterBytes / entryBytes;
    // tables that are used by many would make a disk of terabytes out of a file of kilobytes
    let budget = Math.ceil(file.sizeBytes / clusterBytes);
    for (let index = from; index < to; ) {
      const l2 = await l2Offset(file.name, header, table, Math.floor(index / perTable), file.sizeBytes);
      const tableEnd = Math.min(to, (Math.floor(index / perTable) + 1) * perTable);
      if (l2 === undefined) {
        yield extentOf("absent", index, tableEnd);
        index = tableEnd;
        continue;
      }
      for (; index < tableEnd; index++) {
        const cluster = decodeEntry(file, header, await table.bytes(l2 + (index % perTable) * entryBytes, entryBytes), index);
        if ((cluster.kind === "data" || (cluster.kind === "mixed" && cluster.offset > 0)) && --budget < 0)
          throw damaged(file.name, "more clusters hold data than the file has: some are used more than once");
        if (cluster.kind === "mixed") yield* subclusterExtents(cluster, index);
        else yield extentOf(cluster.kind === "compressed" ? "data" : cluster.kind, index, index + 1);
      }
    }
  }
  function extentOf(kind: Extent["kind"], from: number, to: number): Extent {
    const offset = from * clusterBytes;
    return { offset, length: Math.min(to * clusterBytes, virtualBytes) - offset, kind };
  }
  function* subclusterExtents(cluster: Cluster & { kind: "mixed" }, index: number): Generator<Extent> {
    for (let i = 0; i < subclustersPerCluster; i++) {
      const offset = index * clusterBytes + i * subclusterBytes;
      const length = Math.min(subclusterBytes, virtualBytes - offset);
      if (length > 0) yield { offset, length, kind: subclusterKind(cluster, i) };
    }
  }
  async function readCluster(index: number, within: number, into: Buffer): Promise<void> {
    const cluster = await clusterAt(file, header, table, index);
    if (cluster.kind === "data") await file.read(cluster.offset + within, into);
    else if (cluster.kind === "compressed") (await unpack(file, header, cluster, index)).copy(into, 0, within, within + into.length);
    else if (cluster.kind === "mixed") await readMixed(cluster, within, into);
    else into.fill(0);
  }
  async function readMixed(cluster: Cluster & { kind: "mixed" }, within: number, into: Buffer): Promise<void> {
    for (let done = 0; done < into.length; ) {
      const at = within + done;
      const i = Math.floor(at / subclusterBytes);
      const part = into.subarray(done, done + Math.min(into.length - done, (i + 1) * subclusterBytes - at));
      if (subclusterKind(cluster, i) === "data") await file.read(cluster.offset + at, part);
      else part.fill(0);
      done += part.length;
    }
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
  async function* pieces(signal?: AbortSignal): AsyncGenerator<Piece> {
    yield* inOrder(mergedReads(dataClusters(signal), clusterBytes), inflateWidth, async ({ index, count, cluster }): Promise<Piece> => {
      const offset = index * clusterBytes;
      const length = Math.min(count * clusterBytes, virtualBytes - offset);
      if (cluster.kind === "compressed") return { offset, data: (await unpack(file, header, cluster, index)).subarray(0, length) };
      const data = Buffer.allocUnsafeSlow(length);
      if (cluster.kind === "data") await file.read(cluster.offset, data);
      return { offset, data };
    });
  }

  return {
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
    // subclusters are not whole clusters: they are read by extents
    ...(entryBytes === 8 ? { pieces } : {}),
    close: () => file.close(),
  };
}

function subclusterKind({ allocated, zeros }: Cluster & { kind: "mixed" }, index: number): Extent["kind"] {
  const bit = 2 ** index;
  return Math.floor(zeros / bit) % 2 === 1 ? "zero" : Math.floor(allocated / bit) % 2 === 1 ? "data" : "absent";
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
  const perTable = header.clusterBytes / header.entryBytes;
  const l2 = await l2Offset(file.name, header, table, Math.floor(index / perTable), file.sizeBytes);
  if (l2 === undefined) return absent;
  return decodeEntry(file, header, await table.bytes(l2 + (index % perTable) * header.entryBytes, header.entryBytes), index);
}

export async function l2Offset(name: string, header: Qcow2Header, table: PagedTable, l1Index: number, fileBytes: number): Promise<number | undefined> {
  const offset = Number((await table.bytes(header.l1Offset + l1Index * 8, 8)).readBigUInt64BE(0) & offsetMask);
  if (offset === 0) return undefined;
  if (offset % header.clusterBytes !== 0 || offset + header.clusterBytes > fileBytes)
    throw damaged(name, `L1 entry ${l1Index} points to ${offset}, where no L2 table lies`);
  return offset;
}

function decodeEntry(file: ByteFile, header: Qcow2Header, bytes: Buffer, index: number): Cluster {
  const entry = bytes.readBigUInt64BE(0);
  if (entry === 0n && header.entryBytes === 8) return absent;
  if (entry & compressed) {
    const bits = BigInt(compressedOffsetBits(header.clusterBits));
    const offset = Number(entry & ((1n << bits) - 1n));
    const sectors = Number((entry & (compressed - 1n)) >> bits) + 1;
    const length = sectors * 512 - (offset % 512);
    if (offset >= file.sizeBytes) throw damaged(file.name, `cluster ${index} is compressed at ${offset}, beyond the end of the file`);
    return { kind: "compressed", offset, length: Math.min(length, file.sizeBytes - offset) };
  }
  if (header.entryBytes === 8 && header.version === 3 && entry & zeroFlag) return zero;
  const offset = Number(entry & offsetMask);
  if (header.entryBytes === 16) {
    const [zeros, allocated] = [bytes.readUInt32BE(8), bytes.readUInt32BE(12)];
    if ((zeros & allocated) !== 0) throw damaged(file.name, `cluster ${index} has subclusters that are allocated and zeros at once`);
    if (allocated === 0 && offset === 0) return zeros === 0 ? absent : zeros === 0xffffffff ? zero : { kind: "mixed", offset: 0, allocated, zeros };
    // the last subcluster that is there, counted from 1
    checkPlace(file, header, offset, index, (32 - Math.clz32(allocated)) * (header.clusterBytes / subclustersPerCluster));
    return allocated === 0xffffffff ? { kind: "data", offset } : { kind: "mixed", offset, allocated, zeros };
  }
  // with an external data file offset 0 would be data; those are refused
  if (offset === 0 && !(entry & copied)) return absent;
  checkPlace(file, header, offset, index, header.clusterBytes);
  return { kind: "data", offset };
}

/** @param used how much of the cluster holds data; what lies behind the end of the disk may be missing */
function checkPlace(file: ByteFile, header: Qcow2Header, offset: number, index: number, used: number): void {
  if (offset === 0 || offset % header.clusterBytes !== 0)
    throw damaged(file.name, `cluster ${index} is at ${offset}, which is no multiple of ${header.clusterBytes}`);
  const needed = Math.min(used, header.virtualBytes - index * header.clusterBytes);
  if (offset + needed > file.sizeBytes)
    throw damaged(file.name, `cluster ${index} has ${needed} bytes at ${offset}, and the file ends at ${file.sizeBytes}: it is cut short`);
}

/** No more than a cluster is ever unpacked. What follows the stream in the last sector belongs to the next cluster and is ignored. */
async function unpack(file: ByteFile, header: Qcow2Header, cluster: { readonly offset: number; readonly length: number }, index: number): Promise<Buffer> {
  const packed = Buffer.allocUnsafe(cluster.length);
  await file.read(cluster.offset, packed);
  return new Promise((resolve, reject) => {
    const done = (error: Error | null, data: Buffer): void => {
      if (error) reject(damaged(file.name, `compressed cluster ${index} at ${cluster.offset} does not unpack: ${error.message}`));
      else if (data.length !== header.clusterBytes)
        reject(damaged(file.name, `compressed cluster ${index} unpacks to ${data.length} bytes, not ${header.clusterBytes}`));
      else resolve(data);
    };
    const bounds = { maxOutputLength: header.clusterBytes, chunkSize: header.clusterBytes };
    // raw deflate with a window of 4 KiB, or one zstd frame
    if (header.compression === "zlib") inflateRaw(packed, bounds, done);
    else zstdDecompress(packed.subarray(0, zstdFrameLength(packed) ?? packed.length), bounds, done);
  });
}

/** A look at the first entries, only for the estimate of how much data there is. */
async function hasCompressed(file: ByteFile, header: Qcow2Header, table: PagedTable): Promise<boolean> {
  const perTable = header.clusterBytes / header.entryBytes;
  const tables = Math.ceil(header.virtualBytes / (header.clusterBytes * perTable));
  for (let l1 = 0; l1 < Math.min(tables, 8); l1++) {
    const l2 = await l2Offset(file.name, header, table, l1, file.sizeBytes);
    if (l2 === undefined) continue;
    const entries = await table.bytes(l2, Math.min(header.clusterBytes, 4096));
    for (let at = 0; at < entries.length; at += header.entryBytes) if (entries.readBigUInt64BE(at) & compressed) return true;
  }
  return false;
}
