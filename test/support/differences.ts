import { closeSync, openSync, readFileSync, readSync, writeFileSync, writeSync } from "node:fs";
import { checksum } from "../../src/converters/vhd/layout.ts";
import { crc32cWithout } from "../../src/converters/vhdx/crc32c.ts";
import { itemIds, parentLocatorType, readGuid, writeGuid } from "../../src/converters/vhdx/layout.ts";

/**
 * Differencing images, made of dynamic ones by changing the fields that make them so: nothing in Debian writes them. `sectors` are those
 * that the child has; all others show the parent.
 */
export interface Difference {
  readonly child: string;
  readonly parent: string;
  readonly sectors: ReadonlySet<number>;
}

const MiB = 2 ** 20;

export function makeVhdDifference({ child, parent, sectors }: Difference): void {
  const parentFooter = readFileSync(parent).subarray(-512);
  const bytes = readFileSync(child);
  const header = bytes.subarray(512, 1536);
  const name = parent.split("/").at(-1) as string;
  parentFooter.copy(header, 40, 68, 84);
  header.set(Buffer.from(name, "utf16le").swap16(), 64);
  const locator = Buffer.from(`.\\${name}`, "utf16le");
  header.write("W2ru", 576, "latin1");
  header.writeUInt32BE(512, 580);
  header.writeUInt32BE(locator.length, 584);
  header.writeBigUInt64BE(BigInt(bytes.length - 512), 592);
  header.writeUInt32BE(checksum(header, 36), 36);
  const tableAt = Number(header.readBigUInt64BE(16));
  for (let block = 0; block < header.readUInt32BE(28); block++) {
    const at = bytes.readUInt32BE(tableAt + block * 4);
    if (at === 0xffffffff) continue;
    const bitmap = Buffer.alloc(512);
    for (let i = 0; i < 4096; i++) if (sectors.has(block * 4096 + i)) bitmap[i >> 3] = (bitmap[i >> 3] as number) | (0x80 >> (i & 7));
    bitmap.copy(bytes, at * 512);
  }
  const footer = Buffer.from(bytes.subarray(-512));
  footer.writeUInt32BE(4, 60);
  footer.writeUInt32BE(checksum(footer, 64), 64);
  footer.copy(bytes, 0);
  writeFileSync(child, Buffer.concat([bytes.subarray(0, -512), Buffer.concat([locator, Buffer.alloc(512 - locator.length)]), footer]));
}

export function makeVhdxDifference({ child, parent, sectors }: Difference): void {
  const parentId = newestHeader(parent);
  const bytes = readFileSync(child);
  const metadata = bytes.subarray(2 * MiB, 3 * MiB);
  const values: readonly (readonly [string, string])[] = [
    ["parent_linkage", `{${parentId}}`],
    ["relative_path", `.\\${parent.split("/").at(-1)}`],
  ];
  let text: Buffer = Buffer.alloc(0);
  const locator = Buffer.alloc(20 + values.length * 12);
  writeGuid(locator, parentLocatorType, 0);
  locator.writeUInt16LE(values.length, 18);
  for (const [i, pair] of values.entries()) {
    for (const [j, part] of pair.entries()) {
      const encoded = Buffer.from(part, "utf16le");
      locator.writeUInt32LE(locator.length + text.length, 20 + i * 12 + j * 4);
      locator.writeUInt16LE(encoded.length, 28 + i * 12 + j * 2);
      text = Buffer.concat([text, encoded]);
    }
  }
  const count = metadata.readUInt16LE(10);
  const entry = metadata.subarray(32 + count * 32);
  writeGuid(entry, itemIds.parentLocator, 0);
  entry.writeUInt32LE(70_000, 16);
  entry.writeUInt32LE(locator.length + text.length, 20);
  entry.writeUInt32LE(4, 24);
  Buffer.concat([locator, text]).copy(metadata, 70_000);
  metadata.writeUInt16LE(count + 1, 10);
  for (let i = 0; i < count; i++) {
    if (readGuid(metadata, 32 + i * 32) !== itemIds.fileParameters) continue;
    const at = metadata.readUInt32LE(32 + i * 32 + 16);
    metadata.writeUInt32LE(2, at + 4);
  }
  // one chunk: 2,048 blocks of 2 MiB, then the entry of their bitmap
  const bat = bytes.subarray(3 * MiB);
  for (let block = 0; block < 2048; block++) {
    const payload = bat.readBigUInt64LE(block * 8);
    if ((payload & 7n) === 6n) bat.writeBigUInt64LE(payload + 1n, block * 8);
  }
  bat.writeBigUInt64LE((BigInt(bytes.length / MiB) << 20n) | 6n, 2048 * 8);
  const bitmap = Buffer.alloc(MiB);
  for (const sector of sectors) bitmap[sector >> 3] = (bitmap[sector >> 3] as number) | (1 << (sector & 7));
  writeFileSync(child, Buffer.concat([bytes, bitmap]));
}

function newestHeader(path: string): string {
  const bytes = readFileSync(path);
  const headers = [65_536, 131_072].map((at) => bytes.subarray(at, at + 4096)).filter((header) => crc32cWithout(header, 4) === header.readUInt32LE(4));
  const newest = headers.sort((a, b) => Number(b.readBigUInt64LE(8) - a.readBigUInt64LE(8)))[0] as Buffer;
  return readGuid(newest, 32);
}

