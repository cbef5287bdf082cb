import { deflate } from "node:zlib";
import type { ByteSink } from "../../model/byte-sink.ts";
import { HypersdkError } from "../../model/errors.ts";
import type { DiskSink } from "../disk-sink.ts";
import { entriesPerTable, grainBytes, headerOf, markers } from "./sparse-layout.ts";
import { descriptorSector, descriptorSectors, embeddedDescriptor } from "./write-descriptor.ts";

const deflateWidth = 8;
const overheadSectors = 128;

/**
 * A stream-optimized VMDK, version 3: deflated grains in the order of the disk, each table behind its 512 grains, the directory
 * and a footer at the end. Nothing at the front depends on what follows, so that it can be sent as it is made.
 */
export function streamOptimizedSink(out: ByteSink, sizeBytes: number, fileName: string): DiskSink {
  const size = Math.ceil(sizeBytes / 512) * 512;
  const directory = Buffer.alloc(Math.max(1, Math.ceil(size / (grainBytes * entriesPerTable))) * 4);
  let table = Buffer.alloc(entriesPerTable * 4);
  let tableIndex = -1;
  let hasBegun = false;
  const deflating: { readonly index: number; readonly packed: Promise<Buffer> }[] = [];

  async function begin(): Promise<void> {
    if (hasBegun) return;
    hasBegun = true;
    const head = Buffer.alloc(overheadSectors * 512);
    header("at the end").copy(head);
    embeddedDescriptor("streamOptimized", size, fileName).copy(head, descriptorSector * 512);
    await out.append(head);
  }
  function header(directorySector: number | "at the end"): Buffer {
    return headerOf({
      version: 3,
      flags: 0x30001,
      sizeBytes: size,
      descriptorSector,
      descriptorSectors,
      directorySector,
      redundantSector: 0,
      overheadSectors,
      isCompressed: true,
    });
  }
  async function appendPadded(data: Buffer): Promise<number> {
    const sector = out.position / 512;
    if (sector > 0xffffffff)
      throw new HypersdkError("Usage", "the data does not fit a VMDK, whose grains are counted in 32 bits", { hint: "write qcow2 or vhdx" });
    await out.append(data);
    const rest = data.length % 512;
    if (rest !== 0) await out.append(Buffer.alloc(512 - rest));
    return sector;
  }
  async function leaveTable(): Promise<void> {
    if (tableIndex < 0) return;
    await appendPadded(marker(markers.grainTable, table.length / 512));
    directory.writeUInt32LE(await appendPadded(table), tableIndex * 4);
    table = Buffer.alloc(entriesPerTable * 4);
  }
  async function drain(atMost: number): Promise<void> {
    while (deflating.length > atMost) {
      const { index, packed } = deflating.shift() as (typeof deflating)[number];
      const grain = await packed;
      const inTable = Math.floor(index / entriesPerTable);
      if (inTable !== tableIndex) {
        await leaveTable();
        tableIndex = inTable;
      }
      const head = Buffer.alloc(12);
      head.writeBigUInt64LE(BigInt((index * grainBytes) / 512), 0);
      head.writeUInt32LE(grain.length, 8);
      table.writeUInt32LE(await appendPadded(Buffer.concat([head, grain])), (index % entriesPerTable) * 4);
    }
  }

  return {
    blockBytes: grainBytes,
    async write(offset, data) {
      await begin();
      for (let at = 0; at < data.length; at += grainBytes) {
        // the caller may reuse its buffer, and the last grain of a disk is padded
        const grain = Buffer.alloc(grainBytes);
        data.copy(grain, 0, at, Math.min(data.length, at + grainBytes));
        const packed = pack(grain);
        packed.catch(() => {});
        deflating.push({ index: (offset + at) / grainBytes, packed });
        await drain(deflateWidth);
      }
    },
    settled: () => out.settled(),
    async finish() {
      await begin();
      await drain(0);
      await leaveTable();
      await appendPadded(marker(markers.grainDirectory, Math.ceil(directory.length / 512)));
      const directorySector = await appendPadded(directory);
      await appendPadded(marker(markers.footer, 1));
      await appendPadded(header(directorySector));
      await appendPadded(marker(markers.endOfStream, 0));
    },
  };
}

/** Announces metadata: how many sectors of it follow, no compressed bytes, and of which kind. */
function marker(type: number, sectors: number): Buffer {
  const bytes = Buffer.alloc(512);
  bytes.writeBigUInt64LE(BigInt(sectors), 0);
  bytes.writeUInt32LE(type, 12);
  return bytes;
}

function pack(data: Buffer): Promise<Buffer> {
  return new Promise((resolve, reject) => deflate(data, { chunkSize: grainBytes }, (error, packed) => (error ? reject(error) : resolve(packed))));
}
