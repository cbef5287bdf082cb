import type { ByteFile } from "../byte-file.ts";
import { readBytes } from "../byte-file.ts";
import { checkVirtualSize, damaged, narrow, unsupported } from "../checked.ts";
import { autoclear, extensions, incompatible, limits, magic } from "./layout.ts";

interface BitmapDirectory {
  readonly count: number;
  readonly offset: number;
  readonly bytes: number;
  /** False when a writer that knows no bitmaps has changed the image since: they are worthless then. */
  readonly isCurrent: boolean;
}

export interface Qcow2Header {
  readonly version: 2 | 3;
  readonly clusterBits: number;
  readonly clusterBytes: number;
  readonly virtualBytes: number;
  readonly l1Offset: number;
  readonly l1Entries: number;
  readonly refcountTableOffset: number;
  readonly refcountTableClusters: number;
  readonly refcountBits: number;
  readonly snapshots: number;
  readonly isDirty: boolean;
  readonly compression: "zlib" | "zstd";
  /** Bytes of an L2 entry: 16 where each cluster has 32 subclusters with states of their own. */
  readonly entryBytes: 8 | 16;
  /** Where the persistent dirty bitmaps are listed; undefined where there are none. */
  readonly bitmaps: BitmapDirectory | undefined;
  readonly backing: { readonly name: string; readonly format: string | undefined } | undefined;
}

/** Reads and checks the header. Refuses by name what this version does not read. */
export async function readHeader(file: ByteFile): Promise<Qcow2Header> {
  const { name } = file;
  if (file.sizeBytes < 72) throw damaged(name, `a QCOW2 header has 72 bytes, the file ${file.sizeBytes}`);
  const head = await readBytes(file, 0, Math.min(file.sizeBytes, 112));
  if (head.readUInt32BE(0) !== magic) throw damaged(name, "the QCOW2 magic is missing");
  const version = head.readUInt32BE(4);
  if (version !== 2 && version !== 3) throw unsupported(name, `QCOW2 version ${version} is not read (2 and 3 are)`);
  if (version === 3 && head.length < 104) throw damaged(name, `a QCOW2 version 3 header has 104 bytes, the file ${file.sizeBytes}`);

  if (head.readUInt32BE(32) !== 0) throw unsupported(name, `the image is encrypted (method ${head.readUInt32BE(32)})`);
  const clusterBits = head.readUInt32BE(20);
  if (clusterBits < limits.minClusterBits || clusterBits > limits.maxClusterBits)
    throw damaged(name, `cluster_bits is ${clusterBits}, not ${limits.minClusterBits} to ${limits.maxClusterBits}`);
  const virtualBytes = narrow(name, "size", head.readBigUInt64BE(24));
  checkVirtualSize(name, virtualBytes);
  const clusterBytes = 2 ** clusterBits;

  const bits = version === 3 ? head.readBigUInt64BE(72) : 0n;
  if (bits & incompatible.corrupt) throw damaged(name, "the image is marked corrupt");
  if (bits & incompatible.dataFile) throw unsupported(name, "the image keeps its data in an external file, which is refused");
  const unknown = bits & ~(incompatible.dirty | incompatible.compressionType | incompatible.extendedL2);
  if (unknown !== 0n) throw unsupported(name, `the incompatible feature bits 0x${unknown.toString(16)} are unknown`);
  const compressionType = bits & incompatible.compressionType ? (head[104] ?? 0) : 0;
  if (compressionType > 1) throw unsupported(name, `compression type ${compressionType} is not read (0, zlib, and 1, zstd, are)`);
  const entryBytes = bits & incompatible.extendedL2 ? 16 : 8;
  if (entryBytes === 16 && clusterBits < 14) throw damaged(name, `cluster_bits is ${clusterBits}, and extended L2 entries need 14 or more`);
  const refcountOrder = version === 3 ? head.readUInt32BE(96) : 4;
  if (refcountOrder > 6) throw damaged(name, `refcount_order is ${refcountOrder}, more than 6`);

  const l1Entries = head.readUInt32BE(36);
  const l1Offset = narrow(name, "l1_table_offset", head.readBigUInt64BE(40));
  const needed = Math.ceil(virtualBytes / (clusterBytes * (clusterBytes / entryBytes)));
  if (l1Entries < needed) throw damaged(name, `l1_size is ${l1Entries}, but the disk needs ${needed}`);
  if (l1Entries * 8 > limits.maxL1Bytes) throw damaged(name, `l1_size is ${l1Entries}, more than ${limits.maxL1Bytes / 8}`);
  if (l1Offset % clusterBytes !== 0 || l1Offset + l1Entries * 8 > file.sizeBytes)
    throw damaged(name, `l1_table_offset is ${l1Offset}: the table does not lie in the file`);
  return {
    version,
    clusterBits,
    clusterBytes,
    virtualBytes,
    l1Offset,
    l1Entries,
    refcountTableOffset: narrow(name, "refcount_table_offset", head.readBigUInt64BE(48)),
    refcountTableClusters: head.readUInt32BE(56),
    refcountBits: 2 ** refcountOrder,
    snapshots: head.readUInt32BE(60),
    isDirty: (bits & incompatible.dirty) !== 0n,
    compression: compressionType === 1 ? "zstd" : "zlib",
    entryBytes,
    ...(await readExtensions(file, head, version, clusterBytes)),
  };
}

/** The backing file's name as it is written, and what the header extensions add. */
async function readExtensions(file: ByteFile, head: Buffer, version: 2 | 3, clusterBytes: number): Promise<Pick<Qcow2Header, "backing" | "bitmaps">> {
  const { name } = file;
  const offset = narrow(name, "backing_file_offset", head.readBigUInt64BE(8));
  let written: string | undefined;
  if (offset !== 0) {
    const length = head.readUInt32BE(16);
    if (length === 0 || length > limits.maxBackingNameBytes) throw damaged(name, `backing_file_size is ${length}, not 1 to ${limits.maxBackingNameBytes}`);
    written = (await readBytes(file, offset, length)).toString("utf8");
  }
  let format: string | undefined;
  let bitmaps: BitmapDirectory | undefined;
  const end = Math.min(offset === 0 ? clusterBytes : offset, clusterBytes, file.sizeBytes);
  for (let at = version === 3 ? head.readUInt32BE(100) : 72; at + 8 <= end; ) {
    const extension = await readBytes(file, at, 8);
    const [type, bytes] = [extension.readUInt32BE(0), extension.readUInt32BE(4)];
    if (type === 0 || at + 8 + bytes > end) break;
    if (type === extensions.backingFormat) format = (await readBytes(file, at + 8, bytes)).toString("latin1");
    if (type === extensions.bitmaps && bytes >= 24) {
      const place = await readBytes(file, at + 8, 24);
      bitmaps = {
        count: place.readUInt32BE(0),
        bytes: narrow(name, "bitmap_directory_size", place.readBigUInt64BE(8)),
        offset: narrow(name, "bitmap_directory_offset", place.readBigUInt64BE(16)),
        isCurrent: version === 3 && (head.readBigUInt64BE(88) & autoclear.bitmaps) !== 0n,
      };
    }
    at += 8 + Math.ceil(bytes / 8) * 8;
  }
  return { bitmaps, backing: written === undefined ? undefined : { name: written, format } };
}
