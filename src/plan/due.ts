import type { ScheduleSpec } from "../model/desired.ts";
import { formatDuration } from "../model/duration.ts";
import { clockToleranceMs, epochMsOf, type Instant, instantOf } from "../model/instant.ts";
import type { ObservedDisk } from "../model/observed.ts";
import type { RecordedDisk, RecordedProtection, RecordedRun } from "../model/recorded.ts";
import { fireTimes } from "../schedule/cron.ts";
import { isOpen, nextOpening } from "../schedule/windows.ts";
import { type Member, protectionKey } from "./membership.ts";
import type { DeferredExport, DiskMode, DueExport, SkippedExport } from "./plan.ts";

/** With `catchUp: skip`, a run that could have started this long ago was missed, or half the way to the next fire time where that is sooner. */
const missedAfterMs = 15 * 60_000;

export interface DueContext {
  readonly now: Instant;
  readonly schedules: ReadonlyMap<string, ScheduleSpec>;
  readonly protections: ReadonlyMap<string, RecordedProtection>;
  readonly protectionsOf: (schedule: string) => readonly RecordedProtection[];
  /** Runs by protection key. */
  readonly runs: ReadonlyMap<string, readonly RecordedRun[]>;
  readonly isSuspended: (schedule: string) => boolean;
  /** Whether restore points of a protection are known, as also of one that ended, or of a state that was rebuilt. */
  readonly hasPoints: (key: string) => boolean;
  /** How many protections of a schedule begin now with an export that is no run yet. */
  readonly firstExportsOf: (schedule: string) => number;
}

export type Decision =
  | { readonly kind: "due"; readonly export: DueExport }
  | { readonly kind: "deferred"; readonly export: DeferredExport }
  | { readonly kind: "skipped"; readonly export: SkippedExport };

/** Whether a protection that begins now begins with an export. */
export function startsAtOnce({ schedule, vm }: Member, { isSuspended }: Pick<DueContext, "isSuspended">): boolean {
  return vm !== undefined && schedule.initialExport === "immediate" && !isSuspended(schedule.name);
}

/** `key` is that of the protection. Whether the latest fire time of a protection runs now, waits, or never runs; undefined when none is open. */
export function decide(key: string, member: Member, begins: boolean, context: DueContext): Decision | undefined {
  const { schedule } = member;
  if (!member.vm || context.isSuspended(schedule.name)) return undefined;
  const nowMs = epochMsOf(context.now);
  const times = fireTimes(schedule.cron, schedule.timezone);
  const runs = context.runs.get(key) ?? [];
  const fireTimeMs = begins
    ? startsAtOnce(member, context)
      ? nowMs
      : undefined
    : openFireTime(context.protections.get(key), times.latest(nowMs), runs, nowMs);
  if (fireTimeMs === undefined) return undefined;

  const protection = context.protections.get(key);
  const waitingSinceMs = protection && !begins ? Math.min(fireTimeMs, times.next(servedUntilMs(protection, nowMs))) : fireTimeMs;
  const fireTime = instantOf(fireTimeMs);
  if (runs.some((run) => run.kind === "scheduled" && run.fireTime === fireTime && isEnded(run))) return undefined;
  const base = {
    schedule: schedule.name,
    provider: member.provider,
    identity: member.identity,
    vmPath: member.vmPath,
    fireTime,
    waitingSince: instantOf(waitingSinceMs),
    destination: schedule.destination,
    priority: member.priority,
  };
  const nextMs = times.next(Math.max(fireTimeMs, nowMs));
  const deadline = instantOf(nextMs);
  const going = runs.find((run) => run.state === "running" || run.state === "storing" || run.state === "verifying");
  if (going) {
    const isItself = going.kind === "scheduled" && going.fireTime === fireTime;
    if (!isItself && schedule.overlap === "skip") return { kind: "skipped", export: { ...base, reason: "its last run still goes and overlap is skip" } };
    const reason = isItself ? "its run is under way" : "its last run still goes";
    return { kind: "deferred", export: { ...base, waitsFor: "running", reason, until: null, deadline } };
  }
  const dependency = unmetDependency(schedule, fireTimeMs, nowMs, nextMs, context);
  if (dependency?.isOver) return { kind: "skipped", export: { ...base, reason: dependency.reason } };
  if (dependency)
    return {
      kind: "deferred",
      export: { ...base, waitsFor: "dependency", reason: dependency.reason, until: null, deadline: instantOf(dependency.deadlineMs) },
    };
  if (!isOpen(schedule.windows, nowMs)) {
    const opening = nextOpening(schedule.windows, nowMs);
    return {
      kind: "deferred",
      export: { ...base, waitsFor: "window", reason: "waits for its window", until: opening === undefined ? null : instantOf(opening), deadline },
    };
  }
  // a run that is queued was seen in time, however long it waits for a place
  const wasSeen = begins || runs.some((run) => run.kind === "scheduled" && run.fireTime === fireTime);
  if (!wasSeen && schedule.catchUp === "skip") {
    const couldStartMs = firstStartMs(schedule, fireTimeMs, runs, context);
    if (nowMs - couldStartMs > Math.min(missedAfterMs, (nextMs - couldStartMs) / 2))
      return { kind: "skipped", export: { ...base, reason: `it was missed by ${formatDuration(nowMs - couldStartMs)} and catchUp is skip` } };
  }
  const mode = modeOf(schedule, protection, context.hasPoints(key), member.vm.disks, nowMs);
  return {
    kind: "due",
    export: {
      ...base,
      ...sizesOf(member.vm.disks, mode.diskModes),
      ...estimatesOf(protection),
      sourceIdentity: member.vm.sourceIdentity ?? member.identity,
      ...mode,
      reason: begins ? "the protection begins and initialExport is immediate" : "its fire time has come",
    },
  };
}

