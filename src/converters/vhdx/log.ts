import { type ByteFile, readBytes } from "../byte-file.ts";
import { damaged, narrow, unsupported } from "../checked.ts";
import { crc32cWithout } from "./crc32c.ts";
import { mebibyte, noGuid, readGuid } from "./layout.ts";

/**
 * The log: updates of metadata that were safe before they were made. A file whose log is not empty was not closed; without the
 * updates its tables are those of some moment in the past.
 *
 * Entry, on a multiple of 4 KiB
 *   0 "loge"   4 CRC-32C   8 length   12 tail   16 sequence (u64)   24 descriptors   32 log id   48 flushed size (u64)   56 last size (u64)
 *  64 descriptors of 32: "zero", 8 length (u64), 16 file offset (u64), 24 sequence; or "desc", 4 last four bytes of the sector,
 *     8 first eight bytes, 16 file offset, 24 sequence
 *  then, on 4 KiB, a sector for each "desc": "data", 4 high half of the sequence, 4084 bytes, 4092 low half
 */
const sectorBytes = 4096;
/** Entries are read whole; no writer makes logs near this. */
const maxLogBytes = 32 * mebibyte;
/** Each read of the file looks through all of them; a log of 32 MiB holds 8,192 sectors. */
const maxUpdates = 8192;

interface Entry {
  readonly at: number;
  readonly length: number;
  readonly tail: number;
  readonly sequence: bigint;
  readonly flushedBytes: number;
  readonly lastBytes: number;
  readonly updates: readonly Update[];
}

interface Update {
  readonly offset: number;
  readonly length: number;
  /** Undefined for zeros. */
  readonly data: Buffer | undefined;
}

/** The file as it is once its log is replayed. The file itself stays untouched. */
export async function withReplayedLog(
  file: ByteFile,
  log: { readonly id: string; readonly offset: number; readonly bytes: number },
): Promise<{ readonly file: ByteFile; readonly entries: number }> {
  if (log.id === noGuid) return { file, entries: 0 };
  const { name } = file;
  if (log.bytes > maxLogBytes) throw unsupported(name, `a log of ${log.bytes} bytes is not replayed (${maxLogBytes} is)`);
  if (log.bytes === 0 || log.bytes % mebibyte !== 0 || log.offset % mebibyte !== 0)
    throw damaged(name, `the log at ${log.offset} with ${log.bytes} bytes is not on whole MiB`);
  const bytes = await readBytes(file, log.offset, log.bytes, maxLogBytes);
  const sequence = newestSequence(name, bytes, log.id);
  if (!sequence) throw damaged(name, "the log says that it is needed, and holds no valid sequence of entries");
  const head = sequence.at(-1) as Entry;
  if (file.sizeBytes < head.flushedBytes)
    throw damaged(name, `the log was written when the file had ${head.flushedBytes} bytes, it has ${file.sizeBytes}: it is cut short`);
  // everything before the head's tail is in the file already
  const first = sequence.findIndex(({ at }) => at === head.tail);
  const updates = sequence.slice(first).flatMap((entry) => entry.updates);
  if (updates.length > maxUpdates) throw unsupported(name, `a log of ${updates.length} updates is not replayed (${maxUpdates} are)`);
  return { file: patched(file, Math.max(file.sizeBytes, head.lastBytes), updates), entries: sequence.length - first };
}

/** The valid sequence with the highest last number: each entry follows the one before, and the last one's tail is among them. */
function newestSequence(name: string, log: Buffer, id: string): Entry[] | undefined {
  let best: Entry[] | undefined;
  const starts = new Map<number, Entry | undefined>();
  // entries lie one behind the other: a log in which they overlap again and again was made to take for ever
  let budget = 4 * log.length;
  const entryAt = (at: number): Entry | undefined => {
    if (!starts.has(at)) {
      budget -= claimedLength(log, at);
      if (budget < 0) throw damaged(name, "the entries of the log overlap");
      starts.set(at, readEntry(name, log, at, id));
    }
    return starts.get(at);
  };
  for (let start = 0; start < log.length; ) {
    const sequence: Entry[] = [];
    let [at, walked] = [start, 0];
    for (let entry = entryAt(at); entry && walked + entry.length <= log.length; entry = entryAt(at)) {
      const last = sequence.at(-1);
      if (last && entry.sequence !== last.sequence + 1n) break;
      sequence.push(entry);
      at = (at + entry.length) % log.length;
      walked += entry.length;
    }
    const head = sequence.at(-1);
    if (head && sequence.some((entry) => entry.at === head.tail) && (!best || head.sequence > (best.at(-1) as Entry).sequence)) best = sequence;
    start = walked > 0 && start + walked < log.length ? start + walked : walked > 0 ? log.length : start + sectorBytes;
  }
  return best;
}

