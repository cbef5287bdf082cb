import { constants, deflateRaw, zstdCompress } from "node:zlib";
import type { ByteSink } from "../../model/byte-sink.ts";
import type { DiskSink } from "../disk-sink.ts";
import { compressed, compressedOffsetBits, copied, incompatible, magic } from "./layout.ts";

const clusterBits = 16;
const clusterBytes = 2 ** clusterBits;
const l2Entries = clusterBytes / 8;
/** 16-bit refcounts: one block of a cluster counts 32,768 clusters, 2 GiB of file. */
const refcountsPerBlock = clusterBytes / 2;
const deflateWidth = 8;

export interface Qcow2Options {
  readonly compression: "none" | "zlib" | "zstd";
}

/**
 * Writes QCOW2 version 3 from front to back: data clusters as they come, each L2 table behind the 512 MiB it describes, each
 * refcount block behind the 2 GiB it counts; header, refcount table and L1 table are the head, known last. Memory does not
 * grow with the disk, and the file can go to a store that cannot seek.
 */
export function qcow2Sink(out: ByteSink, sizeBytes: number, options: Qcow2Options): DiskSink {
  const dataClusters = Math.ceil(sizeBytes / clusterBytes);
  const l1Length = Math.max(1, Math.ceil(dataClusters / l2Entries));
  // an upper bound of what the file can hold: every cluster, every L2 table, and the refcount blocks for both
  const mostClusters = (dataClusters + l1Length) * (1 + 1 / refcountsPerBlock) + 1024;
  const refcountTableClusters = Math.ceil((Math.ceil(mostClusters / refcountsPerBlock) * 8) / clusterBytes);
  const l1Clusters = Math.ceil((l1Length * 8) / clusterBytes);
  const headClusters = 1 + refcountTableClusters + l1Clusters;
  const fillHead = out.reserve(headClusters * clusterBytes);

  const l1 = Buffer.alloc(l1Clusters * clusterBytes);
  const refcountTable = Buffer.alloc(refcountTableClusters * clusterBytes);
  const refcounts = new RefcountBlocks();
  for (let cluster = 0; cluster < headClusters; cluster++) refcounts.add(cluster);
  let l2 = Buffer.alloc(clusterBytes);
  let l2Index = -1;
  const deflating: { index: number; data: Buffer; packed: Promise<Buffer> }[] = [];

  async function alignToCluster(): Promise<void> {
    const rest = out.position % clusterBytes;
    if (rest !== 0) await out.append(Buffer.alloc(clusterBytes - rest));
  }
  /** Appends whole clusters. @returns the offset of the first */
  async function appendClusters(data: Buffer): Promise<number> {
    await alignToCluster();
    const offset = out.position;
    await out.append(data);
    const rest = data.length % clusterBytes;
    if (rest !== 0) await out.append(Buffer.alloc(clusterBytes - rest));
    for (let at = offset; at < out.position; at += clusterBytes) refcounts.add(at / clusterBytes);
    return offset;
  }
  async function enterTable(index: number): Promise<void> {
    if (index === l2Index) return;
    if (index < l2Index) throw new Error(`a QCOW2 file is written in order: table ${index} came after ${l2Index}`);
    await leaveTable();
    l2Index = index;
  }
  async function leaveTable(): Promise<void> {
    if (l2Index < 0) return;
    l1.writeBigUInt64BE(BigInt(await appendClusters(l2)) | copied, l2Index * 8);
    l2 = Buffer.alloc(clusterBytes);
    await appendFullRefcountBlocks(Math.floor(out.position / clusterBytes));
  }
  /** Blocks whose clusters are all written, so that nothing will change in them. */
  async function appendFullRefcountBlocks(writtenClusters: number): Promise<void> {
    for (const index of refcounts.indexes()) {
      if ((index + 1) * refcountsPerBlock > writtenClusters) continue;
      refcountTable.writeBigUInt64BE(BigInt(await appendClusters(refcounts.take(index))), index * 8);
    }
  }
  async function writePlain(index: number, data: Buffer): Promise<void> {
    for (let at = 0; at < data.length; ) {
      const cluster = index + at / clusterBytes;
      await enterTable(Math.floor(cluster / l2Entries));
      const room = (l2Entries - (cluster % l2Entries)) * clusterBytes;
      const part = data.subarray(at, at + Math.min(room, data.length - at));
      const offset = await appendClusters(part);
      for (let done = 0; done < part.length; done += clusterBytes) {
        l2.writeBigUInt64BE(BigInt(offset + done) | copied, ((cluster + done / clusterBytes) % l2Entries) * 8);
      }
      at += part.length;
    }
  }
  async function writePacked(index: number, data: Buffer, packed: Buffer): Promise<void> {
    // as qemu does: what does not shrink is stored plainly
    if (packed.length >= clusterBytes) return writePlain(index, data);
    await enterTable(Math.floor(index / l2Entries));
    const offset = out.position;
    await out.append(packed);
    const last = offset + packed.length - 1;
    for (let cluster = Math.floor(offset / clusterBytes); cluster <= Math.floor(last / clusterBytes); cluster++) refcounts.add(cluster);
    const sectors = Math.floor(last / 512) - Math.floor(offset / 512);
    l2.writeBigUInt64BE(compressed | (BigInt(sectors) << BigInt(compressedOffsetBits(clusterBits))) | BigInt(offset), (index % l2Entries) * 8);
  }
  async function drain(atMost: number): Promise<void> {
    while (deflating.length > atMost) {
      const { index, data, packed } = deflating.shift() as (typeof deflating)[number];
      await writePacked(index, data, await packed);
    }
  }

  return {
    blockBytes: clusterBytes,
    async write(offset, data) {
      if (offset % clusterBytes !== 0) throw new Error(`offset ${offset} is not on a cluster`);
      const index = offset / clusterBytes;
      if (options.compression === "none") return writePlain(index, data);
      for (let at = 0; at < data.length; at += clusterBytes) {
        // the caller may reuse its buffer, and the last cluster of a disk is padded
        const cluster = Buffer.alloc(clusterBytes);
        data.copy(cluster, 0, at, Math.min(data.length, at + clusterBytes));
        const packed = pack(cluster, options.compression);
        packed.catch(() => {});
        deflating.push({ index: index + at / clusterBytes, data: cluster, packed });
        await drain(deflateWidth);
      }
    },
    settled: () => out.settled(),
    async finish() {
      await drain(0);
      await leaveTable();
      await alignToCluster();
      // the blocks count themselves: add their clusters until no new block is needed
      const start = out.position / clusterBytes;
      for (let added = 0; added < refcounts.indexes().length; added++) refcounts.add(start + added);
      for (const index of refcounts.indexes()) {
        refcountTable.writeBigUInt64BE(BigInt(out.position), index * 8);
        await out.append(refcounts.take(index));
      }
      await fillHead(Buffer.concat([header(sizeBytes, l1Length, refcountTableClusters, options.compression), refcountTable, l1]));
    },
  };
}

