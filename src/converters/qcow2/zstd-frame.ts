/**
 * The length of the zstd frame at the start of `bytes` (RFC 8878, section 3.1.1), by walking its block headers: decoders that are given
 * more than a frame refuse it. Undefined when it is no frame or ends early.
 */
export function zstdFrameLength(bytes: Buffer): number | undefined {
  if (bytes.length < 6 || bytes.readUInt32LE(0) !== 0xfd2fb528) return undefined;
  const descriptor = bytes[4] as number;
  const isSingleSegment = (descriptor & 0x20) !== 0;
  const contentSizeBytes = [isSingleSegment ? 1 : 0, 2, 4, 8][descriptor >> 6] as number;
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3] as number;
  let at = 5 + (isSingleSegment ? 0 : 1) + dictionaryBytes + contentSizeBytes;
  for (;;) {
    if (at + 3 > bytes.length) return undefined;
    const block = bytes.readUIntLE(at, 3);
    const type = (block >> 1) & 3;
    if (type === 3) return undefined;
    // a block of one repeated byte holds that byte
    at += 3 + (type === 1 ? 1 : block >> 3);
    if (block & 1) break;
  }
  at += descriptor & 4 ? 4 : 0;
  return at <= bytes.length ? at : undefined;
}
