import { lazily } from "../model/lazily.ts";
import { fieldsOf, instantOfWall, startOfDay, wallOf } from "./zone.ts";

/**
 * Fire times of a five-field cron expression in a timezone. croner reads the expression; the walk over wall time is ours,
 * because at a daylight-saving change croner skips `15,45 2 * * *` and runs `30 2,14 * * *` twice.
 *
 * An hour field of `*`, with or without a step, means real hours: every instant whose wall time matches. Otherwise
 * a time inside the spring gap fires at the first instant after it (several collapse into one), and an ambiguous autumn
 * time at its first occurrence.
 */
export interface FireTimes {
  /** The first fire time after `epochMs`, exclusive. */
  next(epochMs: number): number;
  /** The last fire time at or before `epochMs`. */
  latest(epochMs: number): number;
  /** Why a fire time is not when the wall clock says what the expression does, or says it twice. */
  shiftOf(epochMs: number): "gap" | "first of two" | undefined;
  /** The longest time between two neighbouring fire times in wall time, in milliseconds. */
  longestGapMs(): number;
}

export type CronProblem = "fields" | "syntax" | "never";

const minuteMs = 60_000;
const hourMs = 60 * minuteMs;
const dayMs = 24 * hourMs;
/** Eight years hold every combination of weekday, leap day and the one leap year that a century leaves out. */
const horizonDays = 8 * 366 + 1;

const nicknames: Readonly<Record<string, string>> = {
  "@hourly": "0 * * * *",
  "@daily": "0 0 * * *",
  "@weekly": "0 0 * * 0",
  "@monthly": "0 0 1 * *",
  "@yearly": "0 0 1 1 *",
};

const parsed = new Map<string, Fields | CronProblem>();
const walks = new Map<string, FireTimes>();

/** What is wrong with an expression, or undefined when it is right. */
export function cronProblem(expression: string): CronProblem | undefined {
  const fields = parse(expression);
  return typeof fields === "string" ? fields : undefined;
}

/** True where both day fields are set, which cron joins by OR: a frequent surprise. */
export function setsBothDayFields(expression: string): boolean {
  if (expression.endsWith(" * * *")) return false;
  const [, , day, , weekday] = expression.trim().split(/\s+/);
  return day !== undefined && weekday !== undefined && !day.startsWith("*") && !weekday.startsWith("*");
}

/** @throws when `expression` is not valid: callers have checked it with {@link cronProblem}. */
export function fireTimes(expression: string, zone: string): FireTimes {
  const key = `${zone} ${expression}`;
  let walk = walks.get(key);
  if (!walk) {
    const fields = parse(expression);
    if (typeof fields === "string") throw new Error(`cron expression "${expression}" was not validated: ${fields}`);
    walk = walkOf(fields, zone);
    if (walks.size > 100_000) walks.clear();
    walks.set(key, walk);
  }
  return walk;
}

interface Fields {
  readonly realHours: boolean;
  readonly minutes: readonly number[];
  readonly hours: readonly number[];
  readonly everyDay: boolean;
  matchesDay(wallDay: number): boolean;
}

function parse(expression: string): Fields | CronProblem {
  let fields = parsed.get(expression);
  if (fields === undefined) {
    fields = read(expression);
    if (parsed.size > 100_000) parsed.clear();
    parsed.set(expression, fields);
  }
  return fields;
}

