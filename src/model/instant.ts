import type { Branded } from "./brand.ts";

/** A point in time as ISO 8601 in UTC with milliseconds (`2026-11-21T02:00:00.000Z`): sorts as text, reads as is. */
export type Instant = Branded<string, "Instant">;

export function instantOf(epochMs: number): Instant {
  return new Date(epochMs).toISOString() as Instant;
}

export function epochMsOf(instant: Instant): number {
  return Date.parse(instant);
}

/** A clock is corrected by so much without anybody minding. */
export const clockToleranceMs = 60_000;

/** The latest instant that is not ahead of the clock. What is dated after it says nothing of what is newest: a clock was wrong then. */
export function latestBy(now: Instant): Instant {
  return instantOf(epochMsOf(now) + clockToleranceMs);
}

/** Reads an ISO 8601 time with a zone (`2026-11-21T02:00:00Z`, `…+01:00`); undefined when it is none. */
export function parseInstant(text: string): Instant | undefined {
  if (!/^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:\d\d)$/.test(text)) return undefined;
  const [year = 0, month = 1, day = 1] = text.slice(0, 10).split("-").map(Number);
  // Date takes the 31st of February for the 3rd of March
  if (new Date(Date.UTC(year, month - 1, day)).getUTCDate() !== day) return undefined;
  const ms = Date.parse(text);
  return Number.isNaN(ms) || ms < 0 || ms > Date.UTC(3000, 0, 1) ? undefined : instantOf(ms);
}

/** `20261121T020000Z`: safe in a file name, sorts by time to the second; what follows it in the name makes that unique. */
export function compactInstant(instant: Instant): string {
  return `${instant.slice(0, 19).replace(/[-:]/g, "")}Z`;
}