/** The refcount blocks that are not written yet; a few, since the file grows from front to back. */
class RefcountBlocks {
  readonly #blocks = new Map<number, Buffer>();

  add(cluster: number): void {
    const index = Math.floor(cluster / refcountsPerBlock);
    let block = this.#blocks.get(index);
    if (!block) this.#blocks.set(index, (block = Buffer.alloc(clusterBytes)));
    const at = (cluster % refcountsPerBlock) * 2;
    block.writeUInt16BE(block.readUInt16BE(at) + 1, at);
  }

  indexes(): number[] {
    return [...this.#blocks.keys()].sort((a, b) => a - b);
  }

  take(index: number): Buffer {
    const block = this.#blocks.get(index) as Buffer;
    this.#blocks.delete(index);
    return block;
  }
}

function header(sizeBytes: number, l1Length: number, refcountTableClusters: number, compression: Qcow2Options["compression"]): Buffer {
  const head = Buffer.alloc(clusterBytes);
  head.writeUInt32BE(magic, 0);
  head.writeUInt32BE(3, 4);
  head.writeUInt32BE(clusterBits, 20);
  // readers count in sectors: a size between two would lose its tail
  head.writeBigUInt64BE(BigInt(Math.ceil(sizeBytes / 512) * 512), 24);
  head.writeUInt32BE(l1Length, 36);
  head.writeBigUInt64BE(BigInt((1 + refcountTableClusters) * clusterBytes), 40);
  head.writeBigUInt64BE(BigInt(clusterBytes), 48);
  head.writeUInt32BE(refcountTableClusters, 56);
  head.writeUInt32BE(4, 96);
  head.writeUInt32BE(112, 100);
  if (compression === "zstd") {
    head.writeBigUInt64BE(incompatible.compressionType, 72);
    head.writeUInt8(1, 104);
  }
  return head;
}

/** Of clusters of 64 KiB, level 1 leaves 4 % more than level 3 does, in 0.6 of its CPU. */
const zstdParams = { [constants.ZSTD_c_compressionLevel]: 1 };

/** Raw deflate with the window of 4 KiB that readers of QCOW2 use, or a zstd frame. */
function pack(data: Buffer, compression: "zlib" | "zstd"): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const done = (error: Error | null, packed: Buffer): void => (error ? reject(error) : resolve(packed));
    if (compression === "zlib") deflateRaw(data, { windowBits: 12, chunkSize: clusterBytes }, done);
    else zstdCompress(data, { chunkSize: clusterBytes, pledgedSrcSize: data.length, params: zstdParams }, done);
  });
}