/** Blocks that the child has not are the parent's; a VDI has no smaller unit. */
export function makeVdiDifference(child: string, parent: string): void {
  const id = Buffer.alloc(16);
  const from = openSync(parent, "r");
  readSync(from, id, 0, 16, 392);
  closeSync(from);
  const to = openSync(child, "r+");
  writeSync(to, Buffer.from([4, 0, 0, 0]), 0, 4, 76);
  writeSync(to, id, 0, 16, 424);
  closeSync(to);
}

/** An ESX sparse extent with its descriptor: grains of one sector, tables of 4,096. */
export function writeCowd(
  folder: string,
  name: string,
  disk: Buffer,
  descriptor: { readonly cid: string; readonly parentCid: string; readonly parent: string },
): void {
  const sectors = disk.length / 512;
  const tables = Math.ceil(sectors / 4096);
  const header = Buffer.alloc(2048);
  header.write("COWD", 0, "latin1");
  for (const [at, value] of [
    [4, 1],
    [8, 3],
    [12, sectors],
    [16, 1],
    [20, 4],
    [24, tables],
  ] as const)
    header.writeUInt32LE(value, at);
  const directory = Buffer.alloc(Math.ceil((tables * 4) / 512) * 512);
  const parts: Buffer[] = [header, directory];
  let at = (header.length + directory.length) / 512;
  for (let t = 0; t < tables; t++) {
    const table = Buffer.alloc(4096 * 4);
    directory.writeUInt32LE(at, t * 4);
    at += table.length / 512;
    parts.push(table);
    for (let i = 0; i < 4096 && t * 4096 + i < sectors; i++) {
      const sector = disk.subarray((t * 4096 + i) * 512, (t * 4096 + i + 1) * 512);
      if (sector.every((byte) => byte === 0)) continue;
      table.writeUInt32LE(at++, i * 4);
      parts.push(sector);
    }
  }
  writeFileSync(`${folder}/${name}-delta.vmdk`, Buffer.concat(parts));
  writeDescriptor(folder, name, descriptor, "vmfsSparse", `RW ${sectors} VMFSSPARSE "${name}-delta.vmdk"`);
}

/** A space-efficient sparse extent with its descriptor. */
export function writeSeSparse(
  folder: string,
  name: string,
  disk: Buffer,
  descriptor: { readonly cid: string; readonly parentCid: string; readonly parent: string },
): void {
  const grains = Math.ceil(disk.length / 4096);
  const tables = Math.ceil(grains / 4096);
  const [directoryAt, tablesAt] = [16, 24];
  const grainsAt = tablesAt + tables * 64;
  const header = Buffer.alloc(directoryAt * 512);
  const fields: readonly (readonly [number, bigint])[] = [
    [0, 0xcafebaben],
    [8, 0x200000001n],
    [16, BigInt(disk.length / 512)],
    [24, 8n],
    [32, 64n],
    // a volatile header that says the file was closed
    [80, 1n],
    [88, 1n],
    [96, 2n],
    [104, 2n],
    [112, 4n],
    [120, 4n],
    [128, BigInt(directoryAt)],
    [136, 8n],
    [144, BigInt(tablesAt)],
    [152, BigInt(tables * 64)],
    [160, BigInt(grainsAt)],
    [168, 0n],
    [176, BigInt(grainsAt)],
    [184, 0n],
    [192, BigInt(grainsAt)],
    [200, BigInt(grains * 8)],
  ];
  for (const [at, value] of fields) header.writeBigUInt64LE(value, at);
  header.writeBigUInt64LE(0xcafecafen, 512);
  const directory = Buffer.alloc(8 * 512);
  const entries = Buffer.alloc(tables * 64 * 512);
  const data: Buffer[] = [];
  for (let t = 0; t < tables; t++) directory.writeBigUInt64LE((0x10000000n << 32n) | BigInt(t), t * 8);
  for (let i = 0; i < grains; i++) {
    const grain = disk.subarray(i * 4096, (i + 1) * 4096);
    if (grain.every((byte) => byte === 0)) continue;
    const number = BigInt(data.length);
    entries.writeBigUInt64LE((3n << 60n) | ((number & 0xfffn) << 48n) | (number >> 12n), i * 8);
    data.push(Buffer.concat([grain, Buffer.alloc(4096 - grain.length)]));
  }
  writeFileSync(`${folder}/${name}-sesparse.vmdk`, Buffer.concat([header, directory, entries, ...data]));
  writeDescriptor(folder, name, descriptor, "seSparse", `RW ${disk.length / 512} SESPARSE "${name}-sesparse.vmdk"`);
}

/** Without an empty line in front of the extent: qemu-img 7.2 would take the extent twice. */
function writeDescriptor(
  folder: string,
  name: string,
  { cid, parentCid, parent }: { readonly cid: string; readonly parentCid: string; readonly parent: string },
  createType: string,
  extent: string,
): void {
  const hint = parentCid === "ffffffff" ? "" : `parentFileNameHint="${parent}"\n`;
  writeFileSync(
    `${folder}/${name}.vmdk`,
    `# Disk DescriptorFile\nversion=1\nCID=${cid}\nparentCID=${parentCid}\n${hint}createType="${createType}"\n${extent}\n`,
  );
}
