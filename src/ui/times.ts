import { epochMsOf, type Instant } from "../model/instant.ts";

const formats = new Map<string, Intl.DateTimeFormat>();

/** `Sun 22 Nov 03:00 CET`; the year is added where it is another than that of `now`. */
export function formatTime(instant: Instant, timezone: string, now?: Instant): string {
  const withYear = now !== undefined && instant.slice(0, 4) !== now.slice(0, 4);
  const key = `${timezone} ${withYear}`;
  let format = formats.get(key);
  if (!format) {
    format = new Intl.DateTimeFormat("en-GB", {
      timeZone: timezone,
      weekday: "short",
      day: "2-digit",
      month: "short",
      hour: "2-digit",
      minute: "2-digit",
      hourCycle: "h23",
      timeZoneName: "short",
      ...(withYear ? { year: "numeric" as const } : {}),
    });
    formats.set(key, format);
  }
  const part: Record<string, string> = {};
  for (const { type, value } of format.formatToParts(epochMsOf(instant))) part[type] = value;
  return `${part["weekday"]} ${part["day"]} ${part["month"]}${withYear ? ` ${part["year"]}` : ""} ${part["hour"]}:${part["minute"]} ${part["timeZoneName"]}`;
}
