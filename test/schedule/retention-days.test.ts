import { describe, expect, it } from "vitest";
import type { DesiredState, ScheduleSpec } from "../../src/model/desired.ts";
import { instantOf } from "../../src/model/instant.ts";
import type { RestorePoint } from "../../src/model/recorded.ts";
import type { VmPath } from "../../src/model/vm-path.ts";
import { expiryOf } from "../../src/plan/expiry.ts";

const dayMs = 86_400_000;
const graceMs = 7 * dayMs;
const zone = "Europe/Berlin";
const counts = { keepLast: 2, hourly: 6, daily: 7, weekly: 5, monthly: 4, yearly: 2 };

/** What an instant is called on a wall in Berlin: asked of the platform, not of our own code. */
const wall = new Intl.DateTimeFormat("en-CA", { timeZone: zone, hourCycle: "h23", year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit" });

function bucketsOf(atMs: number): Readonly<Record<"hourly" | "daily" | "weekly" | "monthly" | "yearly", string>> {
  const part = Object.fromEntries(wall.formatToParts(atMs).map(({ type, value }) => [type, value]));
  const date = `${part["year"]}-${part["month"]}-${part["day"]}`;
  // ISO 8601: the Thursday of a week names it
  const thursday = new Date(Date.parse(`${date}T00:00:00Z`));
  thursday.setUTCDate(thursday.getUTCDate() + 4 - (thursday.getUTCDay() || 7));
  const week = Math.ceil(((thursday.getTime() - Date.UTC(thursday.getUTCFullYear(), 0, 1)) / dayMs + 1) / 7);
  return {
    hourly: `${date}T${part["hour"]}`,
    daily: date,
    weekly: `${thursday.getUTCFullYear()}-W${week}`,
    monthly: date.slice(0, 7),
    yearly: date.slice(0, 4),
  };
}

/** The rules by brute force: for each, the newest of each of its newest buckets, and the oldest of all while it has count left. */
function keptByHand(points: readonly RestorePoint[]): Set<string> {
  const newestFirst = [...points].sort((a, b) => (a.instant < b.instant ? 1 : -1));
  const kept = new Set(newestFirst.slice(0, Math.max(1, counts.keepLast)).map(({ id }) => id));
  for (const rule of ["hourly", "daily", "weekly", "monthly", "yearly"] as const) {
    const newestOf = new Map<string, string>();
    for (const { id, instant } of newestFirst) {
      const bucket = bucketsOf(Date.parse(instant))[rule];
      if (!newestOf.has(bucket)) newestOf.set(bucket, id);
    }
    const chosen = [...newestOf.values()].slice(0, counts[rule]);
    for (const id of chosen) kept.add(id);
    if (chosen.length < counts[rule]) kept.add(newestFirst.at(-1)?.id as string);
  }
  return kept;
}

const schedule = { name: "nightly", timezone: zone, retention: counts, destination: "backups" } as unknown as ScheduleSpec;
const desired = { schedules: [schedule], destinations: [{ name: "backups", url: "file:///b", expiryGraceMs: graceMs }] } as unknown as DesiredState;

describe("400 days of exports every six hours, with a plan after each", () => {
  it.each([
    ["over ISO week 53 of 2026 and two changes of the clocks", "2026-11-01T00:00:00Z", "2026-W53"],
    ["over the leap day of 2028 and three changes of the clocks", "2027-10-01T00:00:00Z", "2028-02-29"],
  ])("%s keep what the rules say, mark the rest, and remove it after its grace", { timeout: 300_000 }, (_, from, passed) => {
    let points: RestorePoint[] = [];
    const start = Date.parse(from);
    const seen = new Set<string>();
    const marked = new Map<string, number>();
    for (let atMs = start; atMs < start + 400 * dayMs; atMs += 6 * 3_600_000) {
      const instant = instantOf(atMs);
      for (const bucket of Object.values(bucketsOf(atMs))) seen.add(bucket);
      points.push({
        id: `p${atMs}`,
        schedule: "nightly",
        provider: "local",
        identity: "web",
        vmPath: "/datacenter/vm/web" as VmPath,
        destination: "backups",
        destinationUrl: "file:///b",
        manifestPath: `points/x/${atMs}.json`,
        instant,
        storedBytes: 1,
        state: "good",
        held: false,
      });
      const kept = keptByHand(points);
      const { mark, withdraw, remove } = expiryOf(desired, points, new Map(), instant, () => undefined);
      const wasMarked = new Set(points.filter(({ expiresAt }) => expiresAt !== undefined).map(({ id }) => id));
      expect([instant, mark.map(({ point }) => point).sort()]).toEqual([
        instant,
        points
          .map(({ id }) => id)
          .filter((id) => !kept.has(id) && !wasMarked.has(id))
          .sort(),
      ]);
      expect([instant, withdraw.map(({ point }) => point).sort()]).toEqual([instant, [...wasMarked].filter((id) => kept.has(id)).sort()]);
      const due = points.filter(({ id, expiresAt }) => !kept.has(id) && expiresAt !== undefined && Date.parse(expiresAt) <= atMs).map(({ id }) => id);
      expect([instant, remove.map(({ point }) => point).sort()]).toEqual([instant, due.sort()]);
      for (const { point } of mark) marked.set(point, atMs);
      for (const { point } of remove) expect(atMs - (marked.get(point) as number)).toBeGreaterThanOrEqual(graceMs);
      const gone = new Set(remove.map(({ point }) => point));
      const back = new Set(withdraw.map(({ point }) => point));
      const expiry = new Map(mark.map(({ point, expiresAt }) => [point, expiresAt]));
      points = points
        .filter(({ id }) => !gone.has(id))
        .map(({ expiresAt, ...point }): RestorePoint => {
          const at = expiry.get(point.id) ?? (back.has(point.id) ? undefined : expiresAt);
          return at === undefined ? point : { ...point, expiresAt: at };
        });
    }
    expect(seen).toContain(passed);
    // at the end: what the rules keep, and a week of what waits for its removal
    const kept = points.filter(({ expiresAt }) => expiresAt === undefined);
    const most = 2 + 6 + 7 + 5 + 4 + 2;
    expect(kept.length).toBeLessThanOrEqual(most);
    expect(kept.length).toBeGreaterThanOrEqual(14);
    expect(points.length - kept.length).toBeLessThanOrEqual(7 * 4 + 1);
  });
});
