import type { ByteFile } from "../byte-file.ts";
import { PagedTable } from "../paged-table.ts";
import { readHeader } from "./header.ts";
import { limits, offsetMask } from "./layout.ts";
import { clusterAt, l2Offset } from "./qcow2-source.ts";

/**
 * Counts every reference to every cluster of the file and holds it against the refcounts. A cluster that is used more often than
 * it is counted is corruption; one that is counted and not used is a leak. Images with internal snapshots or persistent bitmaps are
 * counted by their active state only, so there extra counts are no leaks.
 */
export async function checkRefcounts(file: ByteFile): Promise<{ readonly problems: string[]; readonly leaks: number }> {
  const header = await readHeader(file);
  const { clusterBytes } = header;
  const table = new PagedTable(file);
  const clusters = Math.ceil(file.sizeBytes / clusterBytes);
  const used = new Counters();
  const problems: string[] = [];
  const use = (offset: number, length: number): void => {
    for (let cluster = Math.floor(offset / clusterBytes); cluster < Math.ceil((offset + length) / clusterBytes); cluster++)
      if (cluster < clusters) used.add(cluster);
  };
  use(0, clusterBytes);
  use(header.l1Offset, header.l1Entries * 8);
  const tableBytes = header.refcountTableClusters * clusterBytes;
  if (
    tableBytes > limits.maxRefcountTableBytes ||
    header.refcountTableOffset % clusterBytes !== 0 ||
    header.refcountTableOffset + tableBytes > file.sizeBytes
  ) {
    return { problems: [`refcount_table_offset is ${header.refcountTableOffset}: a table of ${tableBytes} bytes does not lie in the file`], leaks: 0 };
  }
  use(header.refcountTableOffset, tableBytes);

  const perBlock = (clusterBytes * 8) / header.refcountBits;
  const blocks: number[] = [];
  for (let i = 0; i < tableBytes / 8; i++) {
    const block = Number((await table.bytes(header.refcountTableOffset + i * 8, 8)).readBigUInt64BE(0) & offsetMask);
    blocks.push(block);
    if (block === 0) continue;
    if (block % clusterBytes !== 0 || block + clusterBytes > file.sizeBytes) problems.push(`refcount block ${i} is at ${block}, where none lies`);
    else use(block, clusterBytes);
  }
  const perTable = clusterBytes / header.entryBytes;
  const diskClusters = Math.ceil(header.virtualBytes / clusterBytes);
  let budget = clusters;
  for (let l1 = 0; l1 * perTable < diskClusters; l1++) {
    const l2 = await l2Offset(file.name, header, table, l1, file.sizeBytes);
    if (l2 === undefined) continue;
    use(l2, clusterBytes);
    for (let index = l1 * perTable; index < Math.min(diskClusters, (l1 + 1) * perTable); index++) {
      const cluster = await clusterAt(file, header, table, index);
      if ((cluster.kind === "data" || (cluster.kind === "mixed" && cluster.offset > 0)) && --budget < 0)
        return { problems: [...problems, "more clusters hold data than the file has: some are used more than once"], leaks: 0 };
      if (cluster.kind === "data" || (cluster.kind === "mixed" && cluster.offset > 0)) use(cluster.offset, clusterBytes);
      else if (cluster.kind === "compressed") use(cluster.offset, cluster.length);
    }
  }
  let leaks = 0;
  const count = async (cluster: number): Promise<void> => {
    const block = blocks[Math.floor(cluster / perBlock)] ?? 0;
    const counted =
      block === 0 || block + clusterBytes > file.sizeBytes
        ? 0
        : refcount(await refcountBytes(table, block, cluster % perBlock, header.refcountBits), cluster % perBlock, header.refcountBits);
    const references = used.of(cluster);
    if (references > counted && problems.length < 1000) problems.push(`cluster ${cluster} is used ${references} times, its refcount is ${counted}`);
    if (counted > references && header.snapshots === 0 && !header.bitmaps) leaks++;
  };
  // a file may be much longer than what is in it: only what is counted or used is looked at
  for (const [index, block] of blocks.entries())
    if (block !== 0) for (let cluster = index * perBlock; cluster < Math.min(clusters, (index + 1) * perBlock); cluster++) await count(cluster);
  for (const cluster of used.clusters()) if ((blocks[Math.floor(cluster / perBlock)] ?? 0) === 0) await count(cluster);
  return { problems, leaks };
}

/** References by cluster, in pages that exist only where there are any. */
class Counters {
  readonly #pages = new Map<number, Uint32Array>();

  add(cluster: number): void {
    const page = Math.floor(cluster / 65_536);
    let counts = this.#pages.get(page);
    if (!counts) this.#pages.set(page, (counts = new Uint32Array(65_536)));
    counts[cluster % 65_536] = (counts[cluster % 65_536] as number) + 1;
  }

  of(cluster: number): number {
    return this.#pages.get(Math.floor(cluster / 65_536))?.[cluster % 65_536] ?? 0;
  }

  *clusters(): Generator<number> {
    for (const [page, counts] of this.#pages) for (const [i, count] of counts.entries()) if (count > 0) yield page * 65_536 + i;
  }
}

function refcountBytes(table: PagedTable, block: number, index: number, bits: number): Promise<Buffer> {
  return table.bytes(block + Math.floor((index * bits) / 8), Math.max(1, bits / 8));
}

/** Refcounts narrower than a byte fill it from the low bits. */
function refcount(bytes: Buffer, index: number, bits: number): number {
  if (bits < 8) return ((bytes[0] ?? 0) >> ((index * bits) % 8)) & (2 ** bits - 1);
  return bits === 64 ? Number(bytes.readBigUInt64BE(0)) : bytes.readUIntBE(0, bits / 8);
}
