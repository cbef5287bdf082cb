import { HypersdkError } from "../model/errors.ts";
import { type Instant, parseInstant } from "../model/instant.ts";

/** A time that a person wrote behind a flag: a date means its first instant in UTC. @throws Usage */
export function timeOption(flag: string, text: string): Instant;
export function timeOption(flag: string, text: string | undefined): Instant | undefined;
export function timeOption(flag: string, text: string | undefined): Instant | undefined {
  if (text === undefined) return undefined;
  const time = parseInstant(/^\d{4}-\d\d-\d\d$/.test(text) ? `${text}T00:00:00Z` : text);
  if (!time)
    throw new HypersdkError("Usage", `${flag} ${JSON.stringify(text)} is no time`, {
      hint: "such as 2026-12-01, which is midnight UTC, or 2026-12-01T02:00:00+01:00",
    });
  return time;
}
