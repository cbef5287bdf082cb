import { createHash, type Hash } from "node:crypto";
import type { DesiredState, ScheduleSpec } from "../model/desired.ts";
import { formatDuration } from "../model/duration.ts";
import { epochMsOf, type Instant, instantOf, latestBy } from "../model/instant.ts";
import type { Observed, ObservedVm } from "../model/observed.ts";
import type { Recorded, RecordedProtection, RecordedRun, RestorePoint } from "../model/recorded.ts";
import type { VmPath } from "../model/vm-path.ts";
import { fireTimes } from "../schedule/cron.ts";
import { byUrgency } from "../schedule/run-queue.ts";
import { changesOf } from "./changes.ts";
import { driftOf } from "./drift.ts";
import { type Decision, type DueContext, decide, startsAtOnce } from "./due.ts";
import { expiryOf, groupsOf, verdictsOf } from "./expiry.ts";
import { lostPoints, withoutLost } from "./lost.ts";
import { type Member, type Membership, membership, protectionKey } from "./membership.ts";
import { movedPoints, withMoves } from "./moved.ts";
import { order } from "./order.ts";
import { type Consequences, type ExpiryMark, type LostPoint, type Plan, type PlannedExport, type ProtectionChange, type Revision, turnOf } from "./plan.ts";
import { type DesiredResource, resourcesOf } from "./resources.ts";
import { withoutEmptied, withRenames } from "./shown.ts";
import { warningsOf } from "./warnings.ts";

export interface PlanInput {
  readonly desired: DesiredState;
  readonly recorded: Recorded;
  readonly observed: Observed;
  readonly revision: Revision | null;
  readonly now: Instant;
}

/** The planner: a pure function of its input. No clock, no chance, no environment, no order of files. */
export function plan({ desired, recorded: noted, observed: shown, revision, now }: PlanInput): Plan {
  const moved = movedPoints(desired, noted, shown.destinations);
  const recorded = withMoves(noted, moved);
  const observed = withoutEmptied(shown, recorded);
  const vms = withRenames(desired, observed.vms, recorded.protections);
  const joined = membership(desired, vms, recorded.protections);
  const protections = new Map(
    recorded.protections.map((protection) => [protectionKey(protection.schedule, protection.provider, protection.identity), protection]),
  );
  const resources = resourcesOf(desired);
  const protectionChanges = protectionChangesOf(desired, recorded, observed, joined, protections, resources);
  const begins = new Set(
    protectionChanges
      .filter(({ kind }) => kind === "begin" || kind === "restarted")
      .map((change) => protectionKey(change.schedule, change.provider, change.identity)),
  );
  const suspended = [...recorded.suspended].sort();

  const context = dueContext(desired, recorded, protections, joined, now);
  const decisions: Decision[] = [];
  for (const [key, member] of joined.members) {
    const isNew = !protections.has(key);
    const decision = begins.has(key) && !isNew ? undefined : decide(key, member, isNew, context);
    if (decision) decisions.push(decision);
  }
  const lost = lostPoints(recorded.points, observed.destinations);
  const points = withoutLost(recorded.points, lost);
  const overdue = overdueOf(joined, protections, newestGoodOf(points, now), context, now);
  const urls = new Map(desired.destinations.map(({ url, name }) => [url, name]));
  const unknown = new Map(observed.isOffline ? [] : observed.unknownDestinations.map(({ name, reason }) => [name, reason]));
  const newest = newestOf(points, now);
  const blocked = (point: RestorePoint): string | undefined => {
    const destination = urls.get(point.destinationUrl);
    if (destination === undefined) return `no destination of the files has the URL ${point.destinationUrl}`;
    const why = unknown.get(destination);
    if (why !== undefined) return `the destination cannot be looked at: ${why}`;
    const key = protectionKey(point.schedule, point.provider, point.identity);
    if (overdue.has(key)) return "the protection is overdue";
    return doubtOf(newest.get(key), lost);
  };
  const expiry = expiryOf(desired, points, gracesOf(recorded), now, blocked);
  const changes = changesOf(resources, recorded.resources, consequencesOf(desired, recorded, protectionChanges, expiry.mark, now));
  return {
    formatVersion: 1,
    at: now,
    revision,
    lineage: recorded.lineage,
    serial: recorded.serial,
    desiredDigest: digestOf(resources, desired.renames),
    inventoryDigest: inventoryDigestOf(vms),
    changes,
    unchanged: resources.length - changes.filter(({ kind }) => kind !== "delete").length,
    protections: protectionChanges,
    exports: decisions.flatMap((each) => (each.kind === "due" ? [each.export] : [])).sort(inTurn),
    deferred: decisions.flatMap((each) => (each.kind === "deferred" ? [each.export] : [])).sort(inTurn),
    skipped: decisions.flatMap((each) => (each.kind === "skipped" ? [each.export] : [])).sort(inTurn),
    drift: driftOf(observed, recorded, lost, protectionChanges, overdue, joined, protections),
    expiry,
    suspended,
    warnings: warningsOf(desired, observed, joined, moved),
  };
}

