/**
 * VHD, Virtual Hard Disk Image Format Specification 1.0. All integers are big endian.
 *
 * Footer, 512 bytes at the end of the file; dynamic and differencing disks have a copy at the start
 *   0 "conectix"    8 features (2)    12 version 0x10000   16 data offset (u64)     24 time stamp (s since 2000)
 *  28 creator      32 creator version 36 creator host      40 original size (u64)   48 current size (u64)
 *  56 cylinders (u16), heads (u8), sectors (u8)            60 type                  64 checksum       68 unique id
 *
 * Dynamic header, 1024 bytes at the footer's data offset
 *   0 "cxsparse"    8 next (-1)       16 table offset      24 version 0x10000       28 table entries  32 block size
 *  36 checksum     40 parent id       56 parent time stamp 64 parent name (UTF-16BE, 512 bytes)
 * 576 eight locators of 24: platform code, space, length, 0, offset (u64)
 *
 * A table entry is the sector of a block, or -1; a block is a bitmap of its sectors, most significant bit first, padded to a
 * sector, then its data.
 */
export const footerBytes = 512;
export const dynamicHeaderBytes = 1024;
export const unusedEntry = 0xffffffff;
export const diskTypes = { fixed: 2, dynamic: 3, differencing: 4 } as const;
/** The sector after the last that a 32-bit table can describe, 2040 GiB. */
export const maxVhdBytes: number = 0xff000000 * 512;

/** One's complement of the sum of all bytes, the checksum's own four left out. */
export function checksum(bytes: Buffer, at: number): number {
  let sum = 0;
  for (const [i, byte] of bytes.entries()) if (i < at || i >= at + 4) sum += byte;
  return ~sum >>> 0;
}

/** Bytes of a block's sector bitmap, padded to whole sectors. */
export function bitmapBytes(blockBytes: number): number {
  return Math.ceil(blockBytes / 512 / 8 / 512) * 512;
}

/** Cylinders, heads and sectors for a size, the appendix of the specification. */
export function geometry(sizeBytes: number): { readonly cylinders: number; readonly heads: number; readonly sectors: number } {
  const total = Math.min(Math.floor(sizeBytes / 512), 65_535 * 16 * 255);
  if (total >= 65_535 * 16 * 63) return { cylinders: Math.floor(Math.floor(total / 255) / 16), heads: 16, sectors: 255 };
  let [sectors, heads] = [17, Math.max(4, Math.ceil(Math.floor(total / 17) / 1024))];
  let tracks = Math.floor(total / sectors);
  if (tracks >= heads * 1024 || heads > 16) {
    [sectors, heads] = [31, 16];
    tracks = Math.floor(total / sectors);
  }
  if (tracks >= heads * 1024) {
    [sectors, heads] = [63, 16];
    tracks = Math.floor(total / sectors);
  }
  return { cylinders: Math.floor(tracks / heads), heads, sectors };
}
