import { absentBlock, type Block, blockMapSource, zeroBlock } from "../block-map.ts";
import { type ByteFile, readBytes } from "../byte-file.ts";
import { checkVirtualSize, damaged, narrow, unsupported } from "../checked.ts";
import type { Layer, ParentReference } from "../layer.ts";
import { PagedTable } from "../paged-table.ts";
import { crc32cWithout } from "./crc32c.ts";
import {
  blockStates,
  chunkRatio,
  headerBytes,
  headerOffsets,
  itemIds,
  mebibyte,
  metadataTableBytes,
  noGuid,
  parentLocatorType,
  readGuid,
  regionIds,
  regionOffsets,
  regionTableBytes,
} from "./layout.ts";
import { withReplayedLog } from "./log.ts";

interface Region {
  readonly offset: number;
  readonly length: number;
}

interface Metadata {
  readonly sizeBytes: number;
  readonly blockBytes: number;
  readonly sectorBytes: number;
  readonly keepsBlocks: boolean;
  readonly parent: ParentReference | undefined;
}

/** A fixed, dynamic or differencing VHDX. A log that is not empty is replayed in memory, never into the file. */
export async function openVhdx(raw: ByteFile): Promise<Layer> {
  const defects: string[] = [];
  const header = await readHeader(raw, defects);
  const { file, entries } = await withReplayedLog(raw, header.log);
  const regions = await readRegions(file, defects);
  const metadata = await readMetadata(file, regions.metadata);
  const { sizeBytes, blockBytes, sectorBytes, parent } = metadata;
  const ratio = chunkRatio(sectorBytes, blockBytes);
  const blocks = Math.ceil(sizeBytes / blockBytes);
  // a difference also has the last chunk's bitmap
  const needed = parent ? Math.ceil(blocks / ratio) * (ratio + 1) : blocks + Math.floor(Math.max(0, blocks - 1) / ratio);
  if (needed * 8 > regions.bat.length) throw damaged(file.name, `the block table has ${regions.bat.length} bytes, the disk needs ${needed * 8}`);
  const table = new PagedTable(file);

  const entryAt = async (index: number, what: string, bytes: number): Promise<{ readonly state: number; readonly offset: number }> => {
    const entry = (await table.bytes(regions.bat.offset + index * 8, 8)).readBigUInt64LE(0);
    const state = Number(entry & 7n);
    const offset = Number(entry >> 20n) * mebibyte;
    if (state >= blockStates.present && (offset < mebibyte || offset + bytes > file.sizeBytes))
      throw damaged(file.name, `${what} is at ${offset}, and does not lie in the file of ${file.sizeBytes} bytes`);
    const isOwn = [regions.bat, regions.metadata].some((region) => offset < region.offset + region.length && offset + bytes > region.offset);
    if (state >= blockStates.present && isOwn) throw damaged(file.name, `${what} is at ${offset}, where the image keeps its own structures`);
    return { state, offset };
  };
  const blockAt = async (index: number): Promise<Block> => {
    const chunk = Math.floor(index / ratio);
    const { state, offset } = await entryAt(index + chunk, `block ${index}`, Math.min(blockBytes, sizeBytes - index * blockBytes));
    switch (state) {
      case blockStates.present:
        return { kind: "data", offset };
      case blockStates.notPresent:
        return absentBlock;
      case blockStates.undefined:
      case blockStates.zero:
      case blockStates.unmapped:
        return zeroBlock;
      case blockStates.partial: {
        if (!parent) throw damaged(file.name, `block ${index} is partly present, but the disk has no parent`);
        const bitmap = await entryAt(chunk * (ratio + 1) + ratio, `the bitmap of chunk ${chunk}`, mebibyte);
        if (bitmap.state !== blockStates.present) throw damaged(file.name, `block ${index} is partly present, but its bitmap is not`);
        const bytes = blockBytes / sectorBytes / 8;
        const bits = await table.bytes(bitmap.offset + (index % ratio) * bytes, bytes);
        return {
          kind: "data",
          offset,
          units: { unitBytes: sectorBytes, isPresent: (unit) => ((bits[unit >> 3] ?? 0) & (1 << (unit & 7))) !== 0, otherwise: "absent" },
        };
      }
      default:
        throw damaged(file.name, `block ${index} has the state ${state}, which is none`);
    }
  };

  const source = blockMapSource(file, sizeBytes, blockBytes, blockAt);
  const structures = [regions.bat, regions.metadata, { offset: header.log.offset, length: header.log.bytes }];
  return {
    format: "vhdx",
    variant: parent ? "differencing" : metadata.keepsBlocks ? "fixed" : "dynamic",
    source,
    blocks: {
      placed: source.placed,
      // a difference also has bitmaps
      ...(parent ? {} : { space: { bytes: file.sizeBytes - Math.max(...structures.map(({ offset, length }) => offset + length)), eachBytes: blockBytes } }),
    },
    identity: header.dataWriteId,
    details: {
      creator: await creatorOf(file),
      blockBytes,
      sectorBytes,
      ...(defects.length > 0 ? { defects } : {}),
      ...(entries > 0 ? { notes: [`the log was not empty: ${entries} entries were replayed in memory`] } : {}),
    },
    ...(parent ? { parent } : {}),
  };
}

