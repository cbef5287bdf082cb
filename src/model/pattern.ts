/**
 * A set of VM paths: `*` any run of characters inside one segment, `?` one character, `**` any number of segments, `{a,b}`
 * either. A pattern that ends in `/*` takes everything below that folder at any depth, because a backup that silently
 * misses machines is the worse mistake; `/?*` at the end means one level.
 */
export interface Pattern {
  readonly text: string;
  /** Every path that matches begins with this; it lets a sorted list be searched instead of scanned. */
  readonly prefix: string;
  /** True where the pattern names exactly one path. */
  readonly isLiteral: boolean;
  matches(path: string): boolean;
}

const cache = new Map<string, Pattern | string>();

/** @returns the pattern, or what is wrong with it as a sentence that begins in lower case */
export function parsePattern(text: string): Pattern | string {
  let pattern = cache.get(text);
  if (pattern === undefined) {
    pattern = read(text);
    if (cache.size > 100_000) cache.clear();
    cache.set(text, pattern);
  }
  return pattern;
}

/** For patterns that have been checked. @throws when it has not */
export function patternOf(text: string): Pattern {
  const pattern = parsePattern(text);
  if (typeof pattern === "string") throw new Error(`pattern "${text}" was not validated: ${pattern}`);
  return pattern;
}

/** Most patterns are plain paths of plain letters, and a fleet has thousands of them. */
const plainPath = /^(?:\/[A-Za-z0-9_-][A-Za-z0-9_ .-]*){1,64}$/;

function read(written: string): Pattern | string {
  if (written.length <= 4096 && plainPath.test(written)) return literal(written, written);
  const text = written.normalize("NFC");
  if (!text.startsWith("/")) return 'it must begin with "/"';
  if (text.length > 4096) return "it is longer than 4096 characters";
  if (/[\u0000-\u001f\u007f]/.test(text)) return "it holds a control character";
  if (
    text
      .split("/")
      .slice(1)
      .some((segment) => segment === "" || segment === "." || segment === "..")
  ) {
    return 'it has an empty, "." or ".." segment';
  }
  const wildcard = text.search(/[*?{]/);
  if (wildcard < 0) {
    if (text.includes("}")) return 'it has a "}" without a "{"';
    return literal(written, text);
  }
  const prefix = text.slice(0, wildcard);
  if (text === `${prefix}*` && prefix.endsWith("/")) {
    return { text: written, prefix, isLiteral: false, matches: (path) => path.length > prefix.length && path.startsWith(prefix) };
  }
  const segments = text.endsWith("/*") ? `${text.slice(0, -1)}**` : text;
  const alternatives = expandBraces(segments);
  if (typeof alternatives === "string") return alternatives;
  // the folders before the first wildcard are those of the prefix, and need no second look
  const base = prefix.lastIndexOf("/") + 1;
  const globs = alternatives.map((alternative) => alternative.slice(base).split("/"));
  return {
    text: written,
    prefix,
    isLiteral: false,
    matches: (path) => {
      if (!path.startsWith(prefix)) return false;
      const names = path.slice(base).split("/");
      return globs.some((glob) => matchesSegments(glob, names));
    },
  };
}

function literal(text: string, path: string): Pattern {
  return { text, prefix: path, isLiteral: true, matches: (other) => other === path };
}

/** `{a,b}` as the list of patterns without braces; at most 256 of them, so that `{a,b}{a,b}…` cannot explode. */
function expandBraces(text: string): string[] | string {
  const open = text.indexOf("{");
  if (open < 0) return text.includes("}") ? 'it has a "}" without a "{"' : [text];
  const close = text.indexOf("}", open);
  if (close < 0) return 'it has a "{" without a "}"';
  const inside = text.slice(open + 1, close);
  if (inside.includes("{")) return "braces cannot be nested";
  const results: string[] = [];
  for (const choice of inside.split(",")) {
    const rest = expandBraces(text.slice(0, open) + choice + text.slice(close + 1));
    if (typeof rest === "string") return rest;
    results.push(...rest);
    if (results.length > 256) return "its braces stand for more than 256 patterns";
  }
  return results;
}

/** Two-pointer match with one backtrack point for `**`: linear in practice, quadratic at worst, never exponential. */
function matchesSegments(glob: readonly string[], names: readonly string[]): boolean {
  let g = 0;
  let n = 0;
  let starAt = -1;
  let starName = 0;
  while (n < names.length) {
    const segment = glob[g];
    if (segment === "**") {
      // at the very end "**" needs at least one segment: "/a/**" is what lies below /a
      starAt = g++;
      starName = g === glob.length ? ++n : n;
      if (g === glob.length) return true;
    } else if (segment !== undefined && matchesName(segment, names[n] ?? "")) {
      g++;
      n++;
    } else if (starAt >= 0) {
      g = starAt + 1;
      n = ++starName;
    } else return false;
  }
  return g === glob.length;
}

/** The same walk inside one segment, for `*` and `?`. */
function matchesName(glob: string, name: string): boolean {
  if (glob.length !== name.length && !glob.includes("*")) return false;
  let g = 0;
  let n = 0;
  let starAt = -1;
  let starChar = 0;
  while (n < name.length) {
    const c = glob[g];
    if (c === "*") {
      starAt = g++;
      starChar = n;
    } else if (c !== undefined && (c === "?" || c === name[n])) {
      g++;
      n++;
    } else if (starAt >= 0) {
      g = starAt + 1;
      n = ++starChar;
    } else return false;
  }
  while (glob[g] === "*") g++;
  return g === glob.length;
}

/** The members of `sorted` (code-unit order, by `keyOf`) that `pattern` matches: binary search by prefix, then a test each. */
export function select<T>({ prefix, matches }: Pattern, sorted: readonly T[], keyOf: (item: T) => string): T[] {
  const first = firstWhere(sorted, (item) => keyOf(item) >= prefix);
  const end = firstWhere(sorted, (item) => keyOf(item) >= prefix && !keyOf(item).startsWith(prefix));
  return sorted.slice(first, end).filter((item) => matches(keyOf(item)));
}

/** Where the items begin that are so, of a list that begins with those that are not; its length where none is. */
function firstWhere<T>(sorted: readonly T[], isSo: (item: T) => boolean): number {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (isSo(sorted[middle] as T)) high = middle;
    else low = middle + 1;
  }
  return low;
}
