/** What both sparse writers share; the offsets of the header stand in sparse-header.ts. */
export const grainBytes: number = 64 * 1024;
export const entriesPerTable = 512;
export const markers = { endOfStream: 0, grainTable: 1, grainDirectory: 2, footer: 3 } as const;

interface HeaderFields {
  readonly version: number;
  readonly flags: number;
  readonly sizeBytes: number;
  readonly descriptorSector: number;
  readonly descriptorSectors: number;
  readonly directorySector: number | "at the end";
  readonly redundantSector: number;
  readonly overheadSectors: number;
  readonly isCompressed: boolean;
}

export function headerOf(fields: HeaderFields): Buffer {
  const bytes = Buffer.alloc(512);
  bytes.write("KDMV", 0, "latin1");
  bytes.writeUInt32LE(fields.version, 4);
  bytes.writeUInt32LE(fields.flags, 8);
  bytes.writeBigUInt64LE(BigInt(fields.sizeBytes / 512), 12);
  bytes.writeBigUInt64LE(BigInt(grainBytes / 512), 20);
  bytes.writeBigUInt64LE(BigInt(fields.descriptorSector), 28);
  bytes.writeBigUInt64LE(BigInt(fields.descriptorSectors), 36);
  bytes.writeUInt32LE(entriesPerTable, 44);
  bytes.writeBigUInt64LE(BigInt(fields.redundantSector), 48);
  bytes.writeBigUInt64LE(fields.directorySector === "at the end" ? 0xffffffffffffffffn : BigInt(fields.directorySector), 56);
  bytes.writeBigUInt64LE(BigInt(fields.overheadSectors), 64);
  // four characters that a transfer in text mode would have changed
  bytes.write("\n \r\n", 73, "latin1");
  bytes.writeUInt16LE(fields.isCompressed ? 1 : 0, 77);
  return bytes;
}
