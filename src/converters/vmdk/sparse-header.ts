import { type ByteFile, readBytes } from "../byte-file.ts";
import { checkVirtualSize, damaged, narrow, unsupported } from "../checked.ts";

/**
 * Hosted sparse extent, VMware Virtual Disk Format 5.0, section "Hosted Sparse Extent Header". Little endian; offsets and
 * sizes in sectors of 512 bytes.
 *
 *   0 magic "KDMV"            4 version        8 flags           12 capacity (u64)
 *  20 grain size (u64)       28 descriptor offset (u64)          36 descriptor size (u64)
 *  44 entries per table      48 redundant directory (u64)        56 grain directory (u64)
 *  64 overhead (u64)         72 unclean shutdown                 77 compression algorithm (u16)
 */
const sparseMagic = 0x564d444b;
const footerMarker = 3;

export interface SparseHeader {
  readonly capacityBytes: number;
  readonly grainBytes: number;
  readonly descriptorOffset: number;
  readonly descriptorBytes: number;
  readonly entriesPerTable: number;
  readonly directoryOffset: number;
  readonly directoryBytes: number;
  /** A second directory with tables of its own; 0 where there is none. */
  readonly redundantOffset: number;
  /** What stands in front of the first grain. */
  readonly overheadBytes: number;
  readonly isCompressed: boolean;
  /** Entry 1 of a grain table means a grain of zeros. */
  readonly hasZeroGrains: boolean;
}

/** Reads the header, or the footer at the end where the header says that the directory's place was not known yet. */
export async function readSparseHeader(file: ByteFile): Promise<SparseHeader> {
  const head = decode(file, await readBytes(file, 0, 512));
  if (head.directoryOffset !== "at the end") return check(file, head);
  // stream-optimized: footer marker, footer, end-of-stream marker, one sector each
  const tail = await readBytes(file, file.sizeBytes - 1536, 1536);
  if (tail.readUInt32LE(12) !== footerMarker || tail.readUInt32LE(512) !== sparseMagic)
    throw damaged(file.name, "the footer of the stream-optimized VMDK is missing: the file is cut short");
  return check(file, decode(file, tail.subarray(512, 1024)));
}

function flagged(flags: number, flag: number): boolean {
  return (flags & flag) !== 0;
}

type Decoded = Omit<SparseHeader, "directoryOffset" | "directoryBytes"> & { readonly directoryOffset: number | "at the end" };

function decode({ name }: ByteFile, bytes: Buffer): Decoded {
  if (bytes.readUInt32LE(0) !== sparseMagic) throw damaged(name, "the VMDK magic is missing");
  const version = bytes.readUInt32LE(4);
  if (version < 1 || version > 3) throw unsupported(name, `VMDK version ${version} is not read (1 to 3 are)`);
  const flags = bytes.readUInt32LE(8);
  const sectors = (field: string, at: number): number => narrow(name, field, bytes.readBigUInt64LE(at) * 512n);
  const directory = bytes.readBigUInt64LE(56);
  const algorithm = bytes.readUInt16LE(77);
  const isCompressed = (flags & 0x10000) !== 0;
  // grains that are deflated and are not said to be would be taken for data
  if (!isCompressed && algorithm !== 0) throw damaged(name, `compressAlgorithm is ${algorithm}, but the flags say that grains are not compressed`);
  if (isCompressed && algorithm !== 1) throw unsupported(name, `compression algorithm ${algorithm} is not read (1, deflate, is)`);
  return {
    isCompressed,
    capacityBytes: sectors("capacity", 12),
    grainBytes: sectors("grainSize", 20),
    descriptorOffset: sectors("descriptorOffset", 28),
    descriptorBytes: sectors("descriptorSize", 36),
    entriesPerTable: bytes.readUInt32LE(44),
    redundantOffset: flagged(flags, 2) ? sectors("rgdOffset", 48) : 0,
    overheadBytes: sectors("overHead", 64),
    directoryOffset: directory === 0xffffffffffffffffn ? "at the end" : narrow(name, "gdOffset", directory * 512n),
    hasZeroGrains: (flags & 4) !== 0,
  };
}

function check(file: ByteFile, header: Decoded): SparseHeader {
  const { name, sizeBytes } = file;
  const { capacityBytes, grainBytes, entriesPerTable, directoryOffset, descriptorBytes } = header;
  checkVirtualSize(name, capacityBytes);
  if (grainBytes < 4096 || grainBytes > 2 ** 20 || (grainBytes & (grainBytes - 1)) !== 0)
    throw damaged(name, `grainSize is ${grainBytes} bytes, no power of two from 4 KiB to 1 MiB`);
  if (entriesPerTable < 1 || entriesPerTable > 4096) throw damaged(name, `numGTEsPerGT is ${entriesPerTable}, not 1 to 4096`);
  if (descriptorBytes > 1 << 20) throw damaged(name, `descriptorSize is ${descriptorBytes} bytes, more than 1 MiB`);
  if (header.descriptorOffset + descriptorBytes > sizeBytes)
    throw damaged(name, `descriptorOffset is ${header.descriptorOffset}: the descriptor does not lie in the file`);
  if (directoryOffset === "at the end") throw damaged(name, "the footer does not say where the grain directory is");
  const entries = Math.ceil(capacityBytes / (grainBytes * entriesPerTable));
  if (directoryOffset === 0 && capacityBytes > 0) throw damaged(name, "gdOffset is 0");
  if (directoryOffset + entries * 4 > sizeBytes)
    throw damaged(name, `gdOffset is ${directoryOffset}: a directory of ${entries} entries does not lie in the file of ${sizeBytes} bytes`);
  return { ...header, directoryOffset, directoryBytes: entries * 4 };
}
