import type { Document, LineCounter, Node, Pair, YAMLMap } from "yaml";
import { lazily } from "../model/lazily.ts";
import type { Diagnostic } from "./diagnostic.ts";
import { redactedLine, redactedRest, secretRanges } from "./redact.ts";

const yaml = lazily<typeof import("yaml")>("yaml");
const jsYaml = lazily<typeof import("js-yaml")>("js-yaml");

export type Pointer = readonly (string | number)[];

/** The largest file that is read. */
export const maxFileBytes: number = 5 * 2 ** 20;
/** Longer lines are shown in part. */
const longestLine = 2000;
/** How many nodes the aliases of one document may expand to. */
const maxAliasNodes = 10_000;
/** Where two YAML parsers could differ: anchors, tags, carriage returns, counted indents, empty keys, document marks and directives. */
const notPlain = /[&!]|\r(?!\n)|[|>][-+]?\d|^(?:---|\.\.\.|%)|(?:^|[[{,?-])[ \t]*:(?:[ \t]|$)/m;

/**
 * The text of one file and the way from a pointer to its line. Parsing is lazy: a file whose content is known from the
 * parse cache is parsed only when something in it must be pointed at.
 */
export class SourceFile {
  readonly file: string;
  readonly text: string;
  #lines: LineCounter | undefined;
  #documents: Document.Parsed[] | undefined;
  readonly #pairs: WeakMap<YAMLMap, Map<string, Pair>> = new WeakMap();
  #secretRanges: { readonly found: ReturnType<typeof secretRanges> | undefined } | undefined;

  constructor(file: string, text: string) {
    this.file = file;
    this.text = text;
  }

  /** Keys that stand twice are no errors here: {@link repeatedKeys} finds them. @throws RangeError for nesting so deep that the parser's stack ends */
  documents(): Document.Parsed[] {
    if (!this.#documents) {
      this.#lines = new (yaml().LineCounter)();
      const parsed = yaml().parseAllDocuments(this.text, {
        version: "1.2",
        schema: "core",
        uniqueKeys: false,
        logLevel: "error",
        lineCounter: this.#lines,
        prettyErrors: false,
      });
      this.#documents = Array.isArray(parsed) ? (parsed as Document.Parsed[]) : [];
    }
    return this.#documents;
  }

  /**
   * The value of a text that is one plain document, read by the faster of two parsers (docs/decisions/006); undefined where it holds
   * an anchor, a tag, several documents or a mistake: what is not plain, `yaml` judges.
   */
  plainValue(): { readonly value: unknown } | undefined {
    if (notPlain.test(this.text)) return undefined;
    const { loadAll, CORE_SCHEMA } = jsYaml();
    try {
      const values = loadAll(this.text, { schema: CORE_SCHEMA });
      return values.length === 1 ? { value: values[0] } : undefined;
    } catch {
      return undefined;
    }
  }

  /** The plain value of a document. @throws ReferenceError when its aliases expand too far or run in a circle */
  valueOf(document: Document.Parsed): unknown {
    return document.toJS({ maxAliasCount: maxAliasNodes });
  }

  /** Where keys stand that the same mapping has before. The parser's own search compares each key with each other one. */
  repeatedKeys(document: Document.Parsed): (readonly [start: number, end: number])[] {
    const { isAlias, isScalar, visit } = yaml();
    const found: (readonly [start: number, end: number])[] = [];
    visit(document, {
      Map(_, { items }) {
        const seen = new Set<unknown>();
        for (const { key } of items) {
          const named = isAlias(key) ? key.resolve(document) : key;
          const range = rangeOf(key as Node | undefined);
          if (!isScalar(named) || !range) continue;
          if (seen.has(named.value)) found.push(range);
          seen.add(named.value);
        }
      },
    });
    return found;
  }

  /** A diagnostic at the value that `pointer` names, or at its key with `atKey`. A pointer that ends nowhere marks its nearest ancestor. */
  at(pointer: Pointer, document: number, what: DiagnosticWords, atKey = false): Diagnostic {
    const node = this.#find(pointer, document, atKey);
    const [start, end] = rangeOf(node) ?? [0, 1];
    return this.atOffset(start, end - start, what);
  }

  atOffset(offset: number, length: number, what: DiagnosticWords): Diagnostic {
    this.documents();
    // what is missing at the end is shown where the text ends, not on an empty line behind it
    const last = Math.max(0, this.text.trimEnd().length - 1);
    const { line, col } = (this.#lines as LineCounter).linePos(Math.min(offset, last));
    const safeLine = Math.max(1, line);
    const [start, end] = this.#lineRange(safeLine);
    const column = Math.max(1, Math.min(col, end - start + 1));
    const shown = end - start <= longestLine ? { source: this.lineText(safeLine) } : this.#partOf(start, end, column);
    return { ...what, file: this.file, line: safeLine, column, length: Math.max(1, Math.min(length, end - start - column + 1)), ...shown };
  }

  /** The text of a line, counted from 1, without its end and without secrets; empty beyond the file, and of a very long one. */
  lineText(line: number): string {
    const [start, end] = this.#lineRange(line);
    if (end - start > longestLine) return "";
    const text = this.text.slice(start, end);
    const ranges = this.#secrets();
    return ranges ? redactedLine(text, start, ranges) : redactedRest(text, this.#above(line));
  }

  /** The lines before one, nearest first. */
  *#above(line: number): Generator<string> {
    for (let i = line - 1; i > 0; i--) {
      const [start, end] = this.#lineRange(i);
      yield this.text.slice(start, Math.min(end, start + longestLine));
    }
  }

  /** Where a line begins and ends in the text. */
  #lineRange(line: number): [start: number, end: number] {
    const start = this.#lines?.lineStarts[line - 1];
    if (start === undefined) return [0, 0];
    const found = this.text.indexOf("\n", start);
    const end = found < 0 ? this.text.length : found;
    return [start, end > start && this.text[end - 1] === "\r" ? end - 1 : end];
  }

  /** What is shown of a long line: so much that what a secret begins with is seen, and so little that a thousand findings are no gigabyte. */
  #partOf(start: number, end: number, column: number): { readonly source: string; readonly sourceColumn: number } {
    const ranges = this.#secrets();
    const from = start + Math.max(0, column - 1 - 100);
    const seen = Math.max(start, from - longestLine);
    const source = ranges ? redactedLine(this.text.slice(seen, Math.min(end, from + longestLine)), seen, ranges).slice(from - seen, from - seen + 300) : "";
    return { source, sourceColumn: from - start + 1 };
  }

  /** Undefined where the text is not valid YAML, so that nobody knows what belongs to what. */
  #secrets(): ReturnType<typeof secretRanges> | undefined {
    this.#secretRanges ??= { found: this.documents().some(({ errors }) => errors.length > 0) ? undefined : secretRanges(this.documents()) };
    return this.#secretRanges.found;
  }

  #pairOf(map: YAMLMap, key: string): Pair | undefined {
    let pairs = this.#pairs.get(map);
    if (!pairs) {
      const { isScalar } = yaml();
      // of two with one key the first, as it was found
      const named = map.items.flatMap((pair) => (isScalar(pair.key) ? [[String(pair.key.value), pair] as const] : []));
      this.#pairs.set(map, (pairs = new Map(named.reverse())));
    }
    return pairs.get(key);
  }

  #find(pointer: Pointer, document: number, atKey: boolean): Node | undefined {
    const { isAlias, isMap, isSeq } = yaml();
    let node: unknown = this.documents()[document]?.contents;
    let found = node as Node | undefined;
    for (const [i, step] of pointer.entries()) {
      if (isAlias(node)) node = node.resolve(this.documents()[document] as Document.Parsed);
      if (isMap(node)) {
        const pair = this.#pairOf(node, String(step));
        if (!pair) break;
        const value = pair.value as Node | null;
        found = (atKey && i === pointer.length - 1) || !value || !rangeOf(value) ? (pair.key as Node) : value;
        node = value;
      } else if (isSeq(node)) {
        const item = node.items[Number(step)];
        if (!item) break;
        found = item as Node;
        node = item;
      } else break;
    }
    return found;
  }
}

export type DiagnosticWords = Pick<Diagnostic, "severity" | "code" | "message"> & Partial<Pick<Diagnostic, "label" | "related" | "standsFor">>;

function rangeOf(node: Node | undefined): [number, number] | undefined {
  const range = node?.range;
  if (!range) return undefined;
  // a collection is marked by its first line only; the caret's length is cut at the end of the line anyway
  return [range[0], Math.max(range[0] + 1, range[1])];
}