/**
 * The latest fire time that this protection has not handled and that lies after it became effective; or that of a run which
 * was queued and never ended, such as a first export that is no fire time of the cron.
 */
function openFireTime(protection: RecordedProtection | undefined, latestMs: number, runs: readonly RecordedRun[], nowMs: number): number | undefined {
  if (!protection) return undefined;
  if (latestMs > servedUntilMs(protection, nowMs)) return latestMs;
  // also one that was cut off after a later fire time was left out because it went on
  const queued = runs.filter((run) => run.kind === "scheduled" && !isEnded(run)).map((run) => epochMsOf(run.fireTime));
  return queued.length > 0 ? Math.max(...queued) : undefined;
}

/** When a run for a fire time could have started: its last run had ended, and its dependencies, and a window was open. */
function firstStartMs(schedule: ScheduleSpec, fireTimeMs: number, runs: readonly RecordedRun[], context: DueContext): number {
  let readyMs = fireTimeMs;
  const ended = ({ endedAt }: RecordedRun): void => void (readyMs = Math.max(readyMs, endedAt === undefined ? 0 : epochMsOf(endedAt)));
  runs.forEach(ended);
  for (const { schedule: name } of schedule.dependsOn) {
    const first = context.schedules.get(name) as ScheduleSpec;
    const firing = instantOf(fireTimes(first.cron, first.timezone).latest(fireTimeMs));
    for (const { provider, identity } of context.protectionsOf(name))
      context.runs
        .get(protectionKey(name, provider, identity))
        ?.filter((run) => run.fireTime === firing)
        .forEach(ended);
  }
  return nextOpening(schedule.windows, readyMs) ?? readyMs;
}

/** What a clock that was ahead has recorded says nothing: one export too many is better than none for years. No fire time has two runs. */
function servedUntilMs({ effectiveSince, handledUntil }: RecordedProtection, nowMs: number): number {
  const times = [epochMsOf(effectiveSince), handledUntil ? epochMsOf(handledUntil) : 0];
  return Math.max(0, ...times.filter((each) => each <= nowMs + clockToleranceMs));
}

function isEnded({ state }: RecordedRun): boolean {
  return state === "completed" || state === "failed" || state === "cancelled" || state === "skipped";
}

/**
 * A dependency whose latest firing at or before the fire time has not ended as it must: one whose time is over, or else the first.
 * `deadlineMs` is when it is given up.
 */
