import { closeSync, fstatSync, ftruncateSync, openSync, writeSync } from "node:fs";

export const KiB = 1024;
export const MiB: number = 1024 * KiB;

/** A small deterministic generator (mulberry32), so that a failing case can be made again. */
export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Half random bytes, half repeating text: some of it shrinks, some does not. */
export function bytes(length: number, seed: number): Buffer {
  const next = random(seed);
  const data = Buffer.alloc(length);
  for (let at = 0; at + 4 <= length; at += 4) data.writeUInt32LE(at % 8192 < 4096 ? Math.floor(next() * 2 ** 32) : 0x61626364, at);
  return data;
}

interface Island {
  readonly offset: number;
  readonly length: number;
}

export interface Shape {
  readonly name: string;
  readonly sizeBytes: number;
  readonly islands: readonly Island[];
}

/** The shapes of disks that formats get wrong. */
export const shapes: readonly Shape[] = [
  { name: "empty", sizeBytes: 8 * MiB, islands: [] },
  {
    name: "one sector at each end",
    sizeBytes: 8 * MiB,
    islands: [
      { offset: 0, length: 512 },
      { offset: 8 * MiB - 512, length: 512 },
    ],
  },
  { name: "an odd last sector", sizeBytes: 5 * MiB + 512, islands: [{ offset: 5 * MiB - 100 * KiB, length: 100 * KiB + 512 }] },
  { name: "all data", sizeBytes: 3 * MiB, islands: [{ offset: 0, length: 3 * MiB }] },
  { name: "alternating 64 KiB holes", sizeBytes: 6 * MiB, islands: Array.from({ length: 48 }, (_, i) => ({ offset: i * 128 * KiB, length: 64 * KiB })) },
  {
    name: "data across 4 KiB borders",
    sizeBytes: 4 * MiB,
    islands: [
      { offset: 4096, length: 200_704 },
      { offset: 1_052_672, length: 8192 },
    ],
  },
  {
    name: "4 KiB sectors",
    sizeBytes: 4 * MiB + 4096,
    islands: [
      { offset: 4096, length: 4096 },
      { offset: 4 * MiB, length: 4096 },
    ],
  },
  { name: "2 GiB and a sector", sizeBytes: 2 ** 31 + 512, islands: [{ offset: 2 ** 31 - 70_000, length: 70_512 }] },
];

/** Too large for tools that read it whole. */
export const largeShape: Shape = {
  name: "1 TiB with three islands",
  sizeBytes: 2 ** 40,
  islands: [
    { offset: 0, length: 200_000 },
    { offset: 2 ** 39 + 4096, length: 70_000 },
    { offset: 2 ** 40 - 512, length: 512 },
  ],
};

/** A sparse raw file with data at the islands. */
export function writeRaw(path: string, { sizeBytes, islands }: Pick<Shape, "sizeBytes" | "islands">, seed = 1): void {
  const file = openSync(path, "w");
  ftruncateSync(file, sizeBytes);
  for (const [i, { offset, length }] of islands.entries()) writeSync(file, bytes(length, seed + i), 0, length, offset);
  closeSync(file);
}

/** Writes some sectors, or zeros, somewhere into a raw file. */
export function overwrite(path: string, next: () => number): void {
  const file = openSync(path, "r+");
  const sectors = Math.floor(fstatSync(file).size / 512);
  const at = Math.floor(next() * sectors);
  const length = Math.min(sectors - at, 1 + Math.floor(next() * 300)) * 512;
  writeSync(file, next() < 0.25 ? Buffer.alloc(length) : bytes(length, Math.floor(next() * 2 ** 31)), 0, length, at * 512);
  closeSync(file);
}
