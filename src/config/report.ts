import type { Origin } from "../model/desired.ts";
import type { Diagnostic } from "./diagnostic.ts";
import type { DiagnosticWords, Pointer, SourceFile } from "./source-file.ts";

/** So many errors are told one by one. */
const mostErrors = 1000;

/** Collects what there is to say, and turns origins into lines only when something is said. */
export class Report {
  readonly diagnostics: Diagnostic[] = [];
  errorCount = 0;
  readonly #sourceOf: (file: string) => SourceFile;

  constructor(sourceOf: (file: string) => SourceFile) {
    this.#sourceOf = sourceOf;
  }

  /** Of very many errors the last one that is kept says how many there are. A label or a relation that takes work is only made for what is kept. */
  error(
    code: string,
    origin: Origin,
    below: Pointer,
    message: string,
    label?: string | (() => string),
    related?: () => NonNullable<Diagnostic["related"]>,
  ): void {
    this.errorCount++;
    if (this.errorCount > mostErrors) return;
    const shown = typeof label === "function" ? label() : label;
    this.#add({ severity: "error", code, message, ...(shown ? { label: shown } : {}), ...(related ? { related: related() } : {}) }, origin, below, false);
  }

  warn(code: string, origin: Origin, below: Pointer, message: string, label?: string, atKey = false): void {
    this.#add({ severity: "warning", code, message, ...(label ? { label } : {}) }, origin, below, atKey);
  }

  lineOf(origin: Origin): number {
    return this.#sourceOf(origin.file).at(origin.pointer, origin.document, { severity: "warning", code: "", message: "" }).line;
  }

  /** Drops warnings that a `# hypersdk-ignore: CODE reason` on the line above silences; one without a reason is a finding itself. */
  withoutIgnored(): Diagnostic[] {
    const kept: Diagnostic[] = [];
    const untold = this.errorCount - mostErrors;
    const last = untold > 0 ? this.diagnostics.findLast(({ severity }) => severity === "error") : undefined;
    if (last) kept.push({ ...last, message: `${untold} more errors are like those that are told`, label: "behind this one", standsFor: untold });
    const reasonless = new Set<string>();
    for (const diagnostic of this.diagnostics) {
      const above = diagnostic.severity === "warning" ? this.#sourceOf(diagnostic.file).lineText(diagnostic.line - 1) : "";
      const ignore = /#\s*hypersdk-ignore:\s*(HSW\d{3})\b\s*(.*)$/.exec(above);
      if (ignore?.[1] !== diagnostic.code) {
        kept.push(diagnostic);
        continue;
      }
      const place = `${diagnostic.file}:${diagnostic.line - 1}`;
      if (ignore[2]?.trim() || reasonless.has(place)) continue;
      reasonless.add(place);
      kept.push({
        severity: "warning",
        code: "HSW011",
        message: `${ignore[1]} is silenced without a reason`,
        label: "say why behind the code",
        file: diagnostic.file,
        line: diagnostic.line - 1,
        column: ignore.index + 1,
        length: ignore[0].length,
        source: above,
      });
    }
    return kept;
  }

  #add(words: DiagnosticWords, origin: Origin, below: Pointer, atKey: boolean): void {
    this.diagnostics.push(this.#sourceOf(origin.file).at([...origin.pointer, ...below], origin.document, words, atKey));
  }
}
