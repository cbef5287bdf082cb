import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { stringify } from "yaml";
import { SourceFile } from "../../src/config/source-file.ts";

const repository = join(import.meta.dirname, "..", "..");

/** What the slower parser makes of a text; undefined where it finds a mistake. */
function judged(text: string): unknown {
  const source = new SourceFile("a.yaml", text);
  const [document, ...more] = source.documents();
  if (!document || more.length > 0 || document.errors.length > 0) return undefined;
  return source.valueOf(document);
}

function agrees(text: string): void {
  const plain = new SourceFile("a.yaml", text).plainValue();
  if (plain) expect({ text, value: nullKeyed(plain.value) }).toEqual({ text, value: nullKeyed(judged(text)) });
}

/** The one known difference: a key that is null is called "null" by one and "" by the other. No schema of ours knows either. */
function nullKeyed(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(nullKeyed);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, member]) => [key === "null" ? "" : key, nullKeyed(member)]));
}

/** Scalars that YAML 1.1 and 1.2, or two parsers of 1.2, could take for different things. */
const scalars = [
  ...["0", "00", "014", "0o14", "0o8", "0x1F", "0xg", "0b11", "1_000", "-0", "+1", "08", "1.", ".5", "1e3", "1E+3", "12345678901234567890", "0.1.2", "1:30"],
  ...[".inf", "-.Inf", ".nan", "true", "True", "yes", "on", "null", "Null", "~", "", "2026-01-01", "2026-01-01T00:00:00Z", "<<", "=", "0 2 * * *", "@daily"],
  ...[
    "a: b",
    "- a",
    "a #b",
    "a#b",
    "'it''s'",
    '"a\\tb"',
    '"\\x41\\u00e9"',
    '"\\q"',
    "[a, b]",
    "[a, b,]",
    "{a: 1}",
    "{a, b: 1}",
    "{a: 1, a: 2}",
    "[a: b]",
    "[",
    "}",
  ],
  ...[
    "|\n    x\n    y",
    ">-\n    x\n    y",
    "|2\n      x",
    "a\n    b",
    '"a\n    b"',
    "? a",
    "%a",
    "`a",
    "a\tb",
    "\u00a0x",
    "http://x:1/y",
    "C:\\x",
    '"',
    "a : b",
    "*x",
  ],
  ...["/datacenter/vm/*", "${env:NAME}", "file:./x", "90s", "1h30m", "00:00", "22:00-06:00", "-", "---", "...", "é 😀", "\u0007"],
];

describe("the two YAML parsers", () => {
  test("agree about every kind of scalar, wherever it stands", () => {
    for (const scalar of scalars) {
      agrees(`version: v2\nkey: ${scalar}\nlast: 1\n`);
      agrees(`version: v2\nkey: ${scalar}\nlast: 1\n`.replaceAll("\n", "\r\n"));
      agrees(`- ${scalar}\n- 1\n`);
      agrees(`key: [1, ${scalar}]\n`);
      agrees(`key: {a: ${scalar}}\n`);
      agrees(`${scalar}: 1\n`);
    }
  });

  test("agree about whatever can be written as YAML, in any style", () => {
    const key = fc.oneof(fc.constantFrom("name", "cron", "vms", "__proto__", "constructor"), fc.stringMatching(/^[a-z][a-z0-9-]{0,8}$/));
    const value = fc.letrec((tie) => ({
      any: fc.oneof(
        { maxDepth: 4 },
        fc.string({ unit: "binary" }),
        fc.stringMatching(/^[ -~]{0,20}$/),
        fc.integer(),
        fc.double({ noNaN: true, noDefaultInfinity: true }),
        fc.boolean(),
        fc.constant(null),
        fc.array(tie("any"), { maxLength: 4 }),
        fc.dictionary(key, tie("any"), { maxKeys: 4 }),
      ),
    })).any;
    const style = fc.record({
      indent: fc.constantFrom(2, 4),
      lineWidth: fc.constantFrom(0, 20, 80),
      singleQuote: fc.boolean(),
      collectionStyle: fc.constantFrom("any" as const, "block" as const, "flow" as const),
      defaultStringType: fc.constantFrom("PLAIN" as const, "QUOTE_DOUBLE" as const, "BLOCK_LITERAL" as const, "BLOCK_FOLDED" as const),
    });
    fc.assert(
      fc.property(fc.dictionary(key, value, { minKeys: 1, maxKeys: 5 }), style, (document, how) => {
        agrees(stringify(document, { ...how, version: "1.2", schema: "core", aliasDuplicateObjects: false }));
      }),
      { numRuns: 500 },
    );
  });

  test("agree about broken and cut texts", () => {
    const text = readFileSync(join(repository, "examples/whole/infrastructure.yaml"), "utf8");
    for (let i = 0; i < text.length; i += 7) agrees(text.slice(0, i));
    fc.assert(
      fc.property(fc.nat(text.length), fc.constantFrom("[", "]", "{", "}", ":", "-", "#", '"', "'", "|", " ", "\n", "\t", "?", ","), (at, wild) =>
        agrees(text.slice(0, at) + wild + text.slice(at)),
      ),
      { numRuns: 300 },
    );
  });

  test("agree about the examples, which the fast one reads", () => {
    const files = readdirSync(join(repository, "examples"), { recursive: true, encoding: "utf8" }).filter((file) => /\.ya?ml$/.test(file));
    expect(files.length).toBeGreaterThan(5);
    for (const file of files) {
      const text = readFileSync(join(repository, "examples", file), "utf8");
      agrees(text);
      expect([file, new SourceFile(file, text).plainValue() !== undefined]).toEqual([file, true]);
    }
  });

  test("leave what is not plain to the stricter one", () => {
    for (const text of [
      "a: &x 1\nb: *x\n",
      "a: !!str 1\n",
      "a: 1\n---\nb: 2\n",
      "a: 1\n...\n",
      "%YAML 1.2\n---\na: 1\n",
      "a: 1\rb: 2\r",
      "a: 1\na: 2\n",
      "a: [\n",
      "",
    ])
      expect(new SourceFile("a.yaml", text).plainValue()).toBeUndefined();
  });
});