function unmetDependency(
  schedule: ScheduleSpec,
  fireTimeMs: number,
  nowMs: number,
  nextMs: number,
  context: DueContext,
): { readonly reason: string; readonly isOver: boolean; readonly deadlineMs: number } | undefined {
  const unmet = schedule.dependsOn.flatMap(({ schedule: name, state, timeoutMs }) => {
    const runs = runsOf(name, fireTimeMs, context);
    const ended = runs.flatMap((run) => (run && isEnded(run) ? [run.state] : []));
    const pending = runs.length - ended.length;
    const unsuccessful = ended.filter((each) => each !== "completed").length;
    if (pending === 0 && (state === "any" || (state === "completed" ? unsuccessful === 0 : unsuccessful > 0))) return [];
    const limitMs = Math.min(timeoutMs === undefined ? nextMs : timeoutFrom(name, fireTimeMs, timeoutMs, nowMs, context) + timeoutMs, nextMs);
    return [{ name, state, limitMs, what: pending > 0 ? `${pending} of ${runs.length} runs have not ended` : `it has not ${state}` }];
  });
  const over = unmet.find(({ limitMs }) => nowMs >= limitMs);
  const first = over ?? unmet[0];
  if (!first) return undefined;
  const { name, state, limitMs, what } = first;
  const reason = over
    ? `the dependency on ${name} (${state}) was not met within ${formatDuration(limitMs - fireTimeMs)}: ${what}`
    : `waits for ${name} to be ${state}: ${what}`;
  return { reason, isOver: over !== undefined, deadlineMs: Math.min(...unmet.map((each) => each.limitMs)) };
}

/** The latest firing of a schedule at or before an instant, by its cron. */
function firingOf(name: string, atMs: number, { schedules }: DueContext): number {
  const { cron, timezone } = schedules.get(name) as ScheduleSpec;
  return fireTimes(cron, timezone).latest(atMs);
}

/**
 * The runs of the latest firing of a schedule at or before an instant, for each protection that has a part in it; undefined for one that has
 * none yet. A first export that started at once is a firing too, though no fire time of the cron.
 */
function runsOf(name: string, atMs: number, context: DueContext): readonly (RecordedRun | undefined)[] {
  const firingMs = firingOf(name, atMs, context);
  const [firing, at] = [instantOf(firingMs), instantOf(atMs)];
  const recorded = context.protectionsOf(name).flatMap((protection) => {
    const runs = context.runs.get(protectionKey(name, protection.provider, protection.identity)) ?? [];
    let latest: RecordedRun | undefined;
    for (const run of runs) {
      if (run.kind === "scheduled" && run.fireTime >= (latest?.fireTime ?? firing) && run.fireTime <= at) latest = run;
    }
    if (latest) return [latest];
    // a protection that began after this firing has no part in it, and a VM that is gone will have no run: nobody waits for it
    return epochMsOf(protection.effectiveSince) >= firingMs || protection.state === "missing" ? [] : [undefined];
  });
  const beginning = atMs >= epochMsOf(context.now) ? context.firstExportsOf(name) : 0;
  return [...recorded, ...new Array<undefined>(beginning).fill(undefined)];
}

/** From when a timeout counts: from the fire time, or, where nobody looked before it was over, from when what is waited for was caught up. */
function timeoutFrom(name: string, fireTimeMs: number, timeoutMs: number, nowMs: number, context: DueContext): number {
  const limitMs = fireTimeMs + timeoutMs;
  return nowMs < limitMs ? fireTimeMs : (caughtUpAt(name, fireTimeMs, limitMs, nowMs, context, new Map()) ?? fireTimeMs);
}

/**
 * When the runs of the firing at or before `atMs` were seen, or could be now, where that is after `limitMs`; undefined where they were in time,
 * or wait for something else than to be seen.
 */
