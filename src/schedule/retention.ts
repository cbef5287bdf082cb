import type { RetentionSpec } from "../model/desired.ts";
import { fieldsOf, startOfDay, wallOf } from "./zone.ts";

export interface RetainablePoint {
  readonly id: string;
  /** The instant that the point holds, epoch milliseconds. */
  readonly atMs: number;
  readonly isGood: boolean;
  readonly isHeld: boolean;
}

type KeepReason = "ahead of the clock" | "newest good" | "held" | "last" | "within" | "hourly" | "daily" | "weekly" | "monthly" | "yearly" | "no retention";

export interface RetentionVerdict {
  readonly id: string;
  /** Why it stays; empty means that retention lets it go. */
  readonly keptBy: readonly KeepReason[];
}

const periods = ["hourly", "daily", "weekly", "monthly", "yearly"] as const;

/**
 * Decides which restore points of one VM, schedule and destination stay. Newest first; each rule counts on its own, and a
 * point stays when any rule keeps it. The newest good point always stays. A damaged point fills no bucket, so that it can
 * never push out a good one. Times after `nowMs` count as now for `within`.
 */
export function retain(points: readonly RetainablePoint[], rules: RetentionSpec | undefined, timezone: string, nowMs: number): RetentionVerdict[] {
  const newestFirst = [...points].sort((a, b) => b.atMs - a.atMs || (a.id < b.id ? 1 : -1));
  const kept = new Map<string, KeepReason[]>(newestFirst.map((point) => [point.id, []]));
  const keep = (point: RetainablePoint, reason: KeepReason): void => void kept.get(point.id)?.push(reason);

  const good = newestFirst.filter((point) => point.isGood);
  if (good[0]) keep(good[0], "newest good");
  for (const point of newestFirst) {
    if (point.isHeld) keep(point, "held");
    if (!rules) keep(point, "no retention");
  }
  if (rules) {
    for (const point of good.slice(0, rules.keepLast ?? 0)) keep(point, "last");
    const newestMs = good[0] && Math.min(good[0].atMs, nowMs);
    if (rules.withinMs !== undefined && newestMs !== undefined) {
      for (const point of newestFirst) if (point.atMs > newestMs - rules.withinMs) keep(point, "within");
    }
    for (const period of periods) keepBuckets(good, period, rules[period] ?? 0, timezone, keep);
  }
  return newestFirst.map((point) => ({ id: point.id, keptBy: kept.get(point.id) ?? [] }));
}

function keepBuckets(
  newestFirst: readonly RetainablePoint[],
  period: (typeof periods)[number],
  count: number,
  timezone: string,
  keep: (point: RetainablePoint, reason: KeepReason) => void,
): void {
  let left = count;
  let last: string | undefined;
  for (const [i, point] of newestFirst.entries()) {
    if (left === 0) return;
    const bucket = bucketOf(period, wallOf(timezone, point.atMs));
    const isOldest = i === newestFirst.length - 1;
    if (bucket === last && !isOldest) continue;
    keep(point, period);
    last = bucket;
    left--;
  }
}

function bucketOf(period: (typeof periods)[number], wall: number): string {
  const { year, month, day, hour } = fieldsOf(wall);
  switch (period) {
    case "hourly":
      return `${year}-${month}-${day}T${hour}`;
    case "daily":
      return `${year}-${month}-${day}`;
    case "weekly":
      return isoWeek(wall);
    case "monthly":
      return `${year}-${month}`;
    case "yearly":
      return `${year}`;
  }
}

/** ISO 8601: a week belongs to the year that holds its Thursday. */
function isoWeek(wall: number): string {
  const dayMs = 86_400_000;
  const monday = startOfDay(wall) - ((fieldsOf(wall).weekday + 6) % 7) * dayMs;
  const thursday = monday + 3 * dayMs;
  const { year } = fieldsOf(thursday);
  return `${year}-W${Math.floor((thursday - Date.UTC(year, 0, 1)) / (7 * dayMs)) + 1}`;
}