/** What speaks against taking the newest restore point of a VM for good. */
function doubtOf(newest: RestorePoint | undefined, lost: ReadonlyMap<string, LostPoint>): string | undefined {
  if (newest?.state === "good") return undefined;
  switch (lost.get(newest?.id ?? "")?.kind) {
    case "point-missing":
      return "the last restore point is gone";
    case "point-altered":
      return "the files of the last restore point are not what was stored";
    case undefined:
      return `the last restore point ${newest?.state === "bad" ? "failed its verification" : "is not proved yet"}`;
  }
}

/** As the queue starts them. */
function inTurn(a: PlannedExport, b: PlannedExport): number {
  return byUrgency(turnOf(a), turnOf(b));
}

function digestOf(resources: readonly DesiredResource[], renames: DesiredState["renames"]): string {
  const hash = createHash("sha256");
  updateAll(
    hash,
    resources.map(({ address, spec }) => `${address} ${spec}`),
  );
  for (const { vm, formerly } of renames) hash.update(JSON.stringify([vm, formerly]));
  return hash.digest("hex");
}

/** Over what an export of the inventory would depend on: who is there, and with which disks. */
function inventoryDigestOf(vms: readonly ObservedVm[]): string {
  const rows = [...vms].sort((a, b) => order(a.provider, b.provider) || order(a.identity, b.identity));
  const hash = createHash("sha256");
  updateAll(
    hash,
    rows.map(({ provider, identity, path, disks }) =>
      JSON.stringify([provider, identity, path, disks.map((disk) => [disk.name, disk.format, disk.virtualBytes])]),
    ),
  );
  return hash.digest("hex");
}

/** A thousand lines at a time: a call for each costs more than its bytes. */
function updateAll(hash: Hash, lines: readonly string[]): void {
  for (let i = 0; i < lines.length; i += 1000) hash.update(`${lines.slice(i, i + 1000).join("\n")}\n`);
}

function protectionChangesOf(
  desired: DesiredState,
  recorded: Recorded,
  observed: Observed,
  joined: Membership,
  protections: ReadonlyMap<string, RecordedProtection>,
  resources: readonly DesiredResource[],
): ProtectionChange[] {
  const unknown = new Set(observed.unknownProviders.map(({ name }) => name));
  const isUnknown = ({ provider, identity }: Member): boolean =>
    unknown.has(provider) ||
    observed.unknownVms.some((each) => each.provider === provider && (identity === each.identity || identity.startsWith(`${each.identity}/`)));
  const providers = new Set(desired.providers.map(({ name }) => name));
  const rescheduled = rescheduledOf(desired, recorded, resources);
  const known = new Set(recorded.resources.map(({ address }) => address));
  const changesOf = (member: Member, protection: RecordedProtection | undefined): ProtectionChange[] => {
    const at = { schedule: member.schedule.name, provider: member.provider, identity: member.identity, vmPath: member.vmPath };
    if (!protection) {
      const isNewSchedule = !known.has(`schedule.${member.schedule.name}`);
      return member.vm ? [{ ...at, kind: "begin", reason: isNewSchedule ? "the schedule is new" : "a pattern matches it now" }] : [];
    }
    // an unreachable provider changes nothing; one that is gone from the files shows no VMs
    if (!member.vm) return protection.state === "active" && !isUnknown(member) ? [{ ...at, kind: "missing" }] : [];
    const why = rescheduled.get(member.schedule.name);
    return [
      ...(protection.state === "missing" ? [{ ...at, kind: "found" } as const] : []),
      ...(protection.vmPath !== member.vmPath ? [{ ...at, kind: "renamed", from: protection.vmPath } as const] : []),
      ...(why ? [{ ...at, kind: "restarted", reason: why } as const] : []),
    ];
  };
  const schedules = new Set(desired.schedules.map(({ name }) => name));
  const endOf = ({ schedule, provider, identity, vmPath }: RecordedProtection): ProtectionChange => ({
    schedule,
    provider,
    identity,
    vmPath,
    kind: "end",
    reason: !schedules.has(schedule) ? "the schedule was removed" : providers.has(provider) ? "no pattern matches it any more" : "its provider was removed",
  });
  const changes = [
    ...[...joined.members].flatMap(([key, member]) => changesOf(member, protections.get(key))),
    ...[...protections].filter(([key]) => !joined.members.has(key)).map(([, protection]) => endOf(protection)),
  ];
  return changes.sort((a, b) => order(a.schedule, b.schedule) || order(a.vmPath, b.vmPath) || order(a.provider, b.provider) || order(a.kind, b.kind));
}

