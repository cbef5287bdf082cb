import { randomBytes } from "node:crypto";
import type { ByteSink } from "../../model/byte-sink.ts";
import { HypersdkError } from "../../model/errors.ts";
import { blockSink } from "../block-sink.ts";
import type { DiskSink } from "../disk-sink.ts";
import { headerBytes, signature, types, vdiBlockBytes, version } from "./layout.ts";

/** Header and table are the head of the file, which is kept in memory until it is known: 7 MiB of table describe this much. */
const maxVdiBytes = 7 * 2 ** 18 * vdiBlockBytes;
/** The data begins on a multiple of the block size, which VirtualBox prefers. */
const alignment = 2 ** 20;

export function vdiSize(sizeBytes: number): number {
  const rounded = Math.ceil(sizeBytes / 512) * 512;
  if (rounded > maxVdiBytes)
    throw new HypersdkError("Usage", `a VDI of more than ${maxVdiBytes} bytes is not written, the disk has ${sizeBytes}`, { hint: "write vhdx or qcow2" });
  return rounded;
}

/** A dynamic VDI with blocks of 1 MiB, in the order in which the data comes. */
export function vdiSink(out: ByteSink, sizeBytes: number): DiskSink {
  const size = vdiSize(sizeBytes);
  const blocks = Math.max(1, Math.ceil(size / vdiBlockBytes));
  const dataOffset = Math.ceil((headerBytes + blocks * 4) / alignment) * alignment;
  const table = Buffer.alloc(dataOffset - headerBytes);
  table.fill(0xff, 0, blocks * 4);
  const fillHead = out.reserve(dataOffset);
  let allocated = 0;

  return blockSink(out, {
    blockBytes: vdiBlockBytes,
    place(index) {
      table.writeUInt32LE(allocated, index * 4);
      return dataOffset + allocated++ * vdiBlockBytes;
    },
    finish: () => fillHead(Buffer.concat([headerOf(size, blocks, allocated, dataOffset), table])),
  });
}

function headerOf(sizeBytes: number, blocks: number, allocated: number, dataOffset: number): Buffer {
  const bytes = Buffer.alloc(headerBytes);
  bytes.write("<<< hypersdk VDI >>>\n", 0, "latin1");
  bytes.writeUInt32LE(signature, 64);
  bytes.writeUInt32LE(version, 68);
  bytes.writeUInt32LE(400, 72);
  bytes.writeUInt32LE(types.dynamic, 76);
  bytes.writeUInt32LE(headerBytes, 340);
  bytes.writeUInt32LE(dataOffset, 344);
  bytes.writeUInt32LE(512, 360);
  bytes.writeBigUInt64LE(BigInt(sizeBytes), 368);
  bytes.writeUInt32LE(vdiBlockBytes, 376);
  bytes.writeUInt32LE(blocks, 384);
  bytes.writeUInt32LE(allocated, 388);
  // VirtualBox refuses a second image with the same id
  uuid().copy(bytes, 392);
  uuid().copy(bytes, 408);
  return bytes;
}

/** A random UUID, version 4, as its 16 bytes. */
function uuid(): Buffer {
  const bytes = randomBytes(16);
  bytes[6] = ((bytes[6] as number) & 0x0f) | 0x40;
  bytes[8] = ((bytes[8] as number) & 0x3f) | 0x80;
  return bytes;
}
