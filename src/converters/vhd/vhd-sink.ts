import { randomBytes } from "node:crypto";
import type { ByteSink } from "../../model/byte-sink.ts";
import { HypersdkError } from "../../model/errors.ts";
import { blockSink } from "../block-sink.ts";
import type { DiskSink } from "../disk-sink.ts";
import { rawSink } from "../raw/raw-sink.ts";
import { bitmapBytes, checksum, diskTypes, dynamicHeaderBytes, footerBytes, geometry, maxVhdBytes, unusedEntry } from "./layout.ts";

const blockBytes = 2 * 2 ** 20;
const sectorMapBytes = bitmapBytes(blockBytes);
/** VHD counts seconds from 2000-01-01. */
const epochS = 946_684_800;

/** The size that a VHD gives a disk: whole sectors. @throws where the format ends */
export function vhdSize(sizeBytes: number): number {
  const rounded = Math.ceil(sizeBytes / 512) * 512;
  if (rounded > maxVhdBytes) throw new HypersdkError("Usage", `a VHD holds at most ${maxVhdBytes} bytes, the disk has ${sizeBytes}`, { hint: "write vhdx" });
  return rounded;
}

/** A fixed VHD: the disk as it is, then the footer. */
export function fixedVhdSink(out: ByteSink, sizeBytes: number): DiskSink {
  const size = vhdSize(sizeBytes);
  const disk = rawSink(out, size);
  return {
    ...disk,
    async finish() {
      await disk.finish();
      await out.append(footerOf(size, diskTypes.fixed, -1n));
    },
  };
}

/** A dynamic VHD with blocks of 2 MiB, each in the order in which its data comes; what is not written of a block stays a hole. */
export function dynamicVhdSink(out: ByteSink, sizeBytes: number): DiskSink {
  const size = vhdSize(sizeBytes);
  const entries = Math.max(1, Math.ceil(size / blockBytes));
  const tableBytes = Math.ceil((entries * 4) / 512) * 512;
  const tableOffset = footerBytes + dynamicHeaderBytes;
  const table = Buffer.alloc(tableBytes, 0xff);
  const fillHead = out.reserve(tableOffset + tableBytes);
  return blockSink(out, {
    blockBytes,
    async place(index) {
      table.writeUInt32BE(out.position / 512, index * 4);
      // the bits of a dynamic disk say "in this file": all of the block is
      await out.append(Buffer.alloc(sectorMapBytes, 0xff));
      return out.position;
    },
    async finish() {
      if (out.position / 512 > unusedEntry)
        throw new HypersdkError("Usage", "the data does not fit a VHD, whose blocks are counted in 32 bits", { hint: "write vhdx" });
      const footer = footerOf(size, diskTypes.dynamic, BigInt(footerBytes));
      await out.append(footer);
      await fillHead(Buffer.concat([footer, dynamicHeader(tableOffset, entries), table]));
    },
  });
}

function footerOf(sizeBytes: number, type: number, dataOffset: bigint): Buffer {
  const bytes = Buffer.alloc(footerBytes);
  bytes.write("conectix", 0, "latin1");
  bytes.writeUInt32BE(2, 8);
  bytes.writeUInt32BE(0x10000, 12);
  bytes.writeBigInt64BE(dataOffset, 16);
  bytes.writeUInt32BE(Math.floor(Date.now() / 1000) - epochS, 24);
  // readers that take the size from the geometry make an exception for this creator, whose sizes are exact
  bytes.write("win ", 28, "latin1");
  bytes.writeUInt32BE(0xa0000, 32);
  bytes.write("Wi2k", 36, "latin1");
  bytes.writeBigUInt64BE(BigInt(sizeBytes), 40);
  bytes.writeBigUInt64BE(BigInt(sizeBytes), 48);
  const { cylinders, heads, sectors } = geometry(sizeBytes);
  bytes.writeUInt16BE(cylinders, 56);
  bytes.writeUInt8(heads, 58);
  bytes.writeUInt8(sectors, 59);
  bytes.writeUInt32BE(type, 60);
  randomBytes(16).copy(bytes, 68);
  bytes.writeUInt32BE(checksum(bytes, 64), 64);
  return bytes;
}

function dynamicHeader(tableOffset: number, entries: number): Buffer {
  const bytes = Buffer.alloc(dynamicHeaderBytes);
  bytes.write("cxsparse", 0, "latin1");
  bytes.writeBigInt64BE(-1n, 8);
  bytes.writeBigUInt64BE(BigInt(tableOffset), 16);
  bytes.writeUInt32BE(0x10000, 24);
  bytes.writeUInt32BE(entries, 28);
  bytes.writeUInt32BE(blockBytes, 32);
  bytes.writeUInt32BE(checksum(bytes, 36), 36);
  return bytes;
}
