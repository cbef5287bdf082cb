import { expect, it } from "vitest";
import { fireTimes } from "../../src/schedule/cron.ts";

const minuteMs = 60_000;
const dayMs = 86_400_000;
const zones = [
  "Europe/Berlin",
  "America/New_York",
  "Australia/Lord_Howe",
  "Asia/Kathmandu",
  "Africa/Casablanca",
  "America/Santiago",
  // gaps at midnight, and of two hours
  "Asia/Beirut",
  "Antarctica/Troll",
];
const crons = ["15,45 2 * * *", "30 0 * * *", "0 0 * * *", "0 * * * *", "*/20 */3 * * *", "30 2,14 * * 0", "5 1-4 * * *", "*/7 23,0,3 * * 1-6"];

/** A wall clock asked of Intl: the local date and time, written as if it were UTC. */
function clockOf(zone: string): (at: number) => number {
  const format = new Intl.DateTimeFormat("en-US", {
    timeZone: zone,
    hourCycle: "h23",
    year: "numeric",
    month: "numeric",
    day: "numeric",
    hour: "numeric",
    minute: "numeric",
  });
  return (at) => {
    const part = Object.fromEntries(format.formatToParts(at).map(({ type, value }) => [type, Number(value)])) as Record<string, number>;
    return Date.UTC(part["year"] ?? 0, (part["month"] ?? 1) - 1, part["day"], part["hour"], part["minute"]);
  };
}

/** Instants of 2025–2035 at which a zone's offset changes, found by asking for every hour. */
function transitionsOf(zone: string): number[] {
  const wall = clockOf(zone);
  const found: number[] = [];
  let offset: number | undefined;
  for (let at = Date.UTC(2025, 0, 1); at < Date.UTC(2036, 0, 1); at += 60 * minuteMs) {
    const now = wall(at) - at;
    if (offset !== undefined && now !== offset) found.push(at);
    offset = now;
  }
  return found;
}

function field(text: string, value: number): boolean {
  return text.split(",").some((part) => {
    const [range = "", step = "1"] = part.split("/");
    if (value % Number(step) !== 0) return false;
    const [low = 0, high = low] = range.split("-").map(Number);
    return range === "*" || (value >= low && value <= high);
  });
}

/** The rules in the slowest way: every minute's wall clock in order; what it skips falls on the first instant after, what it repeats counts once. */
function walk(cron: string, walls: readonly number[], from: number): number[] {
  const [minute = "", hour = "", , , weekday = ""] = cron.split(" ");
  const realHours = hour.startsWith("*");
  const matches = (wall: number): boolean => {
    const date = new Date(wall);
    return field(minute, date.getUTCMinutes()) && field(hour, date.getUTCHours()) && field(weekday, date.getUTCDay());
  };
  const seen = new Set<number>();
  const found = new Set<number>();
  for (const [i, wall] of walls.entries()) {
    const at = from + i * minuteMs;
    if (realHours) {
      if (matches(wall)) found.add(at);
      continue;
    }
    for (let skipped = (walls[i - 1] ?? wall) + minuteMs; skipped < wall; skipped += minuteMs) if (matches(skipped)) found.add(at);
    if (!seen.has(wall) && matches(wall)) found.add(at);
    seen.add(wall);
  }
  return [...found];
}

it.each(zones)("over every change of the clock of %s from 2025 to 2035, fire times are those of a walk over every minute", { timeout: 300_000 }, (zone) => {
  const wall = clockOf(zone);
  // a zone without changes has a week like any other
  const transitions = transitionsOf(zone);
  for (const transition of transitions.length > 0 ? transitions : [Date.UTC(2030, 2, 31)]) {
    const from = transition - 1.5 * dayMs;
    const walls = Array.from({ length: (3 * dayMs) / minuteMs }, (_, i) => wall(from + i * minuteMs));
    for (const cron of crons) {
      const times = fireTimes(cron, zone);
      const found: number[] = [];
      for (let at = times.next(from + dayMs / 2); at < from + 3 * dayMs; at = times.next(at)) found.push(at);
      const expected = walk(cron, walls, from).filter((at) => at > from + dayMs / 2);
      expect([zone, cron, new Date(transition).toISOString(), found.map((at) => new Date(at).toISOString())]).toEqual([
        zone,
        cron,
        new Date(transition).toISOString(),
        expected.map((at) => new Date(at).toISOString()),
      ]);
    }
  }
  if (zone !== "Asia/Kathmandu") expect(transitions.length).toBeGreaterThanOrEqual(5);
});
