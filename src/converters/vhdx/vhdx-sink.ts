import { randomUUID } from "node:crypto";
import type { ByteSink } from "../../model/byte-sink.ts";
import { HypersdkError } from "../../model/errors.ts";
import { blockSink } from "../block-sink.ts";
import type { DiskSink } from "../disk-sink.ts";
import { crc32cWithout } from "./crc32c.ts";
import {
  blockStates,
  chunkRatio,
  headerBytes,
  headerOffsets,
  itemIds,
  maxVhdxBytes,
  mebibyte,
  metadataTableBytes,
  noGuid,
  regionIds,
  regionOffsets,
  regionTableBytes,
  writeGuid,
} from "./layout.ts";

/** Log, metadata and block table, each on whole MiB behind the headers. */
const logOffset = mebibyte;
const metadataOffset = 2 * mebibyte;
const batOffset = 3 * mebibyte;
/** Larger disks get larger blocks, so that the table stays in the head of the file. */
const maxEntries = 2 ** 19;
const sectorBytes = 512;

/** The size that a VHDX gives a disk: whole sectors. @throws where the format ends */
export function vhdxSize(sizeBytes: number): number {
  const rounded = Math.ceil(sizeBytes / sectorBytes) * sectorBytes;
  if (rounded > maxVhdxBytes) throw new HypersdkError("Usage", `a VHDX holds at most ${maxVhdxBytes} bytes, the disk has ${sizeBytes}`);
  return rounded;
}

/** A VHDX with an empty log. Of a fixed one every block has its place in the file, in order. */
export function vhdxSink(out: ByteSink, sizeBytes: number, subformat: "dynamic" | "fixed"): DiskSink {
  const size = vhdxSize(sizeBytes);
  let blockBytes = 2 * mebibyte;
  while (size / blockBytes > maxEntries) blockBytes *= 2;
  const ratio = chunkRatio(sectorBytes, blockBytes);
  const blocks = Math.ceil(size / blockBytes);
  const entries = blocks + Math.floor(Math.max(0, blocks - 1) / ratio);
  const batBytes = Math.max(1, Math.ceil((entries * 8) / mebibyte)) * mebibyte;
  const bat = Buffer.alloc(batBytes);
  const fillHead = out.reserve(batOffset + batBytes);
  const dataOffset = batOffset + batBytes;
  let placed = 0;

  const place = (index: number): number => {
    const dataAt = dataOffset + placed++ * blockBytes;
    bat.writeBigUInt64LE((BigInt(dataAt / mebibyte) << 20n) | BigInt(blockStates.present), (index + Math.floor(index / ratio)) * 8);
    return dataAt;
  };
  const placeUpTo = (index: number): number => {
    while (placed < index) place(placed);
    return place(index);
  };

  return blockSink(out, {
    blockBytes,
    place: subformat === "fixed" ? placeUpTo : place,
    async finish() {
      if (subformat === "fixed") while (placed < blocks) place(placed);
      const end = dataOffset + placed * blockBytes;
      if (out.position < end) await out.skip(end - out.position);
      await fillHead(Buffer.concat([headSection(batBytes), Buffer.alloc(metadataOffset - logOffset), metadata(size, blockBytes, subformat), bat]));
    },
  });
}

/** Identifier, two headers, two region tables: the first MiB. */
function headSection(batBytes: number): Buffer {
  const bytes = Buffer.alloc(mebibyte);
  bytes.write("vhdxfile", 0, "latin1");
  bytes.write("hypersdk", 8, "utf16le");
  const [fileWriteId, dataWriteId] = [randomUUID(), randomUUID()];
  for (const [i, at] of headerOffsets.entries()) {
    const header = bytes.subarray(at, at + headerBytes);
    header.write("head", 0, "latin1");
    header.writeBigUInt64LE(BigInt(i + 1), 8);
    writeGuid(header, fileWriteId, 16);
    writeGuid(header, dataWriteId, 32);
    writeGuid(header, noGuid, 48);
    header.writeUInt16LE(1, 66);
    header.writeUInt32LE(metadataOffset - logOffset, 68);
    header.writeBigUInt64LE(BigInt(logOffset), 72);
    header.writeUInt32LE(crc32cWithout(header, 4), 4);
  }
  for (const at of regionOffsets) {
    const table = bytes.subarray(at, at + regionTableBytes);
    table.write("regi", 0, "latin1");
    table.writeUInt32LE(2, 8);
    const region = (position: number, id: string, offset: number, length: number): void => {
      writeGuid(table, id, position);
      table.writeBigUInt64LE(BigInt(offset), position + 16);
      table.writeUInt32LE(length, position + 24);
      table.writeUInt32LE(1, position + 28);
    };
    region(16, regionIds.bat, batOffset, batBytes);
    region(48, regionIds.metadata, metadataOffset, batOffset - metadataOffset);
    table.writeUInt32LE(crc32cWithout(table, 4), 4);
  }
  return bytes;
}

function metadata(sizeBytes: number, blockBytes: number, subformat: "dynamic" | "fixed"): Buffer {
  const bytes = Buffer.alloc(batOffset - metadataOffset);
  bytes.write("metadata", 0, "latin1");
  const u32 = (...values: readonly number[]): Buffer => {
    const item = Buffer.alloc(values.length * 4);
    for (const [i, value] of values.entries()) item.writeUInt32LE(value, i * 4);
    return item;
  };
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(sizeBytes));
  const diskId = Buffer.alloc(16);
  writeGuid(diskId, randomUUID(), 0);
  // flags: 2 virtual disk (not the file), 4 required
  const items: readonly (readonly [id: string, flags: number, value: Buffer])[] = [
    [itemIds.fileParameters, 4, u32(blockBytes, subformat === "fixed" ? 1 : 0)],
    [itemIds.virtualSize, 6, size],
    [itemIds.diskId, 6, diskId],
    [itemIds.logicalSector, 6, u32(sectorBytes)],
    [itemIds.physicalSector, 6, u32(4096)],
  ];
  bytes.writeUInt16LE(items.length, 10);
  let offset = metadataTableBytes;
  for (const [i, [id, flags, value]] of items.entries()) {
    const at = 32 + i * 32;
    writeGuid(bytes, id, at);
    bytes.writeUInt32LE(offset, at + 16);
    bytes.writeUInt32LE(value.length, at + 20);
    bytes.writeUInt32LE(flags, at + 24);
    value.copy(bytes, offset);
    offset += value.length;
  }
  return bytes;
}