interface Header {
  readonly sequence: bigint;
  readonly dataWriteId: string;
  readonly log: { readonly id: string; readonly offset: number; readonly bytes: number };
}

/** The newer of the two headers whose checksum is right. */
async function readHeader(file: ByteFile, defects: string[]): Promise<Header> {
  const { name } = file;
  if ((await readBytes(file, 0, 8)).toString("latin1") !== "vhdxfile") throw damaged(name, "the VHDX file identifier is missing");
  let newest: Header | undefined;
  for (const at of headerOffsets) {
    const bytes = await readBytes(file, at, headerBytes);
    if (bytes.toString("latin1", 0, 4) !== "head" || crc32cWithout(bytes, 4) !== bytes.readUInt32LE(4)) {
      defects.push(`the header at ${at} has a wrong checksum; the other one is used`);
      continue;
    }
    const sequence = bytes.readBigUInt64LE(8);
    if (newest && newest.sequence >= sequence) continue;
    const version = bytes.readUInt16LE(66);
    if (version !== 1) throw unsupported(name, `VHDX version ${version} is not read (1 is)`);
    const id = readGuid(bytes, 48);
    if (id !== noGuid && bytes.readUInt16LE(64) !== 0) throw unsupported(name, `log version ${bytes.readUInt16LE(64)} is not read (0 is)`);
    newest = {
      sequence,
      dataWriteId: readGuid(bytes, 32),
      log: { id, offset: narrow(name, "the log's offset", bytes.readBigUInt64LE(72)), bytes: bytes.readUInt32LE(68) },
    };
  }
  if (!newest) throw damaged(name, "neither of the two headers has a right checksum");
  return newest;
}

async function readRegions(file: ByteFile, defects: string[]): Promise<{ readonly bat: Region; readonly metadata: Region }> {
  const { name } = file;
  let table: Buffer | undefined;
  for (const at of regionOffsets) {
    const bytes = await readBytes(file, at, regionTableBytes);
    if (bytes.toString("latin1", 0, 4) === "regi" && crc32cWithout(bytes, 4) === bytes.readUInt32LE(4)) table ??= bytes;
    else defects.push(`the region table at ${at} has a wrong checksum; the other one is used`);
  }
  if (!table) throw damaged(name, "neither of the two region tables has a right checksum");
  const count = table.readUInt32LE(8);
  if (count > 2047) throw damaged(name, `the region table has ${count} entries, more than 2047`);
  const regions = new Map<string, Region>();
  for (let i = 0; i < count; i++) {
    const at = 16 + i * 32;
    const id = readGuid(table, at);
    const region = { offset: narrow(name, "a region's offset", table.readBigUInt64LE(at + 16)), length: table.readUInt32LE(at + 24) };
    const isKnown = id === regionIds.bat || id === regionIds.metadata;
    if (!isKnown && table.readUInt32LE(at + 28) & 1) throw unsupported(name, `the region ${id} is required and unknown`);
    if (region.offset < mebibyte || region.offset % mebibyte !== 0 || region.offset + region.length > file.sizeBytes)
      throw damaged(name, `the region ${id} at ${region.offset} with ${region.length} bytes does not lie in the file`);
    for (const [otherId, other] of regions)
      if (otherId === id || (region.offset < other.offset + other.length && other.offset < region.offset + region.length))
        throw damaged(name, `the regions ${otherId} and ${id} overlap`);
    regions.set(id, region);
  }
  const [bat, metadata] = [regions.get(regionIds.bat), regions.get(regionIds.metadata)];
  if (!bat || !metadata) throw damaged(name, `the region table names no ${bat ? "metadata" : "block table"}`);
  return { bat, metadata };
}

