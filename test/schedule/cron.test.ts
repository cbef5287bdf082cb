import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { cronProblem, fireTimes } from "../../src/schedule/cron.ts";

const iso = (ms: number): string => new Date(ms).toISOString().slice(0, 16);
function upTo(cron: string, zone: string, from: string, to: string): string[] {
  const times = fireTimes(cron, zone);
  const found: string[] = [];
  for (let at = times.next(Date.parse(from)); at < Date.parse(to); at = times.next(at)) found.push(iso(at));
  return found;
}

describe("fire times", () => {
  it("are in the schedule's timezone", () => {
    expect(upTo("0 2 * * *", "Europe/Berlin", "2026-11-20T00:00:00Z", "2026-11-22T00:00:00Z")).toEqual(["2026-11-20T01:00", "2026-11-21T01:00"]);
  });

  it("inside the spring gap collapse into the first instant after it", () => {
    // Berlin skips 02:00–03:00 on 29 March 2026, at 01:00 UTC
    expect(upTo("15,45 2 * * *", "Europe/Berlin", "2026-03-28T23:30:00Z", "2026-03-29T12:00:00Z")).toEqual(["2026-03-29T01:00"]);
  });

  it("that are ambiguous in autumn fire at their first occurrence only", () => {
    // Berlin repeats 02:00–03:00 on 25 October 2026: 02:30 is 00:30 UTC and again 01:30 UTC
    expect(upTo("30 2,14 * * *", "Europe/Berlin", "2026-10-24T22:00:00Z", "2026-10-25T22:00:00Z")).toEqual(["2026-10-25T00:30", "2026-10-25T13:30"]);
  });

  it("with an hour field of * are real hours: none is lost and none doubled by the clock change", () => {
    const hours = upTo("0 * * * *", "Europe/Berlin", "2026-10-24T22:30:00Z", "2026-10-25T04:30:00Z");
    expect(hours).toEqual(["2026-10-24T23:00", "2026-10-25T00:00", "2026-10-25T01:00", "2026-10-25T02:00", "2026-10-25T03:00", "2026-10-25T04:00"]);
  });

  it("on Lord Howe, whose clock changes by half an hour, are still those of the wall clock", () => {
    expect(upTo("0 9 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", "2026-10-05T12:00:00Z")).toEqual(["2026-10-03T22:00", "2026-10-04T22:00"]);
  });

  it.each([
    ["0 2 31 2 *", "never"],
    ["0 0 2 * * *", "fields"],
    ["0 2 L * *", "syntax"],
    ["61 * * * *", "syntax"],
    ["0 2 * *", "fields"],
    ["hello", "fields"],
  ])("%s is refused: %s", (cron, problem) => {
    expect(cronProblem(cron)).toBe(problem);
  });

  it.each(["@daily", "@hourly", "0 0 29 2 *", "*/5 9-17 * JAN-MAR MON-FRI"])("%s is right", (cron) => {
    expect(cronProblem(cron)).toBeUndefined();
  });

  it("have a longest gap: the weekend for working hours, eight years for a leap day across a century is not needed before 2100", () => {
    const hour = 3_600_000;
    expect(fireTimes("0 9-17 * * 1-5", "UTC").longestGapMs()).toBe((24 * 2 + 16) * hour);
    expect(fireTimes("0 2 * * *", "UTC").longestGapMs()).toBe(24 * hour);
    expect(fireTimes("0 0 29 2 *", "UTC").longestGapMs()).toBe((4 * 365 + 1) * 24 * hour);
  });

  it("of plain numbers are those of the same numbers as lists, which croner reads", () => {
    const plain = (highest: number): fc.Arbitrary<string> => fc.oneof(fc.constant("*"), fc.integer({ min: 0, max: highest + 2 }).map(String));
    fc.assert(
      fc.property(plain(59), plain(23), plain(31), plain(12), plain(6), (minute, ...rest) => {
        const [cron, asLists] = [minute, `${minute},${minute}`].map((first) => [first, ...rest].join(" ")) as [string, string];
        expect(cronProblem(cron)).toBe(cronProblem(asLists));
        if (cronProblem(cron) !== undefined) return;
        const [ours, theirs] = [fireTimes(cron, "Europe/Berlin"), fireTimes(asLists, "Europe/Berlin")];
        let at = Date.UTC(2026, 1, 20);
        for (let i = 0; i < 3; i++) {
          expect(ours.next(at)).toBe(theirs.next(at));
          at = ours.next(at);
        }
        expect(ours.longestGapMs()).toBe(theirs.longestGapMs());
      }),
      { numRuns: 300 },
    );
  });

  it("agree with a walk over every minute that asks Intl, in zones with every kind of change", () => {
    const zones = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Casablanca"];
    const field = (most: number) =>
      fc.oneof(
        fc.constant("*"),
        fc.integer({ min: 0, max: most }).map(String),
        fc.integer({ min: 2, max: 12 }).map((step) => `*/${step}`),
        fc.uniqueArray(fc.integer({ min: 0, max: most }), { minLength: 1, maxLength: 3 }).map((list) => list.sort((a, b) => a - b).join(",")),
      );
    const starts = ["2026-03-28T00:00:00Z", "2026-10-24T20:00:00Z", "2026-11-01T00:00:00Z", "2026-04-04T10:00:00Z", "2026-07-01T00:00:00Z"];
    fc.assert(
      fc.property(
        field(59),
        field(23),
        fc.constantFrom("*", "1-5", "0", "6,0"),
        fc.constantFrom(...zones),
        fc.constantFrom(...starts),
        (minute, hour, weekday, zone, start) => {
          const from = Date.parse(start);
          const to = from + 3 * 86_400_000;
          const cron = `${minute} ${hour} * * ${weekday}`;
          const found: number[] = [];
          const times = fireTimes(cron, zone);
          for (let at = times.next(from); at < to; at = times.next(at)) found.push(at);
          expect(found.map(iso), `${cron} in ${zone} from ${start}`).toEqual(walkEveryMinute(minute, hour, weekday, zone, from, to).map(iso));
          for (const at of found) expect(times.latest(at + 30_000)).toBe(at);
        },
      ),
      { numRuns: 150, seed: 20261121 },
    );
  });
});