/** How much would have to be read to know whether an entry is here. */
function claimedLength(log: Buffer, at: number): number {
  return log.toString("latin1", at, at + 4) === "loge" ? Math.min(log.length, around(log, at, 64).readUInt32LE(8)) : 0;
}

function readEntry(name: string, log: Buffer, at: number, id: string): Entry | undefined {
  if (log.toString("latin1", at, at + 4) !== "loge") return undefined;
  const header = around(log, at, 64);
  const length = header.readUInt32LE(8);
  if (length === 0 || length % sectorBytes !== 0 || length > log.length || readGuid(header, 32) !== id) return undefined;
  const entry = around(log, at, length);
  if (crc32cWithout(entry, 4) !== entry.readUInt32LE(4)) return undefined;
  const sequence = entry.readBigUInt64LE(16);
  const count = entry.readUInt32LE(24);
  const dataAt = Math.ceil((64 + count * 32) / sectorBytes) * sectorBytes;
  if (sequence === 0n || dataAt > length || entry.readUInt32LE(12) % sectorBytes !== 0) return undefined;
  const updates: Update[] = [];
  let sector = dataAt;
  for (let i = 0; i < count; i++) {
    const descriptor = entry.subarray(64 + i * 32, 96 + i * 32);
    if (descriptor.readBigUInt64LE(24) !== sequence) return undefined;
    const offset = narrow(name, "an offset in the log", descriptor.readBigUInt64LE(16));
    if (offset % sectorBytes !== 0) return undefined;
    const kind = descriptor.toString("latin1", 0, 4);
    if (kind === "zero") {
      const zeroBytes = narrow(name, "a length in the log", descriptor.readBigUInt64LE(8));
      if (zeroBytes % sectorBytes !== 0) return undefined;
      updates.push({ offset, length: zeroBytes, data: undefined });
    } else if (kind === "desc") {
      const data = dataSector(entry, sector, sequence, descriptor);
      if (!data) return undefined;
      updates.push({ offset, length: sectorBytes, data });
      sector += sectorBytes;
    } else return undefined;
  }
  return {
    at,
    length,
    tail: entry.readUInt32LE(12),
    sequence,
    flushedBytes: narrow(name, "the flushed size in the log", entry.readBigUInt64LE(48)),
    lastBytes: narrow(name, "the last size in the log", entry.readBigUInt64LE(56)),
    updates,
  };
}

/** The first eight and last four bytes of a sector are in its descriptor; in their place stands the sequence number. */
function dataSector(entry: Buffer, at: number, sequence: bigint, descriptor: Buffer): Buffer | undefined {
  if (at + sectorBytes > entry.length || entry.toString("latin1", at, at + 4) !== "data") return undefined;
  if (entry.readUInt32LE(at + 4) !== Number(sequence >> 32n) || entry.readUInt32LE(at + 4092) !== Number(sequence & 0xffffffffn)) return undefined;
  const data = Buffer.from(entry.subarray(at, at + sectorBytes));
  descriptor.copy(data, 0, 8, 16);
  descriptor.copy(data, 4092, 4, 8);
  return data;
}

/** Bytes of a ring. */
function around(ring: Buffer, at: number, length: number): Buffer {
  return at + length <= ring.length ? ring.subarray(at, at + length) : Buffer.concat([ring.subarray(at), ring.subarray(0, at + length - ring.length)]);
}

/** A file with later bytes in some places, in the order in which they were written. */
function patched(file: ByteFile, sizeBytes: number, updates: readonly Update[]): ByteFile {
  return {
    name: file.name,
    sizeBytes,
    ...(file.allocatedBytes === undefined ? {} : { allocatedBytes: file.allocatedBytes }),
    async read(offset, into) {
      const inFile = Math.max(0, Math.min(into.length, file.sizeBytes - offset));
      if (offset + into.length > sizeBytes) throw damaged(file.name, `${into.length} bytes at offset ${offset} are needed, but the file ends at ${sizeBytes}`);
      await file.read(offset, into.subarray(0, inFile));
      into.fill(0, inFile);
      for (const { offset: at, length, data } of updates) {
        const from = Math.max(at, offset);
        const to = Math.min(at + length, offset + into.length);
        if (to <= from) continue;
        if (data) data.copy(into, from - offset, from - at, to - at);
        else into.fill(0, from - offset, to - offset);
      }
    },
    close: () => file.close(),
  };
}
