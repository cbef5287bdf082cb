import type { ByteSink } from "../../model/byte-sink.ts";
import { HypersdkError } from "../../model/errors.ts";
import type { DiskSink } from "../disk-sink.ts";
import { entriesPerTable, grainBytes, headerOf } from "./sparse-layout.ts";
import { descriptorSector, descriptorSectors, embeddedDescriptor } from "./write-descriptor.ts";

/**
 * A monolithicSparse VMDK: grains as they come, each table and its redundant copy behind the 32 MiB they describe, both directories
 * in the head of the file.
 */
export function monolithicSparseSink(out: ByteSink, sizeBytes: number, fileName: string): DiskSink {
  const size = Math.ceil(sizeBytes / 512) * 512;
  const tables = Math.max(1, Math.ceil(size / (grainBytes * entriesPerTable)));
  const directorySectors = Math.ceil((tables * 4) / 512);
  const redundantSector = descriptorSector + descriptorSectors;
  const directorySector = redundantSector + directorySectors;
  const overheadSectors = Math.ceil((directorySector + directorySectors) / 128) * 128;
  const fillHead = out.reserve(overheadSectors * 512);
  const directory = Buffer.alloc(directorySectors * 512);
  const redundant = Buffer.alloc(directorySectors * 512);
  let table = Buffer.alloc(entriesPerTable * 4);
  let tableIndex = -1;

  async function append(data: Buffer): Promise<number> {
    const sector = out.position / 512;
    if (sector > 0xffffffff)
      throw new HypersdkError("Usage", "the data does not fit a VMDK, whose grains are counted in 32 bits", { hint: "write qcow2 or vhdx" });
    await out.append(data);
    return sector;
  }
  async function leaveTable(): Promise<void> {
    if (tableIndex < 0) return;
    redundant.writeUInt32LE(await append(table), tableIndex * 4);
    directory.writeUInt32LE(await append(table), tableIndex * 4);
    table = Buffer.alloc(entriesPerTable * 4);
  }

  return {
    blockBytes: grainBytes,
    async write(offset, data) {
      for (let at = 0; at < data.length; ) {
        const grain = (offset + at) / grainBytes;
        const inTable = Math.floor(grain / entriesPerTable);
        if (inTable !== tableIndex) {
          await leaveTable();
          tableIndex = inTable;
        }
        const room = (entriesPerTable - (grain % entriesPerTable)) * grainBytes;
        const part = data.subarray(at, at + Math.min(room, data.length - at));
        const sector = await append(part);
        const rest = part.length % grainBytes;
        if (rest !== 0) await out.append(Buffer.alloc(grainBytes - rest));
        for (let i = 0; i * grainBytes < part.length; i++) table.writeUInt32LE(sector + (i * grainBytes) / 512, ((grain + i) % entriesPerTable) * 4);
        at += part.length;
      }
    },
    settled: () => out.settled(),
    async finish() {
      await leaveTable();
      const head = Buffer.alloc(overheadSectors * 512);
      // flags: line endings can be checked, there is a redundant directory
      headerOf({
        version: 1,
        flags: 3,
        sizeBytes: size,
        descriptorSector,
        descriptorSectors,
        directorySector,
        redundantSector,
        overheadSectors,
        isCompressed: false,
      }).copy(head);
      embeddedDescriptor("monolithicSparse", size, fileName).copy(head, descriptorSector * 512);
      redundant.copy(head, redundantSector * 512);
      directory.copy(head, directorySector * 512);
      await fillHead(head);
    },
  };
}
