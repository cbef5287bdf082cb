import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ChunkIndex } from "../../src/repository/chunk-index.ts";
import { encodeEntry, entryBytes, idBytes } from "../../src/repository/layout.ts";

/** An id that shares its first bytes, which choose the slot, and mostly the next ones with others. */
const id = fc
  .tuple(fc.nat(3), fc.nat(2), fc.nat(40))
  .map(([slot, above, rest]) => Buffer.concat([Buffer.from([slot, 0, 0, 0, 0, 0, 0, above << 6]), Buffer.alloc(idBytes - 8, rest)]));
const directoryOf = (ids: readonly Buffer[]): Buffer =>
  Buffer.concat(ids.map((each, i) => encodeEntry({ id: each, offset: i * 100, storedBytes: 100, rawBytes: 200, method: 1 })));

describe("the index of chunks", () => {
  it("finds what a plain map does: a chunk in several packs in the first that may be built on, or else in the last", () => {
    const pack = fc.record({ ids: fc.uniqueArray(id, { selector: (each) => each.toString("hex"), maxLength: 60 }), usable: fc.boolean() });
    fc.assert(
      fc.property(fc.array(pack, { maxLength: 12 }), fc.boolean(), (packs, isSized) => {
        const named = packs.map(({ ids, usable }, i) => ({ name: `pack ${i}`, directory: directoryOf(ids), ids, usable }));
        const index = new ChunkIndex(isSized ? named : []);
        const model = new Map<string, { name: string; offset: number; usable: boolean }>();
        for (const { name, directory, ids, usable } of named) {
          index.add({ name, directory }, usable);
          for (const [i, each] of ids.entries()) {
            const key = each.toString("hex");
            if (!model.get(key)?.usable) model.set(key, { name, offset: i * 100, usable });
          }
        }
        expect(index.chunks).toBe(model.size);
        const numbers = new Set<number>();
        for (const [key, { name, offset }] of model) {
          // where it begins on no multiple of four it is found as well
          const bytes = Buffer.from(`ff${key}`, "hex").subarray(1);
          expect(index.find(bytes)).toMatchObject({ offset, pack: { name } });
          const number = index.numberOf(bytes) as number;
          expect(index.packOf(number).name).toBe(name);
          numbers.add(number);
        }
        expect(numbers.size).toBe(model.size);
        expect(Math.max(-1, ...numbers)).toBeLessThan(index.numbers);
        const missing = Buffer.alloc(idBytes, 0xee);
        expect(index.find(missing)).toBeUndefined();
        for (const { ids, directory } of named) {
          const expected = ids.map((each) => index.numberOf(each));
          expect([...index.numbersOf(directory, entryBytes)]).toEqual(expected);
          expect([...index.numbersOf(Buffer.concat([missing, ...ids]))]).toEqual([-1, ...expected]);
        }
      }),
      { numRuns: 300 },
    );
  });

  it("grows over tens of thousands of entries, and loses none", () => {
    const index = new ChunkIndex();
    const idOf = (i: number): Buffer => {
      const bytes = Buffer.alloc(idBytes, 1);
      bytes.writeUInt32LE(Math.imul(i, 2_654_435_761) >>> 0, 0);
      bytes.writeUInt32LE(Math.imul(i, 40_503) >>> 0, 4);
      return bytes;
    };
    const [packs, each] = [700, 61];
    for (let pack = 0; pack < packs; pack++)
      index.add({ name: `${pack}`, directory: directoryOf(Array.from({ length: each }, (_, i) => idOf(pack * each + i))) });
    expect([index.chunks, index.numbers]).toEqual([packs * each, packs * each]);
    for (let i = 0; i < packs * each; i++) expect([index.numberOf(idOf(i)), index.packOf(i).name]).toEqual([i, `${Math.floor(i / each)}`]);
    expect(index.numberOf(idOf(packs * each))).toBeUndefined();
  });
});
