import { absentBlock, type Block, blockMapSource, zeroBlock } from "../block-map.ts";
import { type ByteFile, readBytes } from "../byte-file.ts";
import { checkVirtualSize, damaged, narrow, unsupported } from "../checked.ts";
import type { Layer } from "../layer.ts";
import { PagedTable } from "../paged-table.ts";
import { freeEntry, headerBytes, signature, types, version, zeroEntry } from "./layout.ts";

/** A dynamic, fixed or differencing VDI. A difference knows its parent by id only: the folder is searched for it. */
export async function openVdi(file: ByteFile): Promise<Layer> {
  const { name } = file;
  const bytes = await readBytes(file, 0, headerBytes);
  if (bytes.readUInt32LE(64) !== signature) throw damaged(name, "the VDI signature is missing");
  if (bytes.readUInt32LE(68) !== version) throw unsupported(name, `VDI version ${bytes.readUInt16LE(70)}.${bytes.readUInt16LE(68)} is not read (1.1 is)`);
  const type = bytes.readUInt32LE(76);
  if (type !== types.dynamic && type !== types.fixed && type !== types.differencing) throw unsupported(name, `VDI image type ${type} is not read`);
  const tableOffset = bytes.readUInt32LE(340);
  const dataOffset = bytes.readUInt32LE(344);
  const sectorBytes = bytes.readUInt32LE(360);
  const sizeBytes = narrow(name, "disk size", bytes.readBigUInt64LE(368));
  const blockBytes = bytes.readUInt32LE(376);
  const extraBytes = bytes.readUInt32LE(380);
  const blocks = bytes.readUInt32LE(384);
  checkVirtualSize(name, sizeBytes);
  if (sectorBytes !== 512) throw unsupported(name, `sectors of ${sectorBytes} bytes are not read in VDI`);
  if (blockBytes < 4096 || blockBytes > 2 ** 28 || (blockBytes & (blockBytes - 1)) !== 0)
    throw damaged(name, `the block size is ${blockBytes}, no power of two from 4 KiB to 256 MiB`);
  if (extraBytes !== 0) throw unsupported(name, `blocks with ${extraBytes} extra bytes are not read`);
  const needed = Math.ceil(sizeBytes / blockBytes);
  if (blocks < needed) throw damaged(name, `the table has ${blocks} entries, the disk needs ${needed}`);
  if (tableOffset < 400 || tableOffset + needed * 4 > file.sizeBytes)
    throw damaged(name, `the table offset is ${tableOffset}: ${needed} entries do not lie in the file`);
  if (dataOffset < tableOffset + needed * 4 || dataOffset % 512 !== 0)
    throw damaged(name, `the data offset is ${dataOffset}, and does not lie on a sector behind the table`);
  const table = new PagedTable(file);
  const source = blockMapSource(file, sizeBytes, blockBytes, async (index): Promise<Block> => {
    const entry = (await table.bytes(tableOffset + index * 4, 4)).readUInt32LE(0);
    if (entry === freeEntry) return absentBlock;
    if (entry === zeroEntry) return zeroBlock;
    const offset = dataOffset + entry * blockBytes;
    if (offset + Math.min(blockBytes, sizeBytes - index * blockBytes) > file.sizeBytes)
      throw damaged(name, `block ${index} is at ${offset}, and does not lie in the file of ${file.sizeBytes} bytes`);
    return { kind: "data", offset };
  });
  const isDifference = type === types.differencing;
  return {
    format: "vdi",
    variant: isDifference ? "differencing" : type === types.fixed ? "fixed" : "dynamic",
    source,
    blocks: {
      placed: source.placed,
      counted: bytes.readUInt32LE(388),
      space: { bytes: file.sizeBytes - dataOffset, eachBytes: blockBytes },
    },
    identity: bytes.toString("hex", 392, 408),
    details: {
      creator: bytes
        .toString("latin1", 0, 64)
        .replace(/[^\x20-\x7e].*$/s, "")
        .replace(/^<+\s*|\s*>+$/g, "")
        .trim(),
      blockBytes,
    },
    ...(isDifference ? { parent: { names: [], identity: bytes.toString("hex", 424, 440), format: "vdi" } } : {}),
  };
}
