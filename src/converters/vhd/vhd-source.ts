import { absentBlock, type Block, type BlockMapSource, blockMapSource } from "../block-map.ts";
import type { BlockSource } from "../block-source.ts";
import { type ByteFile, readBytes, sliceOf } from "../byte-file.ts";
import { checkVirtualSize, damaged, narrow, unsupported } from "../checked.ts";
import type { Layer, ParentReference } from "../layer.ts";
import { PagedTable } from "../paged-table.ts";
import { openRaw } from "../raw/raw-source.ts";
import { bitmapBytes, checksum, diskTypes, dynamicHeaderBytes, footerBytes, unusedEntry } from "./layout.ts";

interface Footer {
  readonly dataOffset: bigint;
  readonly creator: string;
  readonly sizeBytes: number;
  readonly type: number;
  readonly id: string;
  /** 512, or 511 in images of Virtual PC before 2004. */
  readonly bytes: number;
}

interface DynamicHeader {
  readonly tableOffset: number;
  readonly entries: number;
  readonly blockBytes: number;
  readonly parentId: string;
  readonly parentName: string;
  readonly locators: Buffer;
}

/** A fixed, dynamic or differencing VHD. Its size is the current size of the footer; the geometry only rounds it. */
export async function openVhd(file: ByteFile): Promise<Layer> {
  const footer = await readFooter(file);
  checkVirtualSize(file.name, footer.sizeBytes);
  const about = { format: "vhd" as const, identity: footer.id };
  if (footer.type === diskTypes.fixed) {
    if (footer.sizeBytes > file.sizeBytes - footer.bytes)
      throw damaged(file.name, `the current size is ${footer.sizeBytes}, but the file holds ${file.sizeBytes - footer.bytes} bytes of data`);
    return { ...about, variant: "fixed", source: await fixedSource(file, footer.sizeBytes), details: { creator: footer.creator } };
  }
  if (footer.type !== diskTypes.dynamic && footer.type !== diskTypes.differencing) throw unsupported(file.name, `VHD disk type ${footer.type} is not read`);
  const header = await readDynamicHeader(file, footer);
  const isDifference = footer.type === diskTypes.differencing;
  const source = blockSourceOf(file, footer.sizeBytes, header, isDifference ? "absent" : "zero");
  return {
    ...about,
    variant: isDifference ? "differencing" : "dynamic",
    source,
    blocks: {
      placed: source.placed,
      // a difference also has locators of its parent somewhere
      ...(isDifference
        ? {}
        : { space: { bytes: file.sizeBytes - footer.bytes - blocksFrom(header), eachBytes: bitmapBytes(header.blockBytes) + header.blockBytes } }),
    },
    details: { creator: footer.creator, blockBytes: header.blockBytes, ...(await defectsOf(file, footer)) },
    ...(isDifference ? { parent: await parentOf(file, header) } : {}),
  };
}

/** Behind the header and the table, whichever comes last. */
function blocksFrom({ tableOffset, entries }: DynamicHeader): number {
  return Math.max(footerBytes + dynamicHeaderBytes, tableOffset + Math.ceil((entries * 4) / 512) * 512);
}

/** A dynamic disk begins with a copy of its footer. */
async function defectsOf(file: ByteFile, footer: Footer): Promise<{ readonly defects?: readonly string[] }> {
  const [copy, last] = [await readBytes(file, 0, footerBytes), await readBytes(file, file.sizeBytes - footer.bytes, footer.bytes)];
  return copy.subarray(0, footer.bytes).equals(last) ? {} : { defects: ["the copy of the footer at the beginning is not the footer"] };
}

async function readFooter(file: ByteFile): Promise<Footer> {
  if (file.sizeBytes < footerBytes) throw damaged(file.name, `a VHD has a footer of 512 bytes, the file has ${file.sizeBytes}`);
  const last = await readBytes(file, file.sizeBytes - footerBytes, footerBytes);
  if (isFooter(last)) return decodeFooter(file.name, last, footerBytes);
  // images of Virtual PC before 2004 end with 511 bytes of it
  const short = last.subarray(1);
  if (isFooter(short)) return decodeFooter(file.name, Buffer.concat([short, Buffer.alloc(1)]), short.length);
  const copy = await readBytes(file, 0, footerBytes);
  if (isFooter(copy)) throw damaged(file.name, "the footer at the end is missing: the file is cut short");
  throw damaged(file.name, "the VHD footer is missing");
}

function isFooter(bytes: Buffer): boolean {
  return bytes.toString("latin1", 0, 8) === "conectix";
}

function decodeFooter(name: string, bytes: Buffer, length: number): Footer {
  const expected = checksum(bytes, 64);
  if (bytes.readUInt32BE(64) !== expected) throw damaged(name, `the footer's checksum is ${hex(bytes.readUInt32BE(64))}, its bytes give ${hex(expected)}`);
  const version = bytes.readUInt32BE(12);
  if (version >>> 16 !== 1) throw unsupported(name, `VHD version ${hex(version)} is not read`);
  return {
    dataOffset: bytes.readBigUInt64BE(16),
    creator: bytes
      .toString("latin1", 28, 32)
      .replace(/[^\x20-\x7e]/g, "")
      .trim(),
    sizeBytes: narrow(name, "current size", bytes.readBigUInt64BE(48)),
    type: bytes.readUInt32BE(60),
    id: bytes.toString("hex", 68, 84),
    bytes: length,
  };
}