function read(expression: string): Fields | CronProblem {
  const text = nicknames[expression.trim()] ?? expression.trim();
  const parts = text.split(/\s+/);
  if (parts.length !== 5) return "fields";
  if (/[LW#?+]/.test(text.replace(/JUL/gi, "").replace(/WED/gi, ""))) return "syntax";
  const pattern = plainly(parts) ?? byCroner(text);
  if (!pattern) return "syntax";
  const set = (flags: readonly number[]): number[] => flags.flatMap((flag, i) => (flag ? [i] : []));
  const { day, month, dayOfWeek } = pattern;
  const anyDay = parts[2]?.startsWith("*") ?? false;
  const anyWeekday = parts[4]?.startsWith("*") ?? false;
  const everyDay = parts[2] === "*" && parts[3] === "*" && parts[4] === "*";
  const fields: Fields = {
    realHours: /^\*(\/\d+)?$/.test(parts[1] ?? ""),
    minutes: set(pattern.minute),
    hours: set(pattern.hour),
    everyDay,
    matchesDay(wallDay) {
      if (everyDay) return true;
      const date = new Date(wallDay);
      if (!month[date.getUTCMonth()]) return false;
      const byDay = Boolean(day[date.getUTCDate() - 1]);
      const byWeekday = Boolean(dayOfWeek[date.getUTCDay()]);
      return anyDay || anyWeekday ? byDay && byWeekday : byDay || byWeekday;
    },
  };
  return nextDay(fields, Date.UTC(2024, 0, 1)) === undefined ? "never" : fields;
}

/** Most expressions are plain. */
const croner = lazily<typeof import("croner")>("croner");

/** What each field of an expression allows: 1 at the place of an allowed value, counted from the field's lowest one. */
type Allowed = Readonly<Record<"minute" | "hour" | "day" | "month" | "dayOfWeek", readonly number[]>>;

const ranges = { minute: [0, 59], hour: [0, 23], day: [1, 31], month: [1, 12], dayOfWeek: [0, 6] } as const;

/**
 * An expression of plain numbers and stars. croner makes two lists of ten thousand years for each expression: 160 KB, which for a
 * thousand schedules was a tenth of all that a plan allocates.
 * @returns undefined for any other expression, and where a number is out of its range: croner has the say then
 */
function plainly(parts: readonly string[]): Allowed | undefined {
  const allowed: Partial<Record<keyof Allowed, readonly number[]>> = {};
  for (const [i, [field, [lowest, highest]]] of Object.entries(ranges).entries()) {
    const part = parts[i] as string;
    const value = Number(part) - lowest;
    if (part !== "*" && !(/^\d{1,2}$/.test(part) && value >= 0 && value <= highest - lowest)) return undefined;
    allowed[field as keyof Allowed] = Array.from({ length: highest - lowest + 1 }, (_, at) => (part === "*" || at === value ? 1 : 0));
  }
  return allowed as Allowed;
}

function byCroner(text: string): Allowed | undefined {
  try {
    return new (croner().CronPattern)(text, undefined, { mode: "5-part" });
  } catch {
    return undefined;
  }
}

function walkOf(fields: Fields, zone: string): FireTimes {
  // two neighbouring fire times: who asks about one instant asks for what lies before and behind it
  let [from, to] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  const next = (at: number): number => {
    if (at >= from && at < to) return to;
    return fields.realHours ? nextReal(fields, zone, at) : nextFixed(fields, zone, at);
  };
  let gap: number | undefined;
  return {
    next,
    latest(epochMs) {
      if (epochMs >= from && epochMs < to) return from;
      for (const back of [hourMs, dayMs, 8 * dayMs, 32 * dayMs, 370 * dayMs, horizonDays * dayMs]) {
        let found = next(epochMs - back);
        if (found > epochMs) continue;
        let later = next(found);
        for (; later <= epochMs; later = next(found)) found = later;
        [from, to] = [found, later];
        return found;
      }
      throw new Error("a cron expression fires at least once in eight years");
    },
    shiftOf(epochMs) {
      if (fields.realHours) return undefined;
      const wall = wallOf(zone, epochMs);
      const { hour, minute } = fieldsOf(wall);
      if (!fields.hours.includes(hour) || !fields.minutes.includes(minute)) return "gap";
      return [hourMs / 2, hourMs, 2 * hourMs].some((later) => wallOf(zone, epochMs + later) === wall) ? "first of two" : undefined;
    },
    longestGapMs: () => (gap ??= longestGap(fields)),
  };
}

/** Wall times of matching days in order, each mapped to its instant; the mapping never goes back, so the first hit wins. */
function nextFixed(fields: Fields, zone: string, after: number): number {
  const from = startOfDay(wallOf(zone, after)) - dayMs;
  for (let day = nextDay(fields, from); day !== undefined; day = nextDay(fields, day + dayMs)) {
    for (const hour of fields.hours) {
      for (const minute of fields.minutes) {
        const wall = day + hour * hourMs + minute * minuteMs;
        if (wall < wallOf(zone, after) - 3 * hourMs) continue;
        const instant = instantOfWall(zone, wall);
        if (instant > after) return instant;
      }
    }
  }
  throw new Error("a cron expression has a next fire time");
}

/** Real time forward: days that do not match are jumped by the calendar, hours by the quarter of an hour. */
function nextReal(fields: Fields, zone: string, after: number): number {
  let instant = Math.floor(after / minuteMs) * minuteMs + minuteMs;
  for (;;) {
    const wall = wallOf(zone, instant);
    const day = startOfDay(wall);
    const matching = nextDay(fields, day);
    if (matching === undefined) throw new Error("a cron expression has a next fire time");
    const at = fieldsOf(wall);
    if (matching === day && fields.hours.includes(at.hour)) {
      const minute = fields.minutes.find((m) => m >= at.minute);
      if (minute === at.minute) return instant;
      const quarterEnd = Math.floor(at.minute / 15) * 15 + 15;
      instant += (Math.min(minute ?? 60, quarterEnd) - at.minute) * minuteMs;
    } else {
      const far = matching - wall - 3 * hourMs;
      instant += far > 0 ? Math.floor(far / minuteMs) * minuteMs : (15 - (at.minute % 15)) * minuteMs;
    }
  }
}

/** The first matching day at or after `wallDay`, or undefined when there is none in eight years. */
function nextDay(fields: Pick<Fields, "matchesDay">, wallDay: number): number | undefined {
  for (let i = 0; i < horizonDays; i++) if (fields.matchesDay(wallDay + i * dayMs)) return wallDay + i * dayMs;
  return undefined;
}

function longestGap(fields: Fields): number {
  const times = fields.hours.flatMap((hour) => fields.minutes.map((minute) => hour * hourMs + minute * minuteMs));
  const first = times[0] ?? 0;
  const last = times.at(-1) ?? 0;
  let longest = 0;
  for (let i = 1; i < times.length; i++) longest = Math.max(longest, (times[i] ?? 0) - (times[i - 1] ?? 0));
  if (fields.everyDay) return Math.max(longest, dayMs + first - last);
  const start = Date.UTC(2024, 0, 1);
  let previous = nextDay(fields, start);
  while (previous !== undefined && previous < start + horizonDays * dayMs) {
    const following = nextDay(fields, previous + dayMs);
    if (following === undefined) break;
    longest = Math.max(longest, following + first - previous - last);
    previous = following;
  }
  return longest;
}
