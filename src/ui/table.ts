import { printable } from "./style.ts";

/** Columns under headings, two spaces apart; numbers are given as text and aligned to the right with `right`. */
export function renderTable(headings: readonly string[], rows: readonly (readonly string[])[], right: readonly number[] = []): string {
  const cells = [headings, ...rows].map((row) => row.map(printable));
  const widths = headings.map((_, column) => Math.max(...cells.map((row) => (row[column] ?? "").length)));
  return cells
    .map((row) =>
      row
        .map((cell, column) => (right.includes(column) ? cell.padStart(widths[column] ?? 0) : cell.padEnd(widths[column] ?? 0)))
        .join("  ")
        .trimEnd(),
    )
    .map((line) => `${line}\n`)
    .join("");
}
