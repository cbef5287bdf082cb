import { createHash, type Hash } from "node:crypto";
import type { DesiredState, ScheduleSpec } from "../model/desired.ts";
import { formatDuration } from "../model/duration.ts";
import { epochMsOf, type Instant, instantOf } from "../model/instant.ts";
import type { Observed, ObservedDisk, ObservedVm } from "../model/observed.ts";
import { patternOf } from "../model/pattern.ts";
import type { Recorded, RecordedDisk, RecordedProtection, RecordedRun, RestorePoint } from "../model/recorded.ts";
import type { VmPath } from "../model/vm-path.ts";
import { fireTimes } from "../schedule/cron.ts";
import { byUrgency } from "../schedule/run-queue.ts";
import { changesOf } from "./changes.ts";
import { clockToleranceMs, type Decision, type DueContext, decide } from "./due.ts";
import { expiryOf } from "./expiry.ts";
import { type Member, type Membership, membership, protectionKey } from "./membership.ts";
import { type MovedPoint, movedPoints, movesOf, withMoves } from "./moved.ts";
import { type Consequences, type Drift, type Plan, type PlannedExport, type PlanWarning, type ProtectionChange, type Revision, turnOf } from "./plan.ts";
import { type DesiredResource, resourcesOf } from "./resources.ts";

export interface PlanInput {
  readonly desired: DesiredState;
  readonly recorded: Recorded;
  readonly observed: Observed;
  readonly revision: Revision | null;
  readonly now: Instant;
}

/** The planner: a pure function of its input. No clock, no chance, no environment, no order of files. */
export function plan({ desired, recorded: noted, observed, revision, now }: PlanInput): Plan {
  const moved = movedPoints(desired, noted, observed.destinations);
  const recorded = withMoves(noted, moved);
  const vms = withRenames(desired, observed.vms);
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

  const context = dueContext(desired, recorded, protections, now);
  const decisions: Decision[] = [];
  for (const [key, member] of joined.members) {
    const isNew = !protections.has(key);
    const decision = begins.has(key) && !isNew ? undefined : decide(key, member, isNew, context);
    if (decision) decisions.push(decision);
  }
  const overdue = overdueOf(joined, protections, newestGoodOf(recorded.points, now), context, now);
  const urls = new Set(desired.destinations.map(({ url }) => url));
  const newest = newestOf(recorded.points);
  const blocked = (point: RestorePoint): string | undefined => {
    if (!urls.has(point.destinationUrl)) return `no destination of the files has the URL ${point.destinationUrl}`;
    const key = protectionKey(point.schedule, point.provider, point.identity);
    if (overdue.has(key)) return "the protection is overdue";
    const last = newest.get(key)?.state;
    return last === "good" ? undefined : `the last restore point ${last === "bad" ? "failed its verification" : "is not proved yet"}`;
  };
  const expiry = expiryOf(desired, recorded.points, gracesOf(recorded), now, blocked);
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
    drift: driftOf(recorded, observed, protectionChanges, overdue, joined, protections),
    expiry,
    suspended,
    warnings: warningsOf(desired, observed, joined, moved),
  };
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

