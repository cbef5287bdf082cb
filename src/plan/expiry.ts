import type { DesiredState } from "../model/desired.ts";
import { clockToleranceMs, epochMsOf, type Instant, instantOf } from "../model/instant.ts";
import type { RestorePoint } from "../model/recorded.ts";
import { type RetentionVerdict, retain } from "../schedule/retention.ts";
import type { Expiry, ExpiryMark } from "./plan.ts";

/**
 * Part 4 of a plan: which restore points retention lets go. Only marks: a point is removed after its time of grace, and
 * then everything is asked again. Points of schedules that are no longer in the files are left alone.
 */
export function expiryOf(
  desired: DesiredState,
  points: readonly RestorePoint[],
  /** The time of grace at each URL as it was applied, in milliseconds. */
  gracesBefore: ReadonlyMap<string, number>,
  now: Instant,
  blockedReason: (point: RestorePoint) => string | undefined,
): Expiry {
  const nowMs = epochMsOf(now);
  const schedules = new Map(desired.schedules.map((schedule) => [schedule.name, schedule]));
  const graces = new Map(desired.destinations.map(({ url, expiryGraceMs }) => [url, expiryGraceMs]));
  const mark: ExpiryMark[] = [];
  const withdraw: { point: string; reason: string }[] = [];
  const remove: ExpiryMark[] = [];
  const blocked: { schedule: string; vmPath: RestorePoint["vmPath"]; points: number; reason: string }[] = [];

  for (const group of groupsOf(points)) {
    const first = group[0] as RestorePoint;
    const schedule = schedules.get(first.schedule);
    if (!schedule) continue;
    const verdicts = verdictsOf(group, schedule.retention, schedule.timezone, nowMs);
    const byId = new Map(group.map((point) => [point.id, point]));
    const leaving = verdicts.filter(({ keptBy }) => keptBy.length === 0).map(({ id }) => byId.get(id) as RestorePoint);
    for (const { id, keptBy } of verdicts) {
      if (keptBy.length > 0 && byId.get(id)?.expiresAt !== undefined) withdraw.push({ point: id, reason: `kept by ${keptBy.join(", ")}` });
    }
    const reason = blockedReason(first);
    if (reason !== undefined) {
      if (leaving.length > 0) blocked.push({ schedule: first.schedule, vmPath: first.vmPath, points: leaving.length, reason });
      continue;
    }
    for (const point of leaving) {
      const graceMs = graces.get(point.destinationUrl) ?? 7 * 86_400_000;
      // a longer time of grace is for what is marked already, too: nobody lengthens it to lose something
      const addedMs = Math.max(0, graceMs - (gracesBefore.get(point.destinationUrl) ?? graceMs));
      const expiresAt = instantOf(point.expiresAt === undefined ? nowMs + graceMs : epochMsOf(point.expiresAt) + addedMs);
      const entry = markOf(point, expiresAt, "no rule keeps it");
      if (point.expiresAt !== expiresAt) mark.push(entry);
      if (epochMsOf(expiresAt) <= nowMs) remove.push(entry);
    }
  }
  const oldestFirst = (a: ExpiryMark, b: ExpiryMark): number => (a.instant < b.instant ? -1 : a.instant > b.instant ? 1 : a.point < b.point ? -1 : 1);
  return {
    mark: mark.sort(oldestFirst),
    remove: remove.sort(oldestFirst),
    withdraw: withdraw.sort((a, b) => (a.point < b.point ? -1 : 1)),
    blocked: blocked.sort((a, b) => (a.schedule < b.schedule ? -1 : a.schedule > b.schedule ? 1 : a.vmPath < b.vmPath ? -1 : 1)),
  };
}

/** Points that are dated ahead of the clock stay, and count for nothing: for a year, one of them would be the newest. */
export function verdictsOf(group: readonly RestorePoint[], retention: Parameters<typeof retain>[1], timezone: string, nowMs: number): RetentionVerdict[] {
  const latest = instantOf(nowMs + clockToleranceMs);
  const ahead = group.filter(({ instant }) => instant > latest);
  const present = group.filter(({ instant }) => instant <= latest);
  const retainable = present.map((point) => ({ id: point.id, atMs: epochMsOf(point.instant), isGood: point.state === "good", isHeld: point.held }));
  return [...ahead.map(({ id }): RetentionVerdict => ({ id, keptBy: ["ahead of the clock"] })), ...retain(retainable, retention, timezone, nowMs)];
}

/** Retention counts per VM, schedule and destination. */
export function groupKey({ provider, identity, schedule, destinationUrl }: RestorePoint): string {
  return `${provider}\n${identity}\n${schedule}\n${destinationUrl}`;
}

export function groupsOf(points: readonly RestorePoint[]): RestorePoint[][] {
  const groups = Map.groupBy(points, groupKey);
  return [...groups.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, group]) => group);
}

function markOf(point: RestorePoint, expiresAt: Instant, rule: string): ExpiryMark {
  const { id, schedule, vmPath, destination, instant, storedBytes } = point;
  return { point: id, schedule, vmPath, destination, instant, storedBytes, expiresAt, rule };
}
