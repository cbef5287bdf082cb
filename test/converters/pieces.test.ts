import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import type { BlockSource, ByteRange, Extent } from "../../src/converters/block-source.ts";
import { pour } from "../../src/converters/pour.ts";
import { partsOf } from "../../src/repository/increment.ts";
import { bytes, KiB, MiB, random } from "../support/disks.ts";

/** A disk in memory that has data in some ranges, and counts what it is asked. */
function diskWith(content: Buffer, data: readonly ByteRange[]): BlockSource & { asked: number } {
  return {
    asked: 0,
    sizeBytes: content.length,
    dataBytes: data.reduce((sum, { length }) => sum + length, 0),
    async *extents(range = { offset: 0, length: content.length }): AsyncGenerator<Extent> {
      this.asked++;
      const end = range.offset + range.length;
      let at = range.offset;
      for (const each of data) {
        const [from, to] = [Math.max(at, each.offset), Math.min(end, each.offset + each.length)];
        if (to <= from) continue;
        if (from > at) yield { offset: at, length: from - at, kind: "zero" };
        yield { offset: from, length: to - from, kind: "data" };
        at = to;
      }
      if (end > at) yield { offset: at, length: end - at, kind: "zero" };
    },
    async read(offset, into) {
      content.copy(into, 0, offset, offset + into.length);
    },
    async close() {},
  };
}

/** Ranges of a random disk in order, small and large ones, none touching the next. */
function rangesOf(next: () => number, sizeBytes: number, unit: number): ByteRange[] {
  const ranges: ByteRange[] = [];
  for (let at = 0; at < sizeBytes; ) {
    const length = (1 + Math.floor(next() ** 4 * 600)) * unit;
    if (at + length > sizeBytes) break;
    ranges.push({ offset: at, length });
    at += length + (1 + Math.floor(next() * 40)) * unit;
  }
  return ranges;
}

it.each([1, 2, 3, 4])("no piece is written over before its sink has settled, however small the pieces are (%i)", { timeout: 180_000 }, async (seed) => {
  const next = random(seed);
  const content = bytes(24 * MiB, seed);
  const source = diskWith(content, rangesOf(next, content.length, 4 * KiB));
  const blockBytes = 4 * KiB;
  const busy = new Set<Promise<void>>();
  let [written, wrong] = [0, 0];
  await pour(source, {
    blockBytes,
    async write(offset, data) {
      written += data.length;
      const late = sleep(next() * 3).then(() => {
        if (!data.equals(content.subarray(offset, offset + data.length))) wrong++;
      });
      busy.add(late);
      late.finally(() => busy.delete(late));
    },
    async settled() {
      await Promise.all(busy);
    },
    async finish() {
      await Promise.all(busy);
    },
  });
  expect([written, wrong]).toEqual([source.dataBytes, 0]);
});

it.each([1, 2, 3, 4, 5, 6, 7, 8])("the parts of a disk are what a question for each range would give, asked once a span (%i)", async (seed) => {
  const next = random(seed);
  const sizeBytes = 64 * MiB;
  const source = diskWith(Buffer.alloc(0), rangesOf(next, sizeBytes, 64 * KiB));
  Object.assign(source, { sizeBytes });
  const ranges = rangesOf(next, sizeBytes, 128 * KiB);
  const parts = partsOf(source, { ranges, readBytes: 0, kept: { has: () => false, idsOf: async () => Buffer.alloc(0), packs: new Set() } });
  for (const wanted of [undefined, { offset: 3 * MiB + 512, length: 20 * MiB }]) {
    const map = new Uint8Array(sizeBytes / 512);
    source.asked = 0;
    let at = wanted?.offset ?? 0;
    for await (const { offset, length, kind } of parts.extents(wanted)) {
      expect(offset).toBe(at);
      at += length;
      if (kind === "data") map.fill(1, offset / 512, at / 512);
    }
    expect(at).toBe(wanted ? wanted.offset + wanted.length : sizeBytes);
    expect(source.asked).toBe(1);
    const naive = new Uint8Array(sizeBytes / 512);
    for (const range of ranges)
      for await (const { offset, length, kind } of source.extents(range)) if (kind === "data") naive.fill(1, offset / 512, (offset + length) / 512);
    if (wanted) {
      naive.fill(0, 0, wanted.offset / 512);
      naive.fill(0, (wanted.offset + wanted.length) / 512);
    }
    expect(Buffer.from(map).equals(Buffer.from(naive))).toBe(true);
  }
});

it.each([64 * KiB, 128 * KiB, 4 * MiB])("a sink that reads for itself is told of all data once, in whole blocks of %i", async (blockBytes) => {
  for (let seed = 1; seed <= 20; seed++) {
    const next = random(seed);
    const sizeBytes = 48 * MiB + Math.floor(next() * 8) * 512;
    const source = { ...diskWith(Buffer.alloc(sizeBytes), rangesOf(next, sizeBytes, seed % 2 === 0 ? 4 * KiB : 60 * KiB)), descriptor: 0 };
    const [wanted, told] = [new Uint8Array(sizeBytes / 512), new Uint8Array(sizeBytes / 512)];
    for await (const { offset, length, kind } of source.extents()) if (kind === "data") wanted.fill(1, offset / 512, (offset + length) / 512);
    let [end, progress] = [0, 0];
    const { readBytes } = await pour(
      source,
      {
        blockBytes,
        write: () => Promise.reject(new Error("it was read")),
        async writeFrom(from, { offset, length }) {
          expect(from.descriptor).toBe(0);
          expect([offset >= end, offset % blockBytes, length > 0 && length <= Math.max(MiB, blockBytes)]).toEqual([true, 0, true]);
          end = offset + length;
          expect(end === sizeBytes || end % blockBytes === 0).toBe(true);
          for (let block = offset; block < end; block += blockBytes) expect(wanted.subarray(block / 512, (block + blockBytes) / 512).includes(1)).toBe(true);
          told.fill(1, offset / 512, end / 512);
        },
        async settled() {},
        async finish() {},
      },
      { onRead: (bytes) => void (progress += bytes) },
    );
    expect(wanted.every((data, i) => data <= (told[i] as number))).toBe(true);
    expect([readBytes, progress]).toEqual([source.dataBytes, source.dataBytes]);
  }
});
