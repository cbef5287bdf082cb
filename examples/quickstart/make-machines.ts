/**
 * Makes two machines of real bytes: `web` with one stream-optimized VMDK, `db` with a .vmx, a flat VMDK to boot from and a
 * stream-optimized one for its data. Each disk is 1 GiB with some 100 MiB of data taken from the running program's own file,
 * and begins with a boot sector that prints a line on the serial port.
 *
 *   node examples/quickstart/make-machines.ts FOLDER [MIB_OF_DATA]
 */
import { closeSync, ftruncateSync, mkdirSync, openSync, readSync, statSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { deflateSync } from "node:zlib";

const sector = 512;
const grainBytes = 65_536;
const tableEntries = 512;
export const diskBytes: number = 2 ** 30;

export function makeMachines(folder: string, dataMiB: number = 104): void {
  mkdirSync(join(folder, "web"), { recursive: true });
  mkdirSync(join(folder, "db"), { recursive: true });
  writeStreamOptimized(join(folder, "web", "web.vmdk"), madeDisk("web", 1, dataMiB));
  writeFlat(join(folder, "db", "system.vmdk"), madeDisk("db", 2, dataMiB));
  writeStreamOptimized(join(folder, "db", "data.vmdk"), madeDisk("db data", 3, dataMiB));
  writeFileSync(
    join(folder, "db", "db.vmx"),
    [
      'config.version = "8"',
      'displayName = "db"',
      'guestOS = "debian12-64"',
      'numvcpus = "2"',
      'memsize = "2048"',
      'scsi0:0.present = "TRUE"',
      'scsi0:0.fileName = "system.vmdk"',
      'scsi0:1.present = "TRUE"',
      'scsi0:1.fileName = "data.vmdk"',
      "",
    ].join("\n"),
  );
}

/** The grains of a disk that hold data, in order; all others are empty. */
interface Disk {
  readonly grains: readonly { readonly index: number; readonly data: Buffer }[];
}

/** A boot sector, then runs of 1 MiB from the program's own file, spread over the disk with holes between. */
function madeDisk(name: string, seed: number, dataMiB: number): Disk {
  const file = openSync(process.execPath, "r");
  const fileBytes = statSync(process.execPath).size;
  const runs = Math.floor(diskBytes / (dataMiB * 2 ** 20));
  const grains: { index: number; data: Buffer }[] = [];
  for (let mib = 0; mib < dataMiB; mib++) {
    for (let part = 0; part < 16; part++) {
      const data = Buffer.alloc(grainBytes);
      readSync(file, data, 0, grainBytes, ((mib * 16 + part) * grainBytes + seed * 7_340_033) % (fileBytes - grainBytes));
      if (grains.length === 0) bootSector(`HYPERSDK-BOOT ${name}`).copy(data);
      grains.push({ index: mib * 16 * runs + part, data });
    }
  }
  closeSync(file);
  return { grains };
}

/** Prints `line` on COM1 and switches QEMU off through its ACPI port. */
export function bootSector(line: string): Buffer {
  const code = Buffer.from([
    0xfa,
    0x31,
    0xc0,
    0x8e,
    0xd8,
    0x8e,
    0xd0,
    0xbc,
    0x00,
    0x7c, // cli; ds = ss = 0; sp = 0x7c00
    0xbe,
    0x00,
    0x00, //                                           mov si, text
    0xac,
    0x84,
    0xc0,
    0x74,
    0x12, //                         next: lodsb; test al, al; jz done
    0x88,
    0xc4,
    0xba,
    0xfd,
    0x03, //                               mov ah, al; mov dx, line status
    0xec,
    0xa8,
    0x20,
    0x74,
    0xfb, //                         wait: in al, dx; test al, 0x20; jz wait
    0xba,
    0xf8,
    0x03,
    0x88,
    0xe0,
    0xee, //                         mov dx, data; mov al, ah; out dx, al
    0xeb,
    0xe9, //                                                 jmp next
    0xba,
    0x04,
    0x06,
    0xb8,
    0x00,
    0x20,
    0xef, //             done: out 0x604, 0x2000
    0xf4,
    0xeb,
    0xfd, //                                           hlt; jmp back to it
  ]);
  code.writeUInt16LE(0x7c00 + code.length, 11);
  const boot = Buffer.alloc(sector);
  code.copy(boot);
  boot.write(`${line}\r\n\0`, code.length, "latin1");
  boot.writeUInt16LE(0xaa55, 510);
  return boot;
}

/** monolithicFlat: a text descriptor, and the bytes of the disk in a file beside it. */
function writeFlat(path: string, disk: Disk): void {
  const flat = path.replace(/\.vmdk$/, "-flat.vmdk");
  const file = openSync(flat, "w");
  ftruncateSync(file, diskBytes);
  for (const { index, data } of disk.grains) writeSync(file, data, 0, data.length, index * grainBytes);
  closeSync(file);
  writeFileSync(path, descriptor("monolithicFlat", `RW ${diskBytes / sector} FLAT "${flat.split("/").at(-1)}" 0`));
}

/**
 * streamOptimized, VMware Virtual Disk Format 5.0: header, descriptor, deflated grains each behind a marker, grain tables and
 * the directory behind them, then the footer, which says where the directory is.
 */
function writeStreamOptimized(path: string, disk: Disk): void {
  const file = openSync(path, "w");
  let at = 0;
  const append = (bytes: Buffer): number => {
    const start = at / sector;
    const padded = Buffer.alloc(Math.ceil(bytes.length / sector) * sector);
    bytes.copy(padded);
    at += writeSync(file, padded);
    return start;
  };
  const descriptorSectors = 20;
  const text = Buffer.alloc(descriptorSectors * sector);
  text.write(descriptor("streamOptimized", `RW ${diskBytes / sector} SPARSE "${path.split("/").at(-1)}"`), "latin1");
  append(sparseHeader(0xffffffffffffffffn, descriptorSectors));
  append(text);
  while (at < 128 * sector) append(Buffer.alloc(sector));

  const tables: Buffer[] = [];
  for (const { index, data } of disk.grains) {
    const packed = deflateSync(data, { level: 1 });
    const marker = Buffer.alloc(12);
    marker.writeBigUInt64LE(BigInt((index * grainBytes) / sector), 0);
    marker.writeUInt32LE(packed.length, 8);
    const table = Math.floor(index / tableEntries);
    tables[table] ??= Buffer.alloc(tableEntries * 4);
    tables[table].writeUInt32LE(append(Buffer.concat([marker, packed])), (index % tableEntries) * 4);
  }
  const directory = Buffer.alloc(Math.ceil(diskBytes / grainBytes / tableEntries) * 4);
  for (const [i, table] of tables.entries()) {
    if (!table) continue;
    append(markerOf(4, 1));
    directory.writeUInt32LE(append(table), i * 4);
  }
  append(markerOf(1, 2));
  const directoryAt = append(directory);
  append(markerOf(1, 3));
  append(sparseHeader(BigInt(directoryAt), descriptorSectors));
  append(Buffer.alloc(sector));
  closeSync(file);
}

/** Marker of metadata: sectors that follow, then the type: 1 grain table, 2 grain directory, 3 footer. */
function markerOf(sectors: number, type: number): Buffer {
  const marker = Buffer.alloc(sector);
  marker.writeBigUInt64LE(BigInt(sectors), 0);
  marker.writeUInt32LE(type, 12);
  return marker;
}

function sparseHeader(directory: bigint, descriptorSectors: number): Buffer {
  const header = Buffer.alloc(sector);
  header.write("KDMV", 0, "latin1");
  header.writeUInt32LE(3, 4);
  header.writeUInt32LE(0x30001, 8);
  header.writeBigUInt64LE(BigInt(diskBytes / sector), 12);
  header.writeBigUInt64LE(BigInt(grainBytes / sector), 20);
  header.writeBigUInt64LE(1n, 28);
  header.writeBigUInt64LE(BigInt(descriptorSectors), 36);
  header.writeUInt32LE(tableEntries, 44);
  header.writeBigUInt64LE(directory, 56);
  header.writeBigUInt64LE(128n, 64);
  header.write("\n \r\n", 73, "latin1");
  header.writeUInt16LE(1, 77);
  return header;
}

function descriptor(createType: string, extent: string): string {
  return [
    "# Disk DescriptorFile",
    "version=1",
    "CID=fffffffe",
    "parentCID=ffffffff",
    `createType="${createType}"`,
    "",
    "# Extent description",
    extent,
    "",
    "# The Disk Data Base",
    "#DDB",
    'ddb.virtualHWVersion = "13"',
    `ddb.geometry.cylinders = "${Math.floor(diskBytes / sector / 16 / 63)}"`,
    'ddb.geometry.heads = "16"',
    'ddb.geometry.sectors = "63"',
    'ddb.adapterType = "lsilogic"',
    "",
  ].join("\n");
}

if (process.argv[1] && import.meta.filename === process.argv[1])
  makeMachines(process.argv[2] ?? "machines", process.argv[3] ? Number(process.argv[3]) : undefined);
