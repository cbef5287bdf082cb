import { absentBlock, type Block, blockMapSource, zeroBlock } from "../block-map.ts";
import type { BlockSource } from "../block-source.ts";
import { type ByteFile, readBytes } from "../byte-file.ts";
import { checkVirtualSize, damaged, narrow, unsupported } from "../checked.ts";
import { PagedTable } from "../paged-table.ts";

/**
 * Space-efficient sparse extent of vSphere 6.5 and later. Not documented by VMware; this is what its readers agree on. Little endian,
 * u64, in sectors of 512 bytes.
 *
 *   0 magic 0xcafebabe   8 version 0x200000001   16 capacity   24 grain size (8)   32 grain table size (64)
 * 128 grain directory  136 its size             144 grain tables            152 their size          192 grains   200 their size
 *
 * Directory entry: 0 none, or 0x1000_0000 in the high half and the number of a table. Table entry: its highest nibble is 0 unallocated,
 * 1 unmapped, 2 zero, 3 allocated; then bits 48–59 are the low 12 bits of the grain's number, bits 0–47 the others.
 */
const magic = 0xcafebaben;
const version = 0x200000001n;

export async function openSeSparse(file: ByteFile): Promise<BlockSource> {
  const { name } = file;
  const bytes = await readBytes(file, 0, 512);
  if (bytes.readBigUInt64LE(0) !== magic) throw damaged(name, "the seSparse magic is missing");
  if (bytes.readBigUInt64LE(8) !== version) throw unsupported(name, `seSparse version 0x${bytes.readBigUInt64LE(8).toString(16)} is not read (2.1 is)`);
  const sectors = (field: string, at: number): number => narrow(name, field, bytes.readBigUInt64LE(at) * 512n);
  const sizeBytes = sectors("capacity", 16);
  const grainBytes = sectors("grain size", 24);
  const tableBytes = sectors("grain table size", 32);
  const [directoryAt, directoryBytes] = [sectors("grain directory offset", 128), sectors("grain directory size", 136)];
  const [tablesAt, tablesBytes] = [sectors("grain tables offset", 144), sectors("grain tables size", 152)];
  const grainsAt = sectors("grains offset", 192);
  checkVirtualSize(name, sizeBytes);
  if (grainBytes !== 4096) throw unsupported(name, `grains of ${grainBytes} bytes are not read in seSparse (4096 are)`);
  if (tableBytes !== 32_768) throw unsupported(name, `grain tables of ${tableBytes} bytes are not read in seSparse (32768 are)`);
  const perTable = tableBytes / 8;
  const needed = Math.ceil(sizeBytes / (grainBytes * perTable)) * 8;
  if (needed > directoryBytes || directoryAt + needed > file.sizeBytes)
    throw damaged(name, `the grain directory at ${directoryAt} with ${directoryBytes} bytes does not hold the ${needed} that the disk needs`);
  const table = new PagedTable(file);
  return blockMapSource(file, sizeBytes, grainBytes, async (index): Promise<Block> => {
    const entry = (await table.bytes(directoryAt + Math.floor(index / perTable) * 8, 8)).readBigUInt64LE(0);
    if (entry === 0n) return { kind: "absent", blocks: perTable - (index % perTable) };
    if (entry >> 32n !== 0x10000000n) throw damaged(name, `grain directory entry ${Math.floor(index / perTable)} is 0x${entry.toString(16)}`);
    const tableAt = Number(entry & 0xffffffffn) * tableBytes;
    if (tableAt + tableBytes > tablesBytes || tablesAt + tableAt + tableBytes > file.sizeBytes)
      throw damaged(name, `grain directory entry ${Math.floor(index / perTable)} points to table ${entry & 0xffffffffn}, which is not there`);
    const grain = (await table.bytes(tablesAt + tableAt + (index % perTable) * 8, 8)).readBigUInt64LE(0);
    switch (grain >> 60n) {
      case 0n:
        if (grain !== 0n) break;
        return absentBlock;
      case 1n:
      case 2n:
        return zeroBlock;
      case 3n: {
        const number = ((grain >> 48n) & 0xfffn) | ((grain & 0xffffffffffffn) << 12n);
        const offset = narrow(name, `grain ${index}`, number * BigInt(grainBytes) + BigInt(grainsAt));
        if (offset + Math.min(grainBytes, sizeBytes - index * grainBytes) > file.sizeBytes)
          throw damaged(name, `grain ${index} is at ${offset}, beyond the end of the file`);
        return { kind: "data", offset };
      }
    }
    throw damaged(name, `the entry of grain ${index} is 0x${grain.toString(16)}`);
  });
}
