import type { Document, LineCounter, Node } from "yaml";
import { lazily } from "../model/lazily.ts";
import type { Diagnostic } from "./diagnostic.ts";

const yaml = lazily<typeof import("yaml")>("yaml");
const jsYaml = lazily<typeof import("js-yaml")>("js-yaml");

export type Pointer = readonly (string | number)[];

/** The largest file that is read. */
export const maxFileBytes: number = 5 * 2 ** 20;
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

  constructor(file: string, text: string) {
    this.file = file;
    this.text = text;
  }

  /** @throws RangeError for nesting so deep that the parser's stack ends */
  documents(): Document.Parsed[] {
    if (!this.#documents) {
      this.#lines = new (yaml().LineCounter)();
      const parsed = yaml().parseAllDocuments(this.text, { version: "1.2", schema: "core", uniqueKeys: true, lineCounter: this.#lines, prettyErrors: false });
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
    const source = this.lineText(safeLine);
    const column = Math.max(1, Math.min(col, source.length + 1));
    return { ...what, file: this.file, line: safeLine, column, length: Math.max(1, Math.min(length, source.length - column + 1)), source };
  }

  /** The text of a line, counted from 1, without its end; empty beyond the file. */
  lineText(line: number): string {
    const start = this.#lines?.lineStarts[line - 1];
    if (start === undefined) return "";
    const end = this.text.indexOf("\n", start);
    return redacted(this.text.slice(start, end < 0 ? undefined : end).replace(/\r$/, ""));
  }

  #find(pointer: Pointer, document: number, atKey: boolean): Node | undefined {
    const { isAlias, isMap, isPair, isScalar, isSeq } = yaml();
    let node: unknown = this.documents()[document]?.contents;
    let found = node as Node | undefined;
    for (const [i, step] of pointer.entries()) {
      if (isAlias(node)) node = node.resolve(this.documents()[document] as Document.Parsed);
      if (isMap(node)) {
        const pair = node.items.find((item) => isPair(item) && (isScalar(item.key) ? String(item.key.value) : item.key) === String(step));
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

export type DiagnosticWords = Pick<Diagnostic, "severity" | "code" | "message"> & Partial<Pick<Diagnostic, "label" | "related">>;

function rangeOf(node: Node | undefined): [number, number] | undefined {
  const range = node?.range;
  if (!range) return undefined;
  // a collection is marked by its first line only; the caret's length is cut at the end of the line anyway
  return [range[0], Math.max(range[0] + 1, range[1])];
}

/** A source line is shown to whoever reads the log: what stands in a secret field in plain text is not. The length is kept, so that carets fit. */
function redacted(line: string): string {
  return line.replace(
    /((?:token|secret|password|passphrase|smtp|webhook|[a-z]*key)["']?\s*:\s*)(?!\s*\$\{)([^,}\s][^,}]*)/gi,
    (_, field: string, value: string) => field + "*".repeat(value.length),
  );
}
