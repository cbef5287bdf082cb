import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { piecesOf } from "../../src/converters/block-source.ts";
import type { ByteFile } from "../../src/converters/byte-file.ts";
import { damaged } from "../../src/converters/checked.ts";
import { noNeighbours } from "../../src/converters/neighbours.ts";
import { openImageFile } from "../../src/converters/open-image.ts";
import { checksum } from "../../src/converters/vhd/layout.ts";
import { crc32cWithout } from "../../src/converters/vhdx/crc32c.ts";
import { HypersdkError } from "../../src/model/errors.ts";
import { KiB, MiB, random, writeRaw } from "../support/disks.ts";

/** A valid image, where its structures are, and how its checksums are made right again after a change. */
interface Seed {
  readonly name: string;
  readonly bytes: Buffer;
  readonly places: readonly (readonly [from: number, to: number])[];
  readonly mend?: (bytes: Buffer) => void;
}

export interface FuzzResult {
  readonly refused: number;
  readonly read: number;
  readonly slowestMs: number;
  /** What the process had before the first case: the runtime, the valid images and a copy of each. */
  readonly beforeMiB: number;
}

/**
 * Mutates valid images in memory and reads them. Anything but a clean read or an error with a code is thrown, with the case's number;
 * so is a case over `limitMs`.
 */
export async function fuzz(cases: number, seed: number, limitMs: number, onProgress: (done: number, refused: number) => void = () => {}): Promise<FuzzResult> {
  const next = random(seed);
  const seeds = makeSeeds();
  const works = seeds.map(({ bytes }) => Buffer.alloc(bytes.length));
  const beforeMiB = Math.round(process.memoryUsage.rss() / MiB);
  let [refused, slowestMs] = [0, 0];
  for (let i = 0; i < cases; i++) {
    const chosen = seeds[i % seeds.length] as Seed;
    const bytes = mutated(chosen, works[i % seeds.length] as Buffer, next);
    // CPU, not wall: everything is in memory, and a machine that is busy or was stopped is no hang
    const started = process.cpuUsage();
    try {
      if (!(await readOnce(bytes))) refused++;
    } catch (error) {
      throw new Error(`case ${i} (${chosen.name}): ${(error as Error).message}`, { cause: error });
    }
    const { user, system } = process.cpuUsage(started);
    const ms = (user + system) / 1000;
    slowestMs = Math.max(slowestMs, ms);
    if (ms > limitMs) throw new Error(`case ${i} (${chosen.name}) took ${ms.toFixed(0)} ms`);
    if (i % 1000 === 999) onProgress(i + 1, refused);
  }
  return { refused, read: cases - refused, slowestMs, beforeMiB };
}

const values = [0, 1, 2, 0x7f, 0x80, 0xfe, 0xff];
const words = [0n, 1n, 2n, 0x7fffffffn, 0x80000000n, 0xffffffffn, 2n ** 53n, 2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 1n];

function mutated({ bytes: whole, places, mend }: Seed, work: Buffer, next: () => number): Buffer {
  // one buffer for each seed, written over: a new one for each case would be a gigabyte a second
  whole.copy(work);
  const bytes = next() < 0.08 ? work.subarray(0, Math.floor(next() * whole.length)) : work;
  const below = (n: number): number => Math.floor(next() * n);
  for (let changes = 1 + below(5); changes > 0; changes--) {
    const [from, to] = next() < 0.9 ? (places[below(places.length)] as readonly [number, number]) : [0, bytes.length];
    const at = from + below(to - from);
    if (next() < 0.5) {
      if (at < bytes.length) bytes[at] = next() < 0.7 ? (values[below(values.length)] as number) : below(256);
    } else if (at + 8 <= bytes.length) {
      // a whole field, on its boundary and in either order
      const field = at - (at % 4);
      const word = words[below(words.length)] as bigint;
      if (field + 8 > bytes.length) continue;
      switch (below(4)) {
        case 0:
          bytes.writeUInt32BE(Number(word & 0xffffffffn), field);
          break;
        case 1:
          bytes.writeUInt32LE(Number(word & 0xffffffffn), field);
          break;
        case 2:
          bytes.writeBigUInt64BE(word, field);
          break;
        default:
          bytes.writeBigUInt64LE(word, field);
      }
    }
  }
  if (mend && next() < 0.8) mend(bytes);
  return bytes;
}

/** Reads at most 8 MiB of data and 1,000 extents: a mutated size may say terabytes, which is no fault. */
async function readOnce(bytes: Buffer): Promise<boolean> {
  try {
    const { source } = await openImageFile(memoryFile(bytes), noNeighbours);
    let [seen, extents] = [0, 0];
    for await (const _extent of source.extents()) if (++extents > 1000) break;
    for await (const { data } of piecesOf(source)) if ((seen += data.length) > 8 * MiB) break;
    await source.read(0, Buffer.alloc(Math.min(source.sizeBytes, 4096)));
    await source.close();
    return true;
  } catch (error) {
    if (error instanceof HypersdkError) return false;
    throw error;
  }
}

export function memoryFile(bytes: Buffer): ByteFile {
  return {
    name: "case",
    sizeBytes: bytes.length,
    async read(offset, into) {
      if (!Number.isSafeInteger(offset) || offset < 0) throw new Error(`a read at ${offset}`);
      if (offset + into.length > bytes.length)
        throw damaged("case", `${into.length} bytes at offset ${offset} are needed, but the file ends at ${bytes.length}`);
      bytes.copy(into, 0, offset, offset + into.length);
    },
    async close() {},
  };
}