/** The data without the footer; a hole stays one. */
async function fixedSource(file: ByteFile, sizeBytes: number): Promise<BlockSource> {
  const raw = await openRaw({
    ...sliceOf(file, 0, sizeBytes, file.name),
    ...(file.descriptor === undefined ? {} : { descriptor: file.descriptor }),
    ...allocation(file, sizeBytes),
  });
  return { ...raw, close: () => file.close() };
}

function allocation(file: ByteFile, sizeBytes: number): { readonly allocatedBytes?: number } {
  return file.allocatedBytes === undefined ? {} : { allocatedBytes: Math.min(file.allocatedBytes, sizeBytes) };
}

async function readDynamicHeader(file: ByteFile, footer: Footer): Promise<DynamicHeader> {
  const { name } = file;
  const bytes = await readBytes(file, narrow(name, "data offset", footer.dataOffset), dynamicHeaderBytes);
  if (bytes.toString("latin1", 0, 8) !== "cxsparse") throw damaged(name, `the dynamic header at ${footer.dataOffset} is missing`);
  const expected = checksum(bytes, 36);
  if (bytes.readUInt32BE(36) !== expected)
    throw damaged(name, `the dynamic header's checksum is ${hex(bytes.readUInt32BE(36))}, its bytes give ${hex(expected)}`);
  const entries = bytes.readUInt32BE(28);
  const blockBytes = bytes.readUInt32BE(32);
  const tableOffset = narrow(name, "table offset", bytes.readBigUInt64BE(16));
  if (blockBytes < 4096 || blockBytes > 2 ** 28 || (blockBytes & (blockBytes - 1)) !== 0)
    throw damaged(name, `the block size is ${blockBytes}, no power of two from 4 KiB to 256 MiB`);
  const needed = Math.ceil(footer.sizeBytes / blockBytes);
  if (entries < needed) throw damaged(name, `the table has ${entries} entries, the disk needs ${needed}`);
  if (tableOffset + entries * 4 > file.sizeBytes) throw damaged(name, `the table offset is ${tableOffset}: ${entries} entries do not lie in the file`);
  return {
    tableOffset,
    entries,
    blockBytes,
    parentId: bytes.toString("hex", 40, 56),
    parentName: utf16be(bytes.subarray(64, 576)),
    locators: bytes.subarray(576, 768),
  };
}

function blockSourceOf(file: ByteFile, sizeBytes: number, { tableOffset, blockBytes, entries }: DynamicHeader, otherwise: "absent" | "zero"): BlockMapSource {
  const table = new PagedTable(file);
  const mapBytes = bitmapBytes(blockBytes);
  return blockMapSource(file, sizeBytes, blockBytes, async (index): Promise<Block> => {
    const sector = (await table.bytes(tableOffset + index * 4, 4)).readUInt32BE(0);
    if (sector === unusedEntry) return absentBlock;
    const offset = sector * 512 + mapBytes;
    const length = Math.min(blockBytes, sizeBytes - index * blockBytes);
    const isOwn = sector * 512 < footerBytes + dynamicHeaderBytes || (sector * 512 < tableOffset + entries * 4 && offset + length > tableOffset);
    if (isOwn) throw damaged(file.name, `block ${index} is at ${sector * 512}, where the image keeps its own structures`);
    if (offset + length > file.sizeBytes)
      throw damaged(file.name, `block ${index} is at ${sector * 512}, and does not lie in the file of ${file.sizeBytes} bytes`);
    const bitmap = await table.bytes(sector * 512, mapBytes);
    const sectors = Math.ceil(length / 512);
    if (allSet(bitmap, sectors)) return { kind: "data", offset };
    return { kind: "data", offset, units: { unitBytes: 512, isPresent: (unit) => ((bitmap[unit >> 3] ?? 0) & (0x80 >> (unit & 7))) !== 0, otherwise } };
  });
}

function allSet(bitmap: Buffer, bits: number): boolean {
  const whole = bits >> 3;
  for (let i = 0; i < whole; i++) if (bitmap[i] !== 0xff) return false;
  const rest = bits & 7;
  return rest === 0 || ((bitmap[whole] ?? 0) | (0xff >> rest)) === 0xff;
}

/** Relative locators first: an absolute path is that of another machine. */
async function parentOf(file: ByteFile, header: DynamicHeader): Promise<ParentReference> {
  const found: { readonly rank: number; readonly name: string }[] = [];
  for (let at = 0; at < header.locators.length; at += 24) {
    const code = header.locators.toString("latin1", at, at + 4);
    const length = header.locators.readUInt32BE(at + 8);
    const rank = ["W2ru", "W2ku"].indexOf(code);
    if (rank < 0 || length === 0) continue;
    const bytes = await readBytes(file, narrow(file.name, "locator offset", header.locators.readBigUInt64BE(at + 16)), length, 4096);
    found.push({ rank, name: bytes.toString("utf16le").replace(/\0.*$/s, "") });
  }
  const names = found.sort((a, b) => a.rank - b.rank).map(({ name }) => name);
  return { names: [...new Set([...names, header.parentName])].filter((name) => name !== ""), identity: header.parentId, format: "vhd" };
}

function utf16be(bytes: Buffer): string {
  return Buffer.from(bytes).swap16().toString("utf16le").replace(/\0.*$/s, "");
}

function hex(value: number): string {
  return `0x${value.toString(16).padStart(8, "0")}`;
}