/** Schedules whose fire times are others now, or that stop being suspended: what passed before is not theirs. */
function rescheduledOf(desired: DesiredState, recorded: Recorded, resources: readonly DesiredResource[]): Map<string, string> {
  const before = new Map(recorded.resources.map(({ address, spec }) => [address, spec]));
  const reasons = new Map<string, string>();
  const after = new Map(resources.map(({ address, spec }) => [address, spec]));
  for (const schedule of desired.schedules) {
    const address = `schedule.${schedule.name}`;
    const spec = before.get(address);
    if (spec === undefined || spec === after.get(address)) continue;
    const old = JSON.parse(spec) as Partial<ScheduleSpec>;
    if (old.cron !== schedule.cron || old.timezone !== schedule.timezone) reasons.set(schedule.name, "its cron expression or timezone changed");
    else if (old.suspend && !schedule.suspend) reasons.set(schedule.name, "it is no longer suspended");
  }
  return reasons;
}

function dueContext(
  desired: DesiredState,
  recorded: Recorded,
  protections: ReadonlyMap<string, RecordedProtection>,
  joined: Membership,
  now: Instant,
): DueContext {
  const schedules = new Map(desired.schedules.map((schedule) => [schedule.name, schedule]));
  const bySchedule = Map.groupBy(recorded.protections, ({ schedule }) => schedule);
  const runs = new Map<string, RecordedRun[]>();
  for (const run of recorded.runs) {
    const key = protectionKey(run.schedule, run.provider, run.identity);
    const list = runs.get(key);
    if (list) list.push(run);
    else runs.set(key, [run]);
  }
  const suspended = new Set(recorded.suspended);
  const withPoints = new Set(recorded.points.map((point) => protectionKey(point.schedule, point.provider, point.identity)));
  const isSuspended = (schedule: string): boolean => suspended.has(schedule) || (schedules.get(schedule)?.suspend ?? false);
  const firstExports = new Map<string, number>();
  for (const [key, member] of joined.members) {
    const { name } = member.schedule;
    if (!protections.has(key) && startsAtOnce(member, { isSuspended })) firstExports.set(name, (firstExports.get(name) ?? 0) + 1);
  }
  return {
    now,
    schedules,
    protections,
    runs,
    protectionsOf: (schedule) => bySchedule.get(schedule) ?? [],
    isSuspended,
    hasPoints: (key) => withPoints.has(key),
    firstExportsOf: (schedule) => firstExports.get(schedule) ?? 0,
  };
}

/** The time of grace at each URL, as it was applied: names may change. */
function gracesOf({ resources }: Recorded): Map<string, number> {
  return new Map(
    resources.flatMap(({ address, spec }): [string, number][] => {
      if (!address.startsWith("destination.")) return [];
      const { url, expiryGraceMs } = JSON.parse(spec) as Partial<DesiredState["destinations"][number]>;
      return url === undefined || expiryGraceMs === undefined ? [] : [[url, expiryGraceMs]];
    }),
  );
}

