import { type ByteFile, readBytes } from "../byte-file.ts";
import { checkVirtualSize, damaged, unsupported } from "../checked.ts";
import type { SparseHeader } from "./sparse-header.ts";

/**
 * ESX Server sparse extent, "COWD", VMware Virtual Disk Format 5.0. Little endian, in sectors of 512 bytes; tables as in the hosted
 * sparse extent, always with 4096 entries.
 *
 *   0 magic "COWD"   4 version (1)   8 flags   12 capacity   16 grain size   20 grain directory   24 directory entries
 */
const entriesPerTable = 4096;

export async function readCowdHeader(file: ByteFile): Promise<SparseHeader> {
  const { name } = file;
  const bytes = await readBytes(file, 0, 512);
  if (bytes.toString("latin1", 0, 4) !== "COWD") throw damaged(name, "the COWD magic is missing");
  if (bytes.readUInt32LE(4) !== 1) throw unsupported(name, `COWD version ${bytes.readUInt32LE(4)} is not read (1 is)`);
  const capacityBytes = bytes.readUInt32LE(12) * 512;
  const grainBytes = bytes.readUInt32LE(16) * 512;
  const directoryOffset = bytes.readUInt32LE(20) * 512;
  checkVirtualSize(name, capacityBytes);
  if (grainBytes < 512 || grainBytes > 2 ** 20 || (grainBytes & (grainBytes - 1)) !== 0)
    throw damaged(name, `the grain size is ${grainBytes} bytes, no power of two from 512 bytes to 1 MiB`);
  const entries = Math.ceil(capacityBytes / (grainBytes * entriesPerTable));
  if (bytes.readUInt32LE(24) < entries) throw damaged(name, `the grain directory has ${bytes.readUInt32LE(24)} entries, the disk needs ${entries}`);
  if (directoryOffset === 0 || directoryOffset + entries * 4 > file.sizeBytes)
    throw damaged(name, `the grain directory is at ${directoryOffset}, and does not lie in the file`);
  return {
    capacityBytes,
    grainBytes,
    descriptorOffset: 0,
    descriptorBytes: 0,
    entriesPerTable,
    directoryOffset,
    directoryBytes: entries * 4,
    isCompressed: false,
    hasZeroGrains: false,
    redundantOffset: 0,
    overheadBytes: 0,
  };
}
