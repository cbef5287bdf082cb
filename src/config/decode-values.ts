import type { Alert, Origin } from "../model/desired.ts";
import { type DurationMs, parseDuration } from "../model/duration.ts";
import { parsePattern } from "../model/pattern.ts";
import type { Report } from "./report.ts";
import type { Pointer } from "./source-file.ts";

const priorities: Readonly<Record<string, number>> = { low: 25, normal: 50, high: 75, critical: 100 };

/** A duration whose grammar the schema has checked; over a thousand years is an error. */
export function durationOf(value: unknown, origin: Origin, below: Pointer, report: Report): DurationMs | undefined {
  if (value === undefined) return undefined;
  const ms = parseDuration(String(value));
  if (ms === undefined) report.error("HSE018", origin, below, `${value} is longer than 1000 years`, "write a shorter duration");
  return ms;
}

export function priorityOf(value: unknown): number | undefined {
  return typeof value === "string" ? priorities[value] : (value as number | undefined);
}

/** Checks each pattern and gives them back as they were written. `list` is undefined for a single value under `key`. */
export function patternsOf(values: readonly string[], origin: Origin, list: Pointer | undefined, key: string, report: Report): string[] {
  for (const [i, value] of values.entries()) {
    const pattern = parsePattern(value);
    if (typeof pattern === "string")
      report.error("HSE017", origin, list ? [...list, i] : [key], `the pattern ${JSON.stringify(value)} cannot be used`, pattern);
  }
  return [...values];
}

export function alertsOf(value: unknown): Alert[] {
  return ((value as Record<string, unknown>[] | undefined) ?? []).flatMap((entry) =>
    (["slack", "email", "webhook"] as const).flatMap((type) => {
      const target = entry[type];
      if (target === undefined) return [];
      const via = entry["via"] as string | undefined;
      return [
        {
          type,
          target: String(target),
          on: (entry["on"] as string[] | undefined) ?? ["failure", "recovery", "overdue"],
          ...(via === undefined ? {} : { via }),
        },
      ];
    }),
  );
}
