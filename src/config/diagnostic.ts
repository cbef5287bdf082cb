/** Something to tell about the text of a file, with its place. Line and column count from 1. */
export interface Diagnostic {
  readonly severity: "error" | "warning";
  readonly code: string;
  /** What is wrong, with the actual value: the headline. */
  readonly message: string;
  readonly file: string;
  readonly line: number;
  readonly column: number;
  /** How many characters the caret marks. */
  readonly length: number;
  /** The source line; of a very long one the part around the place. */
  readonly source: string;
  /** The column at which that part begins. */
  readonly sourceColumn?: number;
  /** What stands under the caret: why, or what to do. */
  readonly label?: string;
  /** How many it stands for, where not all are told. */
  readonly standsFor?: number;
  /** Another place that belongs to it, such as the first of two equal names. */
  readonly related?: { readonly file: string; readonly line: number; readonly label: string };
}

/** How many errors there are, the untold ones among them. */
export function errorCount(diagnostics: readonly Diagnostic[]): number {
  return diagnostics.reduce((sum, { severity, standsFor = 1 }) => sum + (severity === "error" ? standsFor : 0), 0);
}

/** File order, then place, then code: the order in which people mend them. */
export function sortDiagnostics(diagnostics: readonly Diagnostic[]): Diagnostic[] {
  return [...diagnostics].sort((a, b) => compare(a.file, b.file) || a.line - b.line || a.column - b.column || compare(a.code, b.code));
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
