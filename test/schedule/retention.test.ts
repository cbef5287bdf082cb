import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { RetentionSpec } from "../../src/model/desired.ts";
import { type RetainablePoint, retain } from "../../src/schedule/retention.ts";

const day = 86_400_000;
const point = (id: string, at: string, more: Partial<RetainablePoint> = {}): RetainablePoint => ({
  id,
  atMs: Date.parse(at),
  isGood: true,
  isHeld: false,
  ...more,
});
const kept = (points: readonly RetainablePoint[], rules: RetentionSpec | undefined, now = "2027-06-01T00:00:00Z", zone = "UTC"): string[] =>
  retain(points, rules, zone, Date.parse(now))
    .filter(({ keptBy }) => keptBy.length > 0)
    .map(({ id }) => id);

describe("retention", () => {
  it("keeps one point for each of the last days that have one, the newest of each", () => {
    const points = [
      point("a", "2026-11-18T02:00:00Z"),
      point("b", "2026-11-19T02:00:00Z"),
      point("c", "2026-11-20T02:00:00Z"),
      point("d", "2026-11-20T14:00:00Z"),
    ];
    expect(kept(points, { daily: 2 })).toEqual(["d", "b"]);
  });

  it("keeps the oldest point while a rule has count left", () => {
    const points = [point("first", "2026-11-18T01:00:00Z"), point("same-day", "2026-11-18T02:00:00Z")];
    expect(kept(points, { daily: 7 })).toEqual(["same-day", "first"]);
  });

  it("counts ISO weeks: 1 January 2027 is a Friday of week 53 of 2026", () => {
    const points = [
      point("w52", "2026-12-27T02:00:00Z"),
      point("w53-dec", "2026-12-31T02:00:00Z"),
      point("w53-jan", "2027-01-01T02:00:00Z"),
      point("w1", "2027-01-04T02:00:00Z"),
    ];
    expect(kept(points, { weekly: 2 })).toEqual(["w1", "w53-jan"]);
  });

  it("knows days in the schedule's timezone", () => {
    const points = [point("late", "2026-11-20T22:30:00Z"), point("later", "2026-11-20T23:30:00Z"), point("other", "2026-11-19T00:00:00Z")];
    expect(kept(points, { daily: 1 }, undefined, "Europe/Berlin")).toEqual(["later"]);
    expect(kept(points, { daily: 2 }, undefined, "Europe/Berlin")).toEqual(["later", "late"]);
  });

  it("measures a duration from the newest good point, so that a month of failures expires nothing", () => {
    const points = [point("old", "2026-10-01T00:00:00Z"), point("new", "2026-10-10T00:00:00Z")];
    expect(kept(points, { withinMs: 10 * day }, "2026-12-24T00:00:00Z")).toEqual(["new", "old"]);
    expect(kept(points, { withinMs: 8 * day }, "2026-12-24T00:00:00Z")).toEqual(["new"]);
  });

  it("never measures from the future: a clock that jumped ahead once lets nothing go", () => {
    const points = [point("real", "2026-11-20T00:00:00Z"), point("jumped", "2036-01-01T00:00:00Z")];
    expect(kept(points, { withinMs: 30 * day }, "2026-11-21T00:00:00Z")).toEqual(["jumped", "real"]);
  });

  it("gives a damaged point no bucket, so that it cannot push a good one out", () => {
    const points = [point("good", "2026-11-20T02:00:00Z"), point("bad", "2026-11-20T14:00:00Z", { isGood: false })];
    expect(kept(points, { daily: 1 })).toEqual(["good"]);
  });

  it("keeps everything without rules, and held points always", () => {
    const points = [point("a", "2020-01-01T00:00:00Z"), point("b", "2026-01-01T00:00:00Z", { isHeld: true }), point("c", "2026-02-01T00:00:00Z")];
    expect(kept(points, undefined)).toEqual(["c", "b", "a"]);
    expect(kept(points, { keepLast: 1 })).toEqual(["c", "b"]);
  });

  it("never lets the newest good point go, and letting go twice lets nothing more go", { timeout: 1_200_000 }, () => {
    const anyPoint = fc.record({ atMs: fc.integer({ min: Date.UTC(2024, 0, 1), max: Date.UTC(2027, 0, 1) }), isGood: fc.boolean(), isHeld: fc.boolean() });
    const rules = fc.record(
      { keepLast: fc.nat(3), daily: fc.nat(5), weekly: fc.nat(4), monthly: fc.nat(3), withinMs: fc.nat(40).map((days) => days * day) },
      { requiredKeys: [] },
    );
    fc.assert(
      fc.property(fc.array(anyPoint, { maxLength: 40 }), rules, (list, rule) => {
        const points = list.map((each, i) => ({ ...each, id: `p${i}` }));
        const now = Date.UTC(2027, 0, 1);
        const stay = new Set(
          retain(points, rule, "Europe/Berlin", now)
            .filter(({ keptBy }) => keptBy.length > 0)
            .map(({ id }) => id),
        );
        const newestGood = points.filter(({ isGood }) => isGood).sort((a, b) => b.atMs - a.atMs || (a.id < b.id ? 1 : -1))[0];
        if (newestGood) expect(stay.has(newestGood.id)).toBe(true);
        const left = points.filter(({ id }) => stay.has(id));
        const again = retain(left, rule, "Europe/Berlin", now).filter(({ keptBy }) => keptBy.length > 0);
        expect(again.length).toBe(left.length);
      }),
      { numRuns: Number(process.env["RETENTION_CASES"] ?? 2000), seed: 1 },
    );
  });
});