async function readMetadata(file: ByteFile, region: Region): Promise<Metadata> {
  const { name } = file;
  const table = await readBytes(file, region.offset, Math.min(region.length, metadataTableBytes));
  if (table.length < metadataTableBytes || table.toString("latin1", 0, 8) !== "metadata") throw damaged(name, "the metadata table is missing");
  const count = table.readUInt16LE(10);
  if (count > 2047) throw damaged(name, `the metadata table has ${count} entries, more than 2047`);
  const items = new Map<string, Region>();
  for (let i = 0; i < count; i++) {
    const at = 32 + i * 32;
    const id = readGuid(table, at);
    const [offset, length, flags] = [table.readUInt32LE(at + 16), table.readUInt32LE(at + 20), table.readUInt32LE(at + 24)];
    const isKnown = (Object.values(itemIds) as string[]).includes(id);
    if (!isKnown && flags & 4) throw unsupported(name, `the metadata item ${id} is required and unknown`);
    if (length > 0 && (offset < metadataTableBytes || offset + length > region.length))
      throw damaged(name, `the metadata item ${id} at ${offset} with ${length} bytes does not lie in its region`);
    items.set(id, { offset: region.offset + offset, length });
  }
  const item = async (id: string, what: string, bytes: number): Promise<Buffer> => {
    const found = items.get(id);
    if (!found || found.length < bytes) throw damaged(name, `the metadata item "${what}" is missing`);
    return readBytes(file, found.offset, Math.min(found.length, mebibyte));
  };
  const parameters = await item(itemIds.fileParameters, "file parameters", 8);
  const blockBytes = parameters.readUInt32LE(0);
  const flags = parameters.readUInt32LE(4);
  const sizeBytes = narrow(name, "the virtual disk size", (await item(itemIds.virtualSize, "virtual disk size", 8)).readBigUInt64LE(0));
  const sectorBytes = (await item(itemIds.logicalSector, "logical sector size", 4)).readUInt32LE(0);
  checkVirtualSize(name, sizeBytes);
  if (blockBytes < mebibyte || blockBytes > 256 * mebibyte || (blockBytes & (blockBytes - 1)) !== 0)
    throw damaged(name, `the block size is ${blockBytes}, no power of two from 1 to 256 MiB`);
  if (sectorBytes !== 512 && sectorBytes !== 4096) throw damaged(name, `the logical sector size is ${sectorBytes}, neither 512 nor 4096`);
  if (sizeBytes % sectorBytes !== 0) throw damaged(name, `the virtual disk size is ${sizeBytes}, no multiple of ${sectorBytes}`);
  const hasParent = (flags & 2) !== 0;
  return {
    sizeBytes,
    blockBytes,
    sectorBytes,
    keepsBlocks: (flags & 1) !== 0,
    parent: hasParent ? decodeParent(name, await item(itemIds.parentLocator, "parent locator", 20)) : undefined,
  };
}

/** Six keys are known. */
const maxLocatorEntries = 64;

/** Keys and values in UTF-16; a relative path first, since an absolute one is that of another machine. */
function decodeParent(name: string, locator: Buffer): ParentReference {
  if (readGuid(locator, 0) !== parentLocatorType) throw unsupported(name, `the parent locator's type ${readGuid(locator, 0)} is not read`);
  const count = locator.readUInt16LE(18);
  if (count > maxLocatorEntries) throw damaged(name, `the parent locator has ${count} entries, more than ${maxLocatorEntries}`);
  const values = new Map<string, string>();
  for (let i = 0; i < count; i++) {
    const at = 20 + i * 12;
    if (at + 12 > locator.length) throw damaged(name, "the parent locator is cut short");
    const text = (offset: number, length: number): string => {
      if (offset + length > locator.length) throw damaged(name, "the parent locator points outside of itself");
      return locator.toString("utf16le", offset, offset + length);
    };
    values.set(text(locator.readUInt32LE(at), locator.readUInt16LE(at + 8)), text(locator.readUInt32LE(at + 4), locator.readUInt16LE(at + 10)));
  }
  const names = ["relative_path", "volume_path", "absolute_win32_path"].flatMap((key) => values.get(key) ?? []);
  const linkage = values.get("parent_linkage")?.replace(/[{}]/g, "").toLowerCase();
  if (linkage === undefined) throw damaged(name, "the parent locator has no parent_linkage");
  return { names, identity: linkage, format: "vhdx" };
}

async function creatorOf(file: ByteFile): Promise<string> {
  return (await readBytes(file, 8, 512)).toString("utf16le").replace(/\0.*$/s, "");
}
