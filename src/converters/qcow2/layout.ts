/**
 * QCOW2, the interop specification. All integers are big endian.
 *
 * Header (v2: 72 bytes, v3: 104 or more)
 *   0 magic "QFI\xfb"       4 version              8 backing file offset   16 backing file size
 *  20 cluster bits         24 virtual size        32 crypt method          36 L1 entries
 *  40 L1 offset            48 refcount table off  56 refcount table clusters
 *  60 snapshots            64 snapshots offset    72 incompatible bits     80 compatible bits
 *  88 autoclear bits       96 refcount order     100 header length        104 compression type
 */
export const magic = 0x514649fb;

export const incompatible = { dirty: 1n, corrupt: 2n, dataFile: 4n, compressionType: 8n, extendedL2: 16n } as const;

/** L1 and L2 entries: bit 63 says that the refcount is exactly 1, bits 9–55 hold the offset. */
export const copied: bigint = 1n << 63n;
export const compressed: bigint = 1n << 62n;
export const offsetMask = 0x00fffffffffffe00n;
/** Bit 0 of an L2 entry (v3): the cluster reads as zeros. */
export const zeroFlag = 1n;

/** Types of header extensions. */
/** Bits that a writer clears when it does not know what they stand for. */
export const autoclear = { bitmaps: 1n } as const;

export const extensions = { backingFormat: 0xe2792aca, bitmaps: 0x23852875 } as const;

/**
 * Extended L2 entries are 16 bytes: the usual one, then a bitmap of 32 subclusters, allocated in the low half, reading as zeros
 * in the high one.
 */
export const subclustersPerCluster = 32;

/** Of a compressed L2 entry, the bits below this hold the byte offset; above are the additional 512-byte sectors. */
export function compressedOffsetBits(clusterBits: number): number {
  return 62 - (clusterBits - 8);
}

/** Limits that qemu enforces too. */
export const limits = { minClusterBits: 9, maxClusterBits: 21, maxL1Bytes: 33_554_432, maxRefcountTableBytes: 8_388_608, maxBackingNameBytes: 1023 } as const;