function makeSeeds(): Seed[] {
  const folder = mkdtempSync(join(tmpdir(), "hypersdk-fuzz-"));
  try {
    writeRaw(join(folder, "disk.raw"), {
      sizeBytes: MiB,
      islands: [
        { offset: 0, length: 40 * KiB },
        { offset: 600 * KiB, length: 70 * KiB },
      ],
    });
    const made = (name: string, args: readonly string[], placesOf: (bytes: Buffer) => Seed["places"], mend?: Seed["mend"]): Seed => {
      const path = join(folder, "seed");
      execFileSync("qemu-img", ["convert", "-f", "raw", ...args, join(folder, "disk.raw"), path]);
      const bytes = readFileSync(path);
      return { name, bytes, places: placesOf(bytes), ...(mend ? { mend } : {}) };
    };
    const qcow2 = (bytes: Buffer): Seed["places"] => {
      const l1 = Number(bytes.readBigUInt64BE(40));
      const l2 = Number(bytes.readBigUInt64BE(l1) & 0x00fffffffffffe00n);
      return [
        [0, 112],
        [l1, l1 + 8],
        [l2, l2 + 256],
      ];
    };
    const vmdk = (bytes: Buffer): Seed["places"] => {
      const tail = bytes.length - 1024;
      const directory = Number(bytes.readBigUInt64LE(56)) === 2 ** 64 ? Number(bytes.readBigUInt64LE(tail + 56)) : Number(bytes.readBigUInt64LE(56));
      const table = bytes.readUInt32LE(directory * 512) * 512;
      return [
        [0, 80],
        [512, 1024],
        [directory * 512, directory * 512 + 8],
        [table, table + 64],
        [65_536, 65_600],
        [tail, bytes.length],
      ];
    };
    return [
      made("qcow2", ["-O", "qcow2"], qcow2),
      made("qcow2 zlib", ["-O", "qcow2", "-c"], qcow2),
      made("qcow2 zstd", ["-O", "qcow2", "-c", "-o", "compression_type=zstd"], qcow2),
      made("qcow2 v2", ["-O", "qcow2", "-o", "compat=0.10"], qcow2),
      made("qcow2 extended L2", ["-O", "qcow2", "-o", "extended_l2=on"], qcow2),
      made("vmdk sparse", ["-O", "vmdk", "-o", "subformat=monolithicSparse"], vmdk),
      made("vmdk stream", ["-O", "vmdk", "-o", "subformat=streamOptimized"], vmdk),
      made("vdi", ["-O", "vdi"], () => [
        [64, 80],
        [340, 440],
        [512, 520],
      ]),
      made("vhd dynamic", ["-O", "vpc", "-o", "force_size=on"], (bytes) => vhdPlaces(bytes), mendVhd),
      made("vhd fixed", ["-O", "vpc", "-o", "subformat=fixed,force_size=on"], (bytes) => [[bytes.length - 512, bytes.length - 420]], mendVhd),
      made("vhdx", ["-O", "vhdx", "-o", "block_size=1M"], vhdxPlaces, mendVhdx),
      { ...made("vhdx with a log", ["-O", "vhdx", "-o", "block_size=1M"], vhdxPlaces, mendVhdx), ...withLog(folder) },
    ];
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function vhdPlaces(bytes: Buffer): Seed["places"] {
  const table = bytes.readUInt32BE(512 + 20);
  return [
    [bytes.length - 512, bytes.length - 420],
    [0, 92],
    [512, 560],
    [table, table + 8],
    [bytes.readUInt32BE(table) * 512, bytes.readUInt32BE(table) * 512 + 16],
  ];
}

function mendVhd(bytes: Buffer): void {
  if (bytes.length < 2048) return;
  const footer = bytes.subarray(bytes.length - 512);
  footer.writeUInt32BE(checksum(footer, 64), 64);
  if (bytes.toString("latin1", 512, 520) === "cxsparse") bytes.writeUInt32BE(checksum(bytes.subarray(512, 1536), 36), 512 + 36);
}

function vhdxPlaces(bytes: Buffer): Seed["places"] {
  const regions = [0, 1].map((i) => Number(bytes.readBigUInt64LE(196_608 + 16 + i * 32 + 16)));
  return [
    [65_536, 65_616],
    [131_072, 131_152],
    [196_608, 196_700],
    [MiB, MiB + 200],
    ...regions.map((at): [number, number] => [at, at + 220]),
    ...regions.map((at): [number, number] => [at + 65_536, at + 65_600]),
  ];
}

function mendVhdx(bytes: Buffer): void {
  const mend = (at: number, length: number): void => {
    if (at + length <= bytes.length) bytes.writeUInt32LE(crc32cWithout(bytes.subarray(at, at + length), 4), at + 4);
  };
  mend(65_536, 4096);
  mend(131_072, 4096);
  mend(196_608, 65_536);
  if (bytes.length > MiB + 64 && bytes.toString("latin1", MiB, MiB + 4) === "loge") mend(MiB, Math.min(bytes.readUInt32LE(MiB + 8), MiB));
}

/** qemu leaves its last log entries behind; with their id in the headers they are to be replayed. */
function withLog(folder: string): { readonly bytes: Buffer } {
  const path = join(folder, "log.vhdx");
  execFileSync("qemu-img", ["create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "4M"]);
  execFileSync("qemu-io", ["-f", "vhdx", "-c", "write -q -P 7 1M 64k", path]);
  const bytes = readFileSync(path);
  for (const at of [65_536, 131_072]) bytes.copy(bytes, at + 48, MiB + 32, MiB + 48);
  mendVhdx(bytes);
  return { bytes };
}