function order(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/**
 * A VM that `renames` says was known by another path keeps that path's identity, so that its history goes on; a new VM under the
 * former path gets one of its own. What the provider calls them stays in `sourceIdentity`.
 */
export function withRenames(desired: DesiredState, vms: readonly ObservedVm[]): ObservedVm[] {
  if (desired.renames.length === 0) return [...vms];
  const formerly = new Map(desired.renames.map((rename) => [rename.vm, rename.formerly]));
  const left = new Set(desired.renames.map((rename) => rename.formerly));
  const roots = new Map(desired.providers.map((provider) => [provider.name, provider.root]));
  const byPath = new Map(vms.map((vm) => [vm.path, vm]));
  return vms.map((vm) => {
    const old = formerly.get(vm.path);
    const root = roots.get(vm.provider) ?? "";
    if (old !== undefined) {
      // the identity that the former path had: that of who is there now, or the path itself
      const identity = byPath.get(old)?.identity ?? (old.startsWith(`${root}/`) ? old.slice(root.length + 1) : old);
      return { ...vm, identity, sourceIdentity: vm.identity };
    }
    return left.has(vm.path) ? { ...vm, identity: `${vm.identity} (new)`, sourceIdentity: vm.identity } : vm;
  });
}

function protectionChangesOf(
  desired: DesiredState,
  recorded: Recorded,
  observed: Observed,
  joined: Membership,
  protections: ReadonlyMap<string, RecordedProtection>,
  resources: readonly DesiredResource[],
): ProtectionChange[] {
  const changes: ProtectionChange[] = [];
  const unknown = new Set(observed.unknownProviders.map(({ name }) => name));
  const isUnknown = ({ provider, identity }: Member): boolean =>
    unknown.has(provider) ||
    observed.unknownVms.some((each) => each.provider === provider && (identity === each.identity || identity.startsWith(`${each.identity}/`)));
  const providers = new Set(desired.providers.map(({ name }) => name));
  const rescheduled = rescheduledOf(desired, recorded, resources);
  const known = new Set(recorded.resources.map(({ address }) => address));
  for (const [key, member] of joined.members) {
    const at = { schedule: member.schedule.name, provider: member.provider, identity: member.identity, vmPath: member.vmPath };
    const protection = protections.get(key);
    if (!protection) {
      const isNewSchedule = !known.has(`schedule.${member.schedule.name}`);
      if (member.vm) changes.push({ ...at, kind: "begin", reason: isNewSchedule ? "the schedule is new" : "a pattern matches it now" });
      continue;
    }
    if (!member.vm) {
      // an unreachable provider changes nothing; one that is gone from the files shows no VMs
      if (protection.state === "active" && !isUnknown(member)) changes.push({ ...at, kind: "missing" });
      continue;
    }
    if (protection.state === "missing") changes.push({ ...at, kind: "found" });
    if (protection.vmPath !== member.vmPath) changes.push({ ...at, kind: "renamed", from: protection.vmPath });
    const why = rescheduled.get(member.schedule.name);
    if (why) changes.push({ ...at, kind: "restarted", reason: why });
  }
  const schedules = new Set(desired.schedules.map(({ name }) => name));
  for (const [key, protection] of protections) {
    if (joined.members.has(key)) continue;
    const reason = !schedules.has(protection.schedule)
      ? "the schedule was removed"
      : providers.has(protection.provider)
        ? "no pattern matches it any more"
        : "its provider was removed";
    changes.push({
      schedule: protection.schedule,
      provider: protection.provider,
      identity: protection.identity,
      vmPath: protection.vmPath,
      kind: "end",
      reason,
    });
  }
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

function dueContext(desired: DesiredState, recorded: Recorded, protections: ReadonlyMap<string, RecordedProtection>, now: Instant): DueContext {
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
  return {
    now,
    schedules,
    protections,
    runs,
    protectionsOf: (schedule) => bySchedule.get(schedule) ?? [],
    isSuspended: (schedule) => suspended.has(schedule) || (schedules.get(schedule)?.suspend ?? false),
  };
}

/** The time of grace of each destination that has been applied. */
function gracesOf({ resources }: Recorded): Map<string, number> {
  return new Map(
    resources.flatMap(({ address, spec }): [string, number][] => {
      if (!address.startsWith("destination.")) return [];
      const { expiryGraceMs } = JSON.parse(spec) as Partial<DesiredState["destinations"][number]>;
      return expiryGraceMs === undefined ? [] : [[address.slice("destination.".length), expiryGraceMs]];
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
  const overdue = new Map<string, string>();
  for (const [key, member] of joined.members) {
    const protection = protections.get(key);
    if (!protection || context.isSuspended(member.schedule.name)) continue;
    // a success whose restore point is gone or damaged protects nothing
    const good = newestGood.get(key);
    const sinceMs = epochMsOf(good ?? protection.effectiveSince);
    const ageMs = nowMs - sinceMs;
    if (member.rpoMs === undefined && isFresh(member, sinceMs, nowMs)) continue;
    const rpoMs = member.rpoMs ?? 2 * fireTimes(member.schedule.cron, member.schedule.timezone).longestGapMs();
    if (ageMs <= rpoMs) continue;
    const what = good ? `its last good export is ${formatDuration(ageMs)} old` : `it has had no good export for ${formatDuration(ageMs)}`;
    overdue.set(key, `${what}, the objective is ${formatDuration(rpoMs)}`);
  }
  return overdue;
}

/** The newest good restore point of each protection; what a clock that was ahead has recorded says nothing of how old it is. */
function newestGoodOf(points: readonly RestorePoint[], now: Instant): Map<string, Instant> {
  const newest = new Map<string, Instant>();
  const latest = instantOf(epochMsOf(now) + clockToleranceMs);
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

/** The newest restore point of each protection, whatever its state. */
function newestOf(points: readonly RestorePoint[]): Map<string, RestorePoint> {
  const newest = new Map<string, RestorePoint>();
  for (const point of points) {
    const key = protectionKey(point.schedule, point.provider, point.identity);
    const known = newest.get(key);
    if (!known || point.instant > known.instant) newest.set(key, point);
  }
  return newest;
}

function consequencesOf(
  desired: DesiredState,
  recorded: Recorded,
  protectionChanges: readonly ProtectionChange[],
  marks: readonly { readonly schedule: string }[],
  now: Instant,
) {
  const nowMs = epochMsOf(now);
  const bySchedule = Map.groupBy(protectionChanges, ({ schedule }) => schedule);
  const points = Map.groupBy(recorded.points, ({ schedule }) => schedule);
  const marked = Map.groupBy(marks, ({ schedule }) => schedule);
  const schedules = new Map(desired.schedules.map((schedule) => [schedule.name, schedule]));
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
      expirable: (marked.get(name) ?? []).length,
      keepsPoints: after === undefined ? (points.get(name) ?? []).length : 0,
    };
  };
}

function pathsOf(changes: readonly ProtectionChange[], kind: ProtectionChange["kind"]): VmPath[] {
  return changes.filter((change) => change.kind === kind).map(({ vmPath }) => vmPath);
}

/** Part 3 of a plan: what the world shows against what was recorded. What cannot be seen is unknown, never drift. */
function driftOf(
  recorded: Recorded,
  observed: Observed,
  changes: readonly ProtectionChange[],
  overdue: ReadonlyMap<string, string>,
  joined: Membership,
  protections: ReadonlyMap<string, RecordedProtection>,
): Drift[] {
  const drift: Drift[] = [];
  for (const { name, reason } of observed.unknownProviders) drift.push({ kind: "unknown", what: `provider.${name}`, message: reason });
  for (const { provider, identity, reason } of observed.unknownVms) drift.push({ kind: "unknown", what: `${provider}: ${identity}`, message: reason });
  for (const { name, reason } of observed.unknownDestinations) drift.push({ kind: "unknown", what: `destination.${name}`, message: reason });
  for (const change of changes) {
    const at = { schedule: change.schedule, vmPath: change.vmPath };
    if (change.kind === "missing") drift.push({ ...at, kind: "vm-missing", message: `provider ${change.provider} no longer shows it` });
    if (change.kind === "begin" && change.reason === "a pattern matches it now")
      drift.push({ ...at, kind: "vm-new", message: `new at provider ${change.provider}` });
  }
  for (const [key, message] of overdue) {
    const protection = protections.get(key) as RecordedProtection;
    drift.push({ kind: "overdue", schedule: protection.schedule, vmPath: protection.vmPath, message });
  }
  for (const [key, { schedule, vmPath, vm }] of joined.members) {
    const lastDisks = protections.get(key)?.lastDisks;
    const differences = vm && lastDisks ? diskDifferences(vm.disks, lastDisks) : [];
    if (differences.length > 0) drift.push({ kind: "vm-changed", schedule: schedule.name, vmPath, message: `since its last export ${differences.join(", ")}` });
  }
  for (const destination of observed.destinations) {
    const there = new Map(destination.points.map((point) => [point.manifestPath, point.storedBytes]));
    for (const point of recorded.points) {
      if (point.destination !== destination.name || point.destinationUrl !== destination.url) continue;
      const bytes = there.get(point.manifestPath);
      const at = { point: point.id, destination: destination.name };
      if (bytes === undefined) drift.push({ ...at, kind: "point-missing", message: `${point.manifestPath} is gone` });
      else if (bytes !== null && bytes !== point.storedBytes)
        drift.push({ ...at, kind: "point-altered", message: `its files have ${bytes} bytes, ${point.storedBytes} were stored` });
    }
  }
  return drift.sort((a, b) => order(a.kind, b.kind) || order(JSON.stringify(a), JSON.stringify(b)));
}

/** A disk that is gone is in no export from now on, and one that was exchanged is another one's content under its name. */
function diskDifferences(disks: readonly ObservedDisk[], last: readonly RecordedDisk[]): string[] {
  const before = new Map(last.map(({ name, virtualBytes }) => [name, virtualBytes]));
  const differences: string[] = [];
  for (const { name, virtualBytes } of disks) {
    const had = before.get(name);
    before.delete(name);
    if (had === undefined) differences.push(`disk ${name} is new`);
    else if (had !== virtualBytes) differences.push(`disk ${name} has ${virtualBytes} bytes instead of ${had}`);
  }
  return [...differences, ...[...before.keys()].map((name) => `disk ${name} is gone`)];
}

function warningsOf(desired: DesiredState, observed: Observed, joined: Membership, moved: readonly MovedPoint[]): PlanWarning[] {
  const warnings: PlanWarning[] = movesOf(moved).map(({ destination, url, points }) => ({
    code: "HSW019",
    message: `${destination} has moved: ${points} restore ${points === 1 ? "point is" : "points are"} at ${url} now`,
    address: `destination.${destination}`,
  }));
  if (observed.unknownProviders.length === 0) {
    const roots = new Map(desired.providers.map(({ name, root }) => [name, root]));
    const unseen = observed.unknownVms.map(({ provider, identity }) => `${roots.get(provider) ?? ""}/${identity}`);
    /** What cannot be seen may be what a pattern means. */
    const mayBeUnseen = (text: string): boolean =>
      unseen.some(
        (path) => [path, path.replace(/\.[^./]+$/, ""), `${path}/any`].some(patternOf(text).matches) || patternOf(text).prefix.startsWith(`${path}/`),
      );
    for (const { address, pattern } of joined.unmatched)
      if (!mayBeUnseen(pattern)) warnings.push({ code: "HSW008", message: `the pattern ${pattern} matches no VM`, address });
    const protectedSchedules = new Set([...joined.members.values()].map(({ schedule }) => schedule.name));
    // where no pattern of its own matches, that says it; where nothing names a VM, the files' own finding does
    const told = new Set(joined.unmatched.map(({ address }) => address));
    const named = new Set(desired.policies.map(({ schedule }) => schedule));
    for (const { name, vms } of desired.schedules) {
      const isTold = told.has(`schedule.${name}`) || (vms.length === 0 && !named.has(name));
      if (!protectedSchedules.has(name) && !isTold && !vms.some(mayBeUnseen))
        warnings.push({ code: "HSW003", message: `schedule "${name}" protects no VM`, address: `schedule.${name}` });
    }
  }
  for (const { name, layout, isSealed, keyProblem } of observed.destinations) {
    const spec = desired.destinations.find((each) => each.name === name);
    const encryption = spec?.encryption;
    const warn = (message: string, code = "HSW015"): void => void warnings.push({ code, message, address: `destination.${name}` });
    if (spec && layout !== undefined && layout !== spec.layout)
      warn(
        `${name} holds the layout ${layout}, and the files say ${spec.layout}: exports there will fail; say layout: ${layout}, or name another destination`,
        "HSW021",
      );
    if (isSealed === true && !encryption) warn(`the repository at ${name} is encrypted, and no schedule of it names the key: exports will fail`);
    if (isSealed === false && encryption) warn(`the files want ${name} encrypted, and the repository there is not: exports will fail; name a new destination`);
    if (keyProblem !== undefined) warn(`the key of ${name} cannot be had here: ${keyProblem}`);
  }
  for (const { provider, message } of observed.problems) warnings.push({ code: "HSW012", message, address: `provider.${provider}` });
  return warnings.sort((a, b) => order(a.code, b.code) || order(a.message, b.message) || order(a.address ?? "", b.address ?? ""));
}
