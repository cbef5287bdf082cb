import type { ByteRange } from "../block-source.ts";
import { type ByteFile, readBytes } from "../byte-file.ts";
import { damaged, narrow } from "../checked.ts";
import { readHeader } from "./header.ts";

/** A dirty bitmap that QEMU keeps in an image while the VM is off. */
export interface PersistentBitmap {
  readonly name: string;
  /** False where QEMU did not end well, or another program has written to the image since: what it says is worthless. */
  readonly isSound: boolean;
  /** False for one that was disabled: what was written since is not in it. */
  readonly isRecording: boolean;
  /** What it calls dirty, in order. @throws ImageDamaged when its table contradicts the image */
  ranges(): AsyncIterable<ByteRange>;
}

/** As QEMU: more bitmaps, longer names or larger tables are no honest image's. */
const limits = { bitmaps: 65_535, directoryBytes: 64 * 2 ** 20, nameBytes: 1023, tableEntries: 8 * 2 ** 20 };
const flagsOf = { inUse: 1, auto: 2 };
const minGranularityBits = 9;
const maxGranularityBits = 31;

/** The persistent bitmaps of a QCOW2 image, as docs/interop/qcow2.txt of QEMU lays them out. */
export async function persistentBitmaps(file: ByteFile): Promise<PersistentBitmap[]> {
  const { name: image } = file;
  const { bitmaps, clusterBytes, virtualBytes } = await readHeader(file);
  if (!bitmaps) return [];
  const { count, offset, bytes, isCurrent } = bitmaps;
  if (count > limits.bitmaps || bytes > limits.directoryBytes || offset % clusterBytes !== 0 || offset + bytes > file.sizeBytes)
    throw damaged(image, `its directory of ${count} bitmaps has ${bytes} bytes at ${offset}`);
  const directory = await readBytes(file, offset, bytes);
  const found: PersistentBitmap[] = [];
  for (let at = 0; found.length < count; ) {
    if (at + 24 > bytes) throw damaged(image, `its directory of bitmaps ends in bitmap ${found.length}`);
    const entries = directory.readUInt32BE(at + 8);
    const flags = directory.readUInt32BE(at + 12);
    const type = directory.readUInt8(at + 16);
    const granularityBits = directory.readUInt8(at + 17);
    const nameBytes = directory.readUInt16BE(at + 18);
    const extraBytes = directory.readUInt32BE(at + 20);
    const nameAt = at + 24 + extraBytes;
    if (nameBytes === 0 || nameBytes > limits.nameBytes || nameAt + nameBytes > bytes)
      throw damaged(image, `the name of its bitmap ${found.length} lies nowhere`);
    const name = directory.toString("utf8", nameAt, nameAt + nameBytes);
    const table = narrow(image, `the table of bitmap ${name}`, directory.readBigUInt64BE(at));
    // a bit for each granule: the table is as long as that asks for
    const isPossible = type === 1 && granularityBits >= minGranularityBits && granularityBits <= maxGranularityBits;
    const wanted = isPossible ? Math.ceil(virtualBytes / 2 ** granularityBits / 8 / clusterBytes) : 0;
    const isWhole = isPossible && entries === wanted && entries <= limits.tableEntries && table % clusterBytes === 0 && table + entries * 8 <= file.sizeBytes;
    found.push({
      name,
      isSound: isCurrent && isWhole && (flags & flagsOf.inUse) === 0 && extraBytes === 0,
      isRecording: (flags & flagsOf.auto) !== 0,
      ranges: () => rangesOf(file, { name, table, entries, granularity: 2 ** granularityBits, clusterBytes, virtualBytes }),
    });
    at = nameAt + nameBytes;
    at = Math.ceil(at / 8) * 8;
  }
  return found;
}

interface Bits {
  readonly name: string;
  readonly table: number;
  readonly entries: number;
  readonly granularity: number;
  readonly clusterBytes: number;
  readonly virtualBytes: number;
}

async function* rangesOf(file: ByteFile, { name, table, entries, granularity, clusterBytes, virtualBytes }: Bits): AsyncGenerator<ByteRange> {
  const perCluster = clusterBytes * 8 * granularity;
  const rangeOf = (from: number, to: number): ByteRange => ({ offset: from, length: Math.min(to, virtualBytes) - from });
  for (let index = 0; index < entries; index++) {
    const entry = (await readBytes(file, table + index * 8, 8)).readBigUInt64BE();
    const offset = Number(entry & 0x00fffffffffffe00n);
    const first = index * perCluster;
    // without a cluster of its own, bit 0 says what all of it is
    if (offset === 0) {
      if (entry & 1n) yield rangeOf(first, first + perCluster);
      continue;
    }
    if (offset % clusterBytes !== 0 || offset + clusterBytes > file.sizeBytes)
      throw damaged(file.name, `bitmap ${name} lies at ${offset}, where no cluster is`);
    const bits = await readBytes(file, offset, clusterBytes);
    for (let byte = 0; byte < clusterBytes; byte++) {
      if (bits[byte] === 0) continue;
      for (let bit = 0; bit < 8; bit++) {
        const at = first + (byte * 8 + bit) * granularity;
        if (((bits[byte] as number) >> bit) & 1 && at < virtualBytes) yield rangeOf(at, at + granularity);
      }
    }
  }
}
