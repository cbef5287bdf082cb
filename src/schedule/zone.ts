/**
 * Wall time in IANA zones, over `Intl`. A *wall* value is a local date and time written as if it were UTC, in epoch
 * milliseconds, so that its calendar fields come from plain UTC arithmetic.
 */
const formats = new Map<string, Intl.DateTimeFormat>();
const offsets = new Map<string, Map<number, number>>();

/** Every transition of the tz database since 1972 falls on a quarter of an hour: offsets are constant inside one. */
const quarterMs = 900_000;
const hourMs = 3_600_000;
const dayMs = 86_400_000;

export function isTimezone(zone: string): boolean {
  if (zone === "UTC") return true;
  try {
    new Intl.DateTimeFormat("en-US", { timeZone: zone });
    return /^[A-Za-z][A-Za-z0-9_+-]*(\/[A-Za-z0-9_+-]+)*$/.test(zone);
  } catch {
    return false;
  }
}

/** What must be added to an instant to get its wall time, in milliseconds. */
function offsetAt(zone: string, epochMs: number): number {
  if (zone === "UTC") return 0;
  let known = offsets.get(zone);
  if (!known) offsets.set(zone, (known = new Map()));
  const quarter = Math.floor(epochMs / quarterMs);
  let offset = known.get(quarter);
  if (offset === undefined) {
    if (known.size > 50_000) known.clear();
    known.set(quarter, (offset = readOffset(zone, quarter * quarterMs)));
  }
  return offset;
}

export function wallOf(zone: string, epochMs: number): number {
  return epochMs + offsetAt(zone, epochMs);
}

/**
 * The instant of a wall time. Inside a spring gap: the first instant after it. Twice in autumn: the first occurrence.
 */
export function instantOfWall(zone: string, wall: number): number {
  if (zone === "UTC") return wall;
  const before = wall - offsetAt(zone, wall - dayMs);
  const after = wall - offsetAt(zone, wall + dayMs);
  const candidates = before <= after ? [before, after] : [after, before];
  for (const instant of candidates) if (wallOf(zone, instant) === wall) return instant;
  return firstInstantWithWallFrom(zone, wall, candidates[0] as number);
}

/** Calendar fields of a wall value. `weekday` 0 is Sunday. */
export interface WallFields {
  readonly year: number;
  readonly month: number;
  readonly day: number;
  readonly weekday: number;
  readonly hour: number;
  readonly minute: number;
}

export function fieldsOf(wall: number): WallFields {
  const date = new Date(wall);
  return {
    year: date.getUTCFullYear(),
    month: date.getUTCMonth() + 1,
    day: date.getUTCDate(),
    weekday: date.getUTCDay(),
    hour: date.getUTCHours(),
    minute: date.getUTCMinutes(),
  };
}

export function startOfDay(wall: number): number {
  return Math.floor(wall / dayMs) * dayMs;
}

/** Walks the quarters around a gap until the wall clock has passed `wall`: that quarter starts right after the gap. */
function firstInstantWithWallFrom(zone: string, wall: number, near: number): number {
  let instant = Math.floor((near - 3 * hourMs) / quarterMs) * quarterMs;
  while (wallOf(zone, instant) < wall) instant += quarterMs;
  return instant;
}

function readOffset(zone: string, epochMs: number): number {
  let format = formats.get(zone);
  if (!format) {
    format = new Intl.DateTimeFormat("en-US", {
      timeZone: zone,
      hourCycle: "h23",
      era: "short",
      year: "numeric",
      month: "numeric",
      day: "numeric",
      hour: "numeric",
      minute: "numeric",
      second: "numeric",
    });
    formats.set(zone, format);
  }
  const part: Record<string, number> = {};
  for (const { type, value } of format.formatToParts(epochMs)) part[type] = Number(value);
  const { year = 0, month = 1, day = 1, hour = 0, minute = 0, second = 0 } = part;
  return Date.UTC(year, month - 1, day, hour, minute, second) - Math.floor(epochMs / 1000) * 1000;
}
