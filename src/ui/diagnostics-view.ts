import type { Diagnostic } from "../config/diagnostic.ts";
import { printable, type Style } from "./style.ts";

/**
 * error: unknown destination "backup"                       HSE012
 *   ┌─ infra/schedules.yaml:14:18
 *   │
 * 14│     destination: backup
 *   │                  ^^^^^^ did you mean "backups"?
 */
export function renderDiagnostic(diagnostic: Diagnostic, style: Style): string {
  const { severity, code, message, file, line, column, length, source, sourceColumn = 1, label, related } = diagnostic;
  const paint = severity === "error" ? style.red : style.yellow;
  const title = `${severity}: ${printable(message)}`;
  const gutter = " ".repeat(String(line).length);
  const lines = [
    `${paint(style.bold(title))}${" ".repeat(Math.max(2, 76 - title.length))}${style.dim(code)}`,
    `${gutter} ┌─ ${printable(file)}:${line}:${column}`,
  ];
  if (source !== "") {
    // a very long line is shown around the place that matters
    const at = column - sourceColumn + 1;
    const from = at > 100 ? at - 60 : 1;
    const shown = printable(source.replaceAll("\t", " ").slice(from - 1, from + 118));
    const before = printable(source.replaceAll("\t", " ").slice(from - 1, at - 1)).length;
    const marked = Math.max(1, Math.min(length, shown.length - before));
    lines.push(
      `${gutter} │`,
      `${style.dim(String(line))} │ ${shown}`,
      `${gutter} │ ${" ".repeat(before)}${paint("^".repeat(marked))}${label ? ` ${printable(label)}` : ""}`,
    );
  } else if (label) lines.push(`${gutter} │ ${printable(label)}`);
  if (related) lines.push(`${gutter} = ${printable(related.label)}: ${printable(related.file)}:${related.line}`);
  return `${lines.join("\n")}\n`;
}

export function renderDiagnostics(diagnostics: readonly Diagnostic[], style: Style): string {
  return diagnostics.map((diagnostic) => renderDiagnostic(diagnostic, style)).join("\n");
}
