import type { Branded } from "./brand.ts";

/** A length of time in milliseconds, zero or more, checked to stay within 2^53. */
export type DurationMs = Branded<number, "DurationMs">;

const unitMs = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000, w: 604_800_000, y: 31_536_000_000 } as const;
const longest = 1000 * unitMs.y;

/** Reads `90s`, `1h30m`, `30d`, `1y` (365 d). Undefined when the text is no duration or is over 1000 years. */
export function parseDuration(text: string): DurationMs | undefined {
  if (!/^(\d+[smhdwy])+$/.test(text)) return undefined;
  let ms = 0;
  for (const [, count, unit] of text.matchAll(/(\d+)([smhdwy])/g)) ms += Number(count) * unitMs[unit as keyof typeof unitMs];
  return ms <= longest ? (ms as DurationMs) : undefined;
}

/** The two largest units, as people say it: `2h 5m`, `3d`, `25 s` becomes `25s`. */
export function formatDuration(ms: number): string {
  if (ms < 1000) return ms <= 0 ? "0s" : "<1s";
  const parts: string[] = [];
  let rest = ms;
  for (const unit of ["d", "h", "m", "s"] as const) {
    const count = Math.floor(rest / unitMs[unit]);
    rest -= count * unitMs[unit];
    if (count > 0) parts.push(`${count}${unit}`);
    if (parts.length === 2 || (parts.length === 1 && count === 0)) break;
  }
  return parts.join(" ");
}
