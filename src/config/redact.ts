import type { Document } from "yaml";
import { lazily } from "../model/lazily.ts";

/*
 * A source line is shown to whoever reads the log: what stands in a secret field in plain text is not. Lengths are kept, so that
 * carets fit, and references such as ${env:NAME} are shown, as they are no secrets.
 */

const yaml = lazily<typeof import("yaml")>("yaml");
const secretName = /(?:token|secret|passw|passphrase|smtp|webhook|credential|user(?:name)?$|key$)/i;
const reference = /\$\{(?:env|file):[^${}:]*\}/g;

/** From and to, in characters from the beginning of a file. */
type Range = readonly [from: number, to: number];

/** What stands in the secret fields of a file, with all that is below them, and the URLs that carry a secret. */
export function secretRanges(documents: readonly Document.Parsed[]): Range[] {
  const ranges: Range[] = [];
  const { isScalar, visit } = yaml();
  for (const document of documents)
    visit(document, {
      Pair(_, { key, value }) {
        const range = (value as { range?: Range | null } | null)?.range;
        if (!isScalar(key) || !range || !secretName.test(String(key.value))) return undefined;
        ranges.push([range[0], range[1]]);
        return visit.SKIP;
      },
      Scalar(_, { value, range }) {
        if (range && typeof value === "string" && redactedUrls(value) !== value) ranges.push([range[0], range[1]]);
      },
    });
  return ranges;
}

/** Masks what lies in some ranges of a line that begins at `start`. */
export function redactedLine(line: string, start: number, ranges: readonly Range[]): string {
  let text = line;
  for (const [from, to] of ranges) {
    const [a, b] = [Math.max(0, from - start), Math.min(line.length, to - start)];
    if (a < b) text = text.slice(0, a) + masked(text.slice(a, b)) + text.slice(b);
  }
  return redactedUrls(text);
}

/**
 * The same of a line that could not be parsed: all that follows the colon behind the name of a secret, and whatever may still belong
 * to one that stands above.
 * @param above the lines before it, nearest first
 */
export function redactedRest(line: string, above: Iterable<string>): string {
  const own = keyOf(line);
  for (const before of above) {
    const key = keyOf(before);
    if (!key) continue;
    if (secretName.test(key.name) && (!own || own.indent > key.indent)) return masked(line);
    break;
  }
  for (let colon = line.indexOf(":"); colon >= 0; colon = line.indexOf(":", colon + 1)) {
    const name = /([\w-]+)["']?\s*$/.exec(line.slice(Math.max(0, colon - 64), colon))?.[1] ?? "";
    if (secretName.test(name)) return redactedUrls(line.slice(0, colon + 1) + masked(line.slice(colon + 1)));
  }
  return redactedUrls(line);
}

/** The key with which a line begins. */
function keyOf(line: string): { readonly name: string; readonly indent: number } | undefined {
  const [, indent, name] = /^([ \t-]{0,200})["']?([\w-]{1,100})["']?[ \t]{0,20}:(?:\s|$)/.exec(line) ?? [];
  return indent === undefined || name === undefined ? undefined : { name, indent: indent.length };
}

/** Masks the user and the secrets that URLs in a text carry; of a web address, all behind the host. */
export function redactedUrls(text: string): string {
  return text
    .replace(/(:\/\/)([^\s/@]+)(?=@)/g, (_, before: string, user: string) => before + masked(user))
    .replace(/(https?:\/\/[^\s/"'?#]{0,300})([^\s"']*)/gi, (_, before: string, rest: string) => before + masked(rest))
    .replace(/([?&][\w-]{0,64}=)([^&\s"']+)/g, (whole, before: string, value: string) =>
      secretName.test(before.slice(1, -1)) || /^sig/i.test(before.slice(1)) ? before + masked(value) : whole,
    );
}

/** Quotes around a value stay, and references. */
function masked(value: string): string {
  const inside = value.trim();
  const quote = inside.length > 1 && inside[0] === inside.at(-1) && /["']/.test(inside[0] as string) ? 1 : 0;
  const from = value.indexOf(inside) + quote;
  const to = from + inside.length - 2 * quote;
  let [text, at] = [value.slice(0, from), from];
  for (const { index, 0: found } of value.slice(0, to).matchAll(reference)) {
    text += value.slice(at, index).replace(/\S/g, "*") + found;
    at = index + found.length;
  }
  return text + value.slice(at, to).replace(/\S/g, "*") + value.slice(to);
}
