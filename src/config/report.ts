import type { Origin } from "../model/desired.ts";
import type { Diagnostic } from "./diagnostic.ts";
import type { DiagnosticWords, Pointer, SourceFile } from "./source-file.ts";

/** Collects what there is to say, and turns origins into lines only when something is said. */
export class Report {
  readonly diagnostics: Diagnostic[] = [];
  errorCount = 0;
  readonly #sourceOf: (file: string) => SourceFile;

  constructor(sourceOf: (file: string) => SourceFile) {
    this.#sourceOf = sourceOf;
  }

  error(code: string, origin: Origin, below: Pointer, message: string, label?: string, related?: Diagnostic["related"]): void {
    this.errorCount++;
    this.#add({ severity: "error", code, message, ...(label ? { label } : {}), ...(related ? { related } : {}) }, origin, below, false);
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