function caughtUpAt(
  name: string,
  atMs: number,
  limitMs: number,
  nowMs: number,
  context: DueContext,
  known: Map<string, number | undefined>,
): number | undefined {
  const firingMs = firingOf(name, atMs, context);
  const key = `${name}\n${atMs}`;
  if (known.has(key)) return known.get(key);
  const schedule = context.schedules.get(name) as ScheduleSpec;
  const isSeenNow = (): boolean => {
    if (context.isSuspended(name) || !isOpen(schedule.windows, nowMs)) return false;
    const open = schedule.dependsOn.filter((each) => runsOf(each.schedule, firingMs, context).some((run) => !run || !isEnded(run)));
    return open.length === 0 || open.some((each) => caughtUpAt(each.schedule, firingMs, limitMs, nowMs, context, known) !== undefined);
  };
  const seen = runsOf(name, atMs, context).map((run) => (run ? epochMsOf(run.createdAt ?? run.fireTime) : isSeenNow() ? nowMs : 0));
  const lastMs = Math.max(0, ...seen);
  const at = lastMs > limitMs ? lastMs : undefined;
  known.set(key, at);
  return at;
}

/** How much of a VM an export reads, and why, as far as can be told before; the export itself decides by the same rules. */
function modeOf(
  schedule: ScheduleSpec,
  protection: RecordedProtection | undefined,
  hasPoints: boolean,
  disks: readonly ObservedDisk[],
  nowMs: number,
): Pick<DueExport, "mode" | "modeReason" | "isIncremental" | "diskModes"> {
  const { incremental } = schedule;
  if (!incremental) return { isIncremental: false, mode: "full", modeReason: "the schedule is not incremental", diskModes: [] };
  if (protection?.lastSuccessAt === undefined && !hasPoints)
    return { isIncremental: true, mode: "full", modeReason: "the first export of this VM", diskModes: [] };
  const lastDisks = protection?.lastDisks;
  const diskModes = disks.map((disk): DiskMode => {
    const last = lastDisks?.find(({ name }) => name === disk.name);
    if (lastDisks && !last) return { name: disk.name, mode: "full", reason: "the first export of this disk" };
    return { name: disk.name, ...diskModeOf(disk, last, incremental.fullReadEveryMs, nowMs) };
  });
  const mode = diskModes.some((each) => each.mode === "incremental") ? "incremental" : "full";
  return { isIncremental: true, mode, modeReason: [...new Set(diskModes.map(({ reason }) => reason))].join("; "), diskModes };
}

function diskModeOf(disk: ObservedDisk, last: RecordedDisk | undefined, fullReadEveryMs: number, nowMs: number): Omit<DiskMode, "name"> {
  if (!disk.marks)
    return last?.mark === undefined
      ? { mode: "incremental", reason: "its changes are not tracked: all is read, what is new is stored" }
      : { mode: "full", reason: `its bitmap ${last.mark} is gone` };
  if (last?.mark === undefined || last.wholeReadAt === undefined) return { mode: "full", reason: "no mark of an earlier export is recorded" };
  const mark = disk.marks.find(({ name }) => name === last.mark);
  if (!mark) return { mode: "full", reason: `its bitmap ${last.mark} is gone` };
  if (last.virtualBytes !== disk.virtualBytes) return { mode: "full", reason: `its size was ${last.virtualBytes} bytes` };
  const ageMs = nowMs - epochMsOf(last.wholeReadAt);
  if (ageMs >= fullReadEveryMs) return { mode: "full", reason: `all of it was read ${formatDuration(ageMs)} ago for the last time` };
  return { mode: "incremental", reason: "changed blocks", changedBytes: mark.changedBytes };
}

function sizesOf(disks: readonly ObservedDisk[], modes: readonly DiskMode[]): Pick<DueExport, "disks" | "virtualBytes" | "dataBytes"> {
  const changedBytes = new Map(modes.map((mode) => [mode.name, mode.changedBytes]));
  return {
    disks: disks.length,
    virtualBytes: disks.reduce((sum, disk) => sum + disk.virtualBytes, 0),
    dataBytes: disks.reduce((sum, disk) => sum + (changedBytes.get(disk.name) ?? disk.dataBytes), 0),
  };
}

function estimatesOf(protection: RecordedProtection | undefined): Pick<DueExport, "estimatedDurationMs" | "estimatedStoredBytes"> {
  return { estimatedDurationMs: protection?.lastDurationMs ?? null, estimatedStoredBytes: protection?.lastStoredBytes ?? null };
}
