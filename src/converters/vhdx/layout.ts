/**
 * VHDX, [MS-VHDX] version 8.0. All integers are little endian.
 *
 *   0       "vhdxfile", creator (UTF-16, 512 bytes)
 *  64 KiB   header 1: "head", CRC-32C, sequence (u64), 16 file write id, 32 data write id, 48 log id,
 *           64 log version (u16), 66 version (u16), 68 log length (u32), 72 log offset (u64); 4 KiB
 * 128 KiB   header 2; the one with a right checksum and the higher sequence holds
 * 192 KiB   region table: "regi", CRC-32C, count (u32); entries of 32 from 16: id, 16 offset (u64), 24 length, 28 required; 64 KiB
 * 256 KiB   its copy
 *
 * Metadata table: "metadata", 10 count (u16); entries of 32 from 32: id, 16 offset (u32), 20 length, 24 flags (4 = required)
 *
 * Block allocation table: u64 entries, state in bits 0–2, MiB of the file in bits 20–63; after as many payload entries as one bitmap
 * block of 1 MiB describes comes the entry of that bitmap, least significant bit first
 */
export const headerOffsets = [65_536, 131_072] as const;
export const regionOffsets = [196_608, 262_144] as const;
export const headerBytes = 4096;
export const regionTableBytes = 65_536;
export const metadataTableBytes = 65_536;
export const mebibyte: number = 2 ** 20;
export const maxVhdxBytes: number = 64 * 2 ** 40;

export const regionIds = { bat: "2dc27766-f623-4200-9d64-115e9bfd4a08", metadata: "8b7ca206-4790-4b9a-b8fe-575f050f886e" } as const;
export const itemIds = {
  fileParameters: "caa16737-fa36-4d43-b3b6-33f0aa44e76b",
  virtualSize: "2fa54224-cd1b-4876-b211-5dbed83bf4b8",
  diskId: "beca12ab-b2e6-4523-93ef-c309e000c746",
  logicalSector: "8141bf1d-a96f-4709-ba47-f233a8faab5f",
  physicalSector: "cda348c7-445d-4471-9cc9-e9885251c556",
  parentLocator: "a8d35f2d-b30b-454d-abf7-d3d84834ab0c",
} as const;
export const parentLocatorType = "b04aefb7-d19e-4a81-b789-25b8e9445913";
export const noGuid = "00000000-0000-0000-0000-000000000000";

/** States of a payload block. 0 to 3 hold no data here; of a difference, 0 is the parent's. */
export const blockStates = { notPresent: 0, undefined: 1, zero: 2, unmapped: 3, present: 6, partial: 7 } as const;

/** A GUID as text: the first three fields are stored as little-endian integers. */
export function readGuid(bytes: Buffer, at: number): string {
  const hex = (from: number, to: number, reversed: boolean): string => {
    const part = Buffer.from(bytes.subarray(at + from, at + to));
    return (reversed ? part.reverse() : part).toString("hex");
  };
  return [hex(0, 4, true), hex(4, 6, true), hex(6, 8, true), hex(8, 10, false), hex(10, 16, false)].join("-");
}

export function writeGuid(bytes: Buffer, guid: string, at: number): void {
  const fields = guid.split("-").map((field) => Buffer.from(field, "hex"));
  let position = at;
  for (const [i, field] of fields.entries()) {
    (i < 3 ? field.reverse() : field).copy(bytes, position);
    position += field.length;
  }
}

/** Payload blocks that one bitmap block describes: 2^23 sectors. */
export function chunkRatio(sectorBytes: number, blockBytes: number): number {
  return (2 ** 23 * sectorBytes) / blockBytes;
}