/** Protections whose newest good restore point is older than their objective, with the words for it. */
function overdueOf(
  joined: Membership,
  protections: ReadonlyMap<string, RecordedProtection>,
  newestGood: ReadonlyMap<string, Instant>,
  context: DueContext,
  now: Instant,
): Map<string, string> {
  const nowMs = epochMsOf(now);
  const reasonOf = (key: string, member: Member): string | undefined => {
    const protection = protections.get(key);
    if (!protection || context.isSuspended(member.schedule.name)) return undefined;
    // a success whose restore point is gone or damaged protects nothing
    const good = newestGood.get(key);
    const sinceMs = epochMsOf(good ?? protection.effectiveSince);
    const ageMs = nowMs - sinceMs;
    if (member.rpoMs === undefined && isFresh(member, sinceMs, nowMs)) return undefined;
    const rpoMs = member.rpoMs ?? 2 * fireTimes(member.schedule.cron, member.schedule.timezone).longestGapMs();
    if (ageMs <= rpoMs) return undefined;
    const what = good ? `its last good export is ${formatDuration(ageMs)} old` : `it has had no good export for ${formatDuration(ageMs)}`;
    return `${what}, the objective is ${formatDuration(rpoMs)}`;
  };
  return new Map(
    [...joined.members].flatMap(([key, member]): [string, string][] => {
      const reason = reasonOf(key, member);
      return reason === undefined ? [] : [[key, reason]];
    }),
  );
}

/** The newest good restore point of each protection; what a clock that was ahead has recorded says nothing of how old it is. */
function newestGoodOf(points: readonly RestorePoint[], now: Instant): Map<string, Instant> {
  const newest = new Map<string, Instant>();
  const latest = latestBy(now);
  for (const point of points) {
    if (point.instant > latest) continue;
    const key = protectionKey(point.schedule, point.provider, point.identity);
    if (point.state === "good" && point.instant > (newest.get(key) ?? "")) newest.set(key, point.instant);
  }
  return newest;
}

/** The gap that now lies in is no longer than the longest one, so nothing since its beginning can be overdue. */
function isFresh(member: Member, sinceMs: number, nowMs: number): boolean {
  return nowMs - sinceMs <= 60_000 || sinceMs >= fireTimes(member.schedule.cron, member.schedule.timezone).latest(nowMs);
}

/** The newest restore point of each protection, whatever its state, that is not ahead of the clock. */
function newestOf(points: readonly RestorePoint[], now: Instant): Map<string, RestorePoint> {
  const newest = new Map<string, RestorePoint>();
  const latest = latestBy(now);
  for (const point of points) {
    if (point.instant > latest) continue;
    const key = protectionKey(point.schedule, point.provider, point.identity);
    const known = newest.get(key);
    if (!known || point.instant > known.instant) newest.set(key, point);
  }
  return newest;
}

function consequencesOf(desired: DesiredState, recorded: Recorded, protectionChanges: readonly ProtectionChange[], marks: readonly ExpiryMark[], now: Instant) {
  const nowMs = epochMsOf(now);
  const bySchedule = Map.groupBy(protectionChanges, ({ schedule }) => schedule);
  const points = Map.groupBy(recorded.points, ({ schedule }) => schedule);
  const marked = Map.groupBy(marks, ({ schedule }) => schedule);
  const schedules = new Map(desired.schedules.map((schedule) => [schedule.name, schedule]));
  /** What would go without the change is none of its consequences. */
  const expirableBy = (name: string, old: ScheduleSpec | undefined): number => {
    const all = marked.get(name) ?? [];
    if (!old || all.length === 0) return all.length;
    const verdicts = groupsOf(points.get(name) ?? []).flatMap((group) => verdictsOf(group, old.retention, old.timezone, nowMs));
    const went = new Set(verdicts.filter(({ keptBy }) => keptBy.length === 0).map(({ id }) => id));
    return all.filter(({ point }) => !went.has(point)).length;
  };
  return (name: string, before: string | undefined, after: string | undefined): Consequences => {
    const changes = bySchedule.get(name) ?? [];
    const old = before === undefined ? undefined : (JSON.parse(before) as ScheduleSpec);
    const next = (schedule: ScheduleSpec | undefined): Instant | undefined =>
      schedule && !schedule.suspend ? instantOf(fireTimes(schedule.cron, schedule.timezone).next(nowMs)) : undefined;
    const nextRunBefore = next(old);
    const nextRunAfter = after === undefined ? undefined : next(schedules.get(name));
    return {
      gained: pathsOf(changes, "begin"),
      lost: pathsOf(changes, "end"),
      ...(nextRunBefore ? { nextRunBefore } : {}),
      ...(nextRunAfter ? { nextRunAfter } : {}),
      expirable: expirableBy(name, old),
      keepsPoints: after === undefined ? (points.get(name) ?? []).length : 0,
    };
  };
}

function pathsOf(changes: readonly ProtectionChange[], kind: ProtectionChange["kind"]): VmPath[] {
  return changes.filter((change) => change.kind === kind).map(({ vmPath }) => vmPath);
}