/** The rules again, in the slowest way: look at every minute's wall clock; map what the clock skips or repeats. */
function walkEveryMinute(minute: string, hour: string, weekday: string, zone: string, from: number, to: number): number[] {
  const format = new Intl.DateTimeFormat("en-US", { timeZone: zone, hourCycle: "h23", weekday: "short", day: "numeric", hour: "numeric", minute: "numeric" });
  const matches = (text: string, value: number): boolean =>
    text === "*" ||
    text
      .split(",")
      .some((part) =>
        part.startsWith("*/")
          ? value % Number(part.slice(2)) === 0
          : part.includes("-")
            ? value >= Number(part.split("-")[0]) && value <= Number(part.split("-")[1])
            : Number(part) === value,
      );
  const days = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
  const wallAt = (at: number): { key: string; h: number; m: number; w: number } => {
    const part = Object.fromEntries(format.formatToParts(at).map(({ type, value }) => [type, value]));
    return {
      key: `${part["day"]} ${part["hour"]}:${part["minute"]}`,
      h: Number(part["hour"]),
      m: Number(part["minute"]),
      w: days.indexOf(String(part["weekday"])),
    };
  };
  const realHours = /^\*(\/\d+)?$/.test(hour);
  const seen = new Set<string>();
  const found = new Set<number>();
  const begin = from - 86_400_000;
  let previous = wallAt(begin - 60_000);
  for (let at = begin; at < to; at += 60_000) {
    const wall = wallAt(at);
    const isMatch = (h: number, m: number, w: number): boolean => matches(minute, m) && matches(hour, h) && matches(weekday, w);
    if (realHours) {
      if (isMatch(wall.h, wall.m, wall.w)) found.add(at);
    } else {
      // minutes that the clock jumped over belong to the first instant after them
      for (let skipped = previous.h * 60 + previous.m + 1; skipped < wall.h * 60 + wall.m; skipped++)
        if (isMatch(Math.floor(skipped / 60), skipped % 60, wall.w)) found.add(at);
      if (isMatch(wall.h, wall.m, wall.w) && !seen.has(wall.key)) found.add(at);
    }
    seen.add(wall.key);
    previous = wall;
  }
  return [...found].filter((at) => at > from && at < to).sort((a, b) => a - b);
}
