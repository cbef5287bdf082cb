/**
 * VDI, the header of VirtualBox (version 1.1). All integers are little endian.
 *
 *   0 text (64)        64 signature 0xbeda107f    68 version 0x10001     72 header size (400)    76 type
 *  80 flags            84 description (256)      340 table offset       344 data offset         348 geometry (3 × u32)
 * 360 sector size     368 disk size (u64)        376 block size         380 extra bytes a block
 * 384 blocks          388 blocks allocated       392 id                 408 modification id
 * 424 parent id       440 parent modification id
 *
 * A table entry is the number of a block in the data area, or one of the two below.
 */
export const signature = 0xbeda107f;
export const version = 0x10001;
export const headerBytes = 512;
export const types = { dynamic: 1, fixed: 2, undo: 3, differencing: 4 } as const;
export const freeEntry = 0xffffffff;
export const zeroEntry = 0xfffffffe;
export const vdiBlockBytes: number = 2 ** 20;
