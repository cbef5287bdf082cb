import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { formatBytes, parseSize } from "../../src/model/bytes.ts";
import { canonicalJson } from "../../src/model/canonical-json.ts";
import { formatDuration, parseDuration } from "../../src/model/duration.ts";
import { nearestName } from "../../src/model/nearest.ts";
import { parsePattern, patternOf, select } from "../../src/model/pattern.ts";
import { contentPieceBytes, TreeHash } from "../../src/model/tree-hash.ts";
import { parseVmPath, vmPathSegment } from "../../src/model/vm-path.ts";

describe("a pattern", () => {
  it.each([
    ["/dc/vm/*", "/dc/vm/a", true],
    ["/dc/vm/*", "/dc/vm/a/b/c", true],
    ["/dc/vm/*", "/dc/vm", false],
    ["/dc/vm/?*", "/dc/vm/a", true],
    ["/dc/vm/?*", "/dc/vm/a/b", false],
    ["/dc/*/db-?", "/dc/prod/db-1", true],
    ["/dc/*/db-?", "/dc/prod/db-12", false],
    ["/dc/*/db-?", "/dc/a/b/db-1", false],
    ["/dc/**/db", "/dc/db", true],
    ["/dc/**/db", "/dc/a/b/db", true],
    ["/dc/{a,b}/x", "/dc/b/x", true],
    ["/dc/{a,b}/x", "/dc/c/x", false],
    ["/dc/{a,b}/*", "/dc/a/deep/x", true],
    ["/dc/vm/A", "/dc/vm/a", false],
  ])("%s and %s: %s", (pattern, path, expected) => {
    expect(patternOf(pattern).matches(path)).toBe(expected);
  });

  it.each(["dc/vm", "/dc//vm", "/dc/../vm", "/dc/{a", "/dc/a}", "/dc/{a,{b}}", `/${"{a,b}".repeat(9)}`])("%s is refused", (text) => {
    expect(typeof parsePattern(text)).toBe("string");
  });

  it("that is hostile takes no exponential time", () => {
    const pattern = patternOf(`/${"*a".repeat(50)}b`);
    expect(pattern.matches(`/${"a".repeat(5000)}`)).toBe(false);
  });

  it("finds in a sorted list exactly what a scan finds", () => {
    const name = fc.string({ unit: fc.constantFrom("a", "b", "-", "1"), minLength: 1, maxLength: 3 });
    const path = fc.array(name, { minLength: 1, maxLength: 3 }).map((names) => `/${names.join("/")}`);
    const glob = fc.array(fc.oneof(name, fc.constantFrom("*", "**", "?", "a*", "{a,b}")), { minLength: 1, maxLength: 3 }).map((parts) => `/${parts.join("/")}`);
    fc.assert(
      fc.property(fc.array(path), glob, (paths, text) => {
        const sorted = [...new Set(paths)].sort();
        const pattern = patternOf(text);
        expect(select(pattern, sorted, (each) => each)).toEqual(sorted.filter((each) => pattern.matches(each)));
      }),
      { numRuns: 2000, seed: 2 },
    );
  });
});

describe("values", () => {
  it("durations are read and shown", () => {
    expect(parseDuration("1h30m")).toBe(5_400_000);
    expect(parseDuration("1y")).toBe(365 * 86_400_000);
    expect(parseDuration("90")).toBeUndefined();
    expect(parseDuration("9999999999y")).toBeUndefined();
    expect(formatDuration(7_500_000)).toBe("2h 5m");
  });

  it("sizes are read and shown", () => {
    expect(parseSize("1.5 GiB")).toBe(1_610_612_736);
    expect(parseSize("1 GB")).toBe(1e9);
    expect(parseSize("9999999999 TiB")).toBeUndefined();
    expect(formatBytes(1_288_490_189)).toBe("1.2 GiB");
    expect(formatBytes(512)).toBe("512 B");
  });

  it("a VM path becomes one file name and no two become the same", () => {
    expect(vmPathSegment(parseVmPath("/dc/vm/web 01") as never)).toBe("dc%2Fvm%2Fweb%2001");
    expect(parseVmPath("/dc/../x")).toBeUndefined();
    expect(parseVmPath("/dc/\nx")).toBeUndefined();
    expect(parseVmPath("/dc/größe 🦊")).toBeDefined();
  });

  it("equal values have equal canonical text", () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        expect(JSON.parse(canonicalJson(value))).toEqual(JSON.parse(JSON.stringify(value)));
      }),
    );
    expect(canonicalJson({ b: 1, a: [undefined, 2] })).toBe('{"a":[null,2],"b":1}');
  });

  it("the nearest name is suggested, a far one is not", () => {
    expect(nearestName("bakcups", ["backups", "cellar"])).toBe("backups");
    expect(nearestName("nothing-like-it", ["backups"])).toBeUndefined();
  });
});

describe("the tree hash", () => {
  it("is the same in one piece and byte by byte, with zeros written or skipped", () => {
    const data = Buffer.concat([Buffer.alloc(contentPieceBytes + 5, 1), Buffer.alloc(3 * contentPieceBytes), Buffer.alloc(7, 2)]);
    const whole = new TreeHash(contentPieceBytes);
    whole.update(data);
    const parts = new TreeHash(contentPieceBytes);
    for (let at = 0; at < data.length; at += 9973) parts.update(data.subarray(at, at + 9973));
    const skipped = new TreeHash(contentPieceBytes);
    skipped.update(data.subarray(0, contentPieceBytes + 5));
    skipped.updateZeros(3 * contentPieceBytes);
    skipped.update(Buffer.alloc(7, 2));
    const expected = whole.digest();
    expect(parts.digest()).toBe(expected);
    expect(skipped.digest()).toBe(expected);
  });
});
