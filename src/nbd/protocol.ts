/**
 * The network block device protocol: numbers of doc/proto.md of the NBD project, fixed newstyle with structured replies. All
 * numbers on the wire are big-endian.
 */
export const handshake: { readonly magic: Buffer; readonly optionMagic: Buffer; readonly fixedNewstyle: 1; readonly noZeroes: 2 } = {
  magic: Buffer.from("NBDMAGIC"),
  optionMagic: Buffer.from("IHAVEOPT"),
  fixedNewstyle: 1,
  noZeroes: 2,
};

export const options = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
} as const;

export const optionReplyMagic = 0x3e889045565a9n;
export const optionReplies = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  unsupported: 0x80000001,
  invalid: 0x80000003,
  unknown: 0x80000006,
} as const;

export const infos = { export: 0, blockSize: 3 } as const;

/** Transmission flags of an export that is only read, by as many clients as come. */
export const readOnlyFlags: number = 1 | 2 | 0x80 | 0x100;

export const requestMagic = 0x25609513;
export const requestBytes = 28;
export const commands = { read: 0, write: 1, disconnect: 2, writeZeroes: 6, blockStatus: 7 } as const;
export const commandFlags = { dontFragment: 4, requestOne: 8 } as const;

export const simpleReplyMagic = 0x67446698;
export const structuredReplyMagic = 0x668e33ef;
export const replies = { none: 0, offsetData: 1, offsetHole: 2, blockStatus: 5, error: 0x8001 } as const;
export const replyDone = 1;

export const errors = { notPermitted: 1, io: 5, invalid: 22, overflow: 75 } as const;

/** `base:allocation`: what of the disk is there. */
export const allocation = { context: "base:allocation", id: 1, hole: 1, zero: 2 } as const;
