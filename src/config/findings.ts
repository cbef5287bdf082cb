import type { DesiredState, PolicySpec, RetentionSpec, ScheduleSpec } from "../model/desired.ts";
import { formatDuration } from "../model/duration.ts";
import { patternOf } from "../model/pattern.ts";
import { fireTimes, setsBothDayFields } from "../schedule/cron.ts";
import { isOpen, nextOpening } from "../schedule/windows.ts";
import type { Report } from "./report.ts";

/** A fixed Monday, so that findings do not depend on the day on which they are looked for. */
const referenceMs = Date.UTC(2026, 0, 5);
const dayMs = 86_400_000;

/** What is allowed and probably not meant. Needs the files alone: no provider, no clock. */
export function reportFindings(desired: DesiredState, report: Report): void {
  const schedules = new Map(desired.schedules.map((schedule) => [schedule.name, schedule]));
  const named = new Set(desired.policies.map((policy) => policy.schedule));
  for (const schedule of desired.schedules) {
    const { origin } = schedule;
    if (setsBothDayFields(schedule.cron))
      report.warn("HSW001", origin, ["cron"], `"${schedule.cron}" sets both day fields`, "cron joins them by OR: it fires on either");
    if (schedule.vms.length === 0 && !named.has(schedule.name))
      report.warn("HSW003", origin, ["vms"], `schedule "${schedule.name}" protects no VM`, "it has no pattern, and no policy names it");
    retentionFinding(schedule, report);
    rpoFinding(schedule, schedule, report);
    windowFindings(schedule, schedules, report);
    alertFindings(schedule.alerts, schedule, desired, report);
  }
  for (const policy of desired.policies) {
    alertFindings(policy.alerts, policy, desired, report);
    const schedule = schedules.get(policy.schedule);
    if (schedule) rpoFinding(schedule, policy, report);
  }
  policyFindings(desired.policies, report);
  const places = new Map<string, string>();
  for (const { url, name, origin } of desired.destinations) {
    const other = places.get(url);
    if (other !== undefined)
      report.warn(
        "HSW023",
        origin,
        [],
        `destinations "${other}" and "${name}" are one place`,
        "one name for it: what is said of one does not hold for the other",
      );
    places.set(url, name);
  }
}

/** A duration under the cron's gap keeps only the newest good point, whatever it says. */
function retentionFinding(schedule: ScheduleSpec, report: Report): void {
  const retention: RetentionSpec | undefined = schedule.retention;
  if (retention?.withinMs === undefined || Object.keys(retention).length > 1) return;
  const gap = fireTimes(schedule.cron, schedule.timezone).longestGapMs();
  if (retention.withinMs < gap) {
    report.warn(
      "HSW004",
      schedule.origin,
      ["retention"],
      `retention of ${formatDuration(retention.withinMs)} is shorter than the time between exports`,
      `"${schedule.cron}" leaves up to ${formatDuration(gap)}: only the newest restore point will stay`,
    );
  }
}

function windowFindings(schedule: ScheduleSpec, schedules: ReadonlyMap<string, ScheduleSpec>, report: Report): void {
  if (schedule.windows.length > 0 && !firesInside(schedule)) {
    const { longestMs, never } = waitsOf(schedule);
    const waits = `waits for a window to open, up to ${formatDuration(longestMs)}`;
    const effect =
      never === 0
        ? `every run ${waits}`
        : never === sampled
          ? "no run ever starts: the next fire time comes first"
          : `of ${sampled} firings, ${never} never start as the next comes first; each of the others ${waits}`;
    report.warn("HSW006", schedule.origin, ["windows"], `"${schedule.cron}" never fires inside a window`, effect);
  }
  retryFinding(schedule, report);
  for (const [i, dependency] of schedule.dependsOn.entries()) {
    const first = schedules.get(dependency.schedule);
    if (first?.suspend && !schedule.suspend)
      report.warn(
        "HSW017",
        schedule.origin,
        ["dependsOn", i],
        `"${dependency.schedule}" is suspended: nothing of it will be ${dependency.state === "any" ? "ended" : dependency.state}`,
        "every run waits for it until its timeout, or its next fire time, and is skipped",
      );
    if (!first || first.windows.length === 0 || dependency.timeoutMs === undefined) continue;
    const fire = fireTimes(schedule.cron, schedule.timezone).next(referenceMs);
    const opening = nextOpening(first.windows, fireTimes(first.cron, first.timezone).latest(fire));
    if (opening !== undefined && opening > fire + dependency.timeoutMs) {
      report.warn(
        "HSW007",
        schedule.origin,
        ["dependsOn", i],
        `"${dependency.schedule}" cannot have started when the timeout of ${formatDuration(dependency.timeoutMs)} ends`,
        "its own window opens later",
      );
    }
  }
}

/** Firings that are looked at, and windows: a year of those that come once a day. */
const sampled = 400;

/** Whether a run can start when its cron expression says, but for the days on which the clock is set. */
function firesInside({ cron, timezone, windows }: ScheduleSpec): boolean {
  const times = fireTimes(cron, timezone);
  let fire = referenceMs;
  for (let i = 0; i < sampled; i++) {
    fire = times.next(fire);
    if (times.shiftOf(fire) === undefined && isOpen(windows, fire)) return true;
  }
  // one that fires often may not have met a window yet
  let at = referenceMs;
  for (let i = 0; i < 14; i++) {
    const opening = nextOpening(windows, at);
    if (opening === undefined) return false;
    at = opening + openFor(windows, opening);
    if (isOpen(windows, times.next(opening - 1))) return true;
  }
  return false;
}

/** How long the runs that start wait for a window, at most, and how many are superseded before one opens. */
function waitsOf({ cron, timezone, windows }: ScheduleSpec): { readonly longestMs: number; readonly never: number } {
  const times = fireTimes(cron, timezone);
  let [longestMs, never] = [0, 0];
  let fire = times.next(referenceMs);
  for (let i = 0; i < sampled; i++) {
    const next = times.next(fire);
    const opening = nextOpening(windows, fire);
    if (opening === undefined || opening >= next) never++;
    else longestMs = Math.max(longestMs, opening - fire);
    fire = next;
  }
  return { longestMs, never };
}

/** An objective that the fire times alone miss: the protection is overdue most of the time. */
function rpoFinding({ cron, timezone }: ScheduleSpec, owner: ScheduleSpec | PolicySpec, report: Report): void {
  if (owner.rpoMs === undefined) return;
  const gapMs = fireTimes(cron, timezone).longestGapMs();
  if (owner.rpoMs >= gapMs) return;
  report.warn(
    "HSW020",
    owner.origin,
    ["rpo"],
    `an rpo of ${formatDuration(owner.rpoMs)} cannot be met`,
    `"${cron}" leaves up to ${formatDuration(gapMs)} between exports: what it protects will be overdue`,
  );
}

/** How long windows stay open from an instant on, to five minutes; a day at most. */
function openFor(windows: ScheduleSpec["windows"], from: number): number {
  let ms = 0;
  while (ms < dayMs && isOpen(windows, from + ms)) ms += 300_000;
  return ms;
}

/** A retry starts inside a window, like every attempt. */
function retryFinding({ windows, retry, origin, cron, timezone }: ScheduleSpec, report: Report): void {
  if (windows.length === 0 || retry.attempts === 0) return;
  const firstMs = Math.min(retry.initialDelayMs, retry.maxDelayMs) * (1 - retry.jitter);
  const times = fireTimes(cron, timezone);
  let longestMs = 0;
  let fire = referenceMs;
  for (let i = 0; i < 14; i++) {
    fire = times.next(fire);
    const start = nextOpening(windows, fire);
    if (start !== undefined) longestMs = Math.max(longestMs, openFor(windows, start));
    if (firstMs < longestMs) return;
  }
  report.warn(
    "HSW016",
    origin,
    ["retry"],
    `the first retry comes after ${formatDuration(firstMs)}, a run that starts at once has a window for ${formatDuration(longestMs)}`,
    "the window is closed by then, and a run that failed is not tried again",
  );
}

function alertFindings(alerts: ScheduleSpec["alerts"], owner: ScheduleSpec | PolicySpec, desired: DesiredState, report: Report): void {
  for (const [i, alert] of alerts.entries()) {
    const able = desired.notifiers.filter((notifier) => notifier.type === alert.type);
    const target = alert.type === "webhook" ? able.filter((notifier) => notifier.name === alert.target) : able;
    const below = ["alerts", i, alert.type];
    if (alert.via !== undefined && !desired.notifiers.some((notifier) => notifier.name === alert.via)) {
      report.error("HSE014", owner.origin, ["alerts", i, "via"], `unknown notifier "${alert.via}"`, "no notifier has this name");
    } else if (target.length === 0) {
      report.warn("HSW009", owner.origin, below, `no notifier of type ${alert.type} can tell ${alert.target}`, "add one under notifiers");
    } else if (target.length > 1 && alert.via === undefined) {
      report.warn("HSW009", owner.origin, below, `several notifiers of type ${alert.type} could tell ${alert.target}`, `name one: via: ${target[0]?.name}`);
    }
  }
}

/** So many patterns of one schedule are held against each other; of more, only those that are the same. */
const mostCompared = 400;

/** Policies that mean the same VMs of a schedule and say different things of them: the stronger wins, which is worth knowing. */
function policyFindings(policies: readonly PolicySpec[], report: Report): void {
  const patterns = policies.flatMap((policy) => policy.match.map((text) => ({ policy, text, samplePath: samplePathOf(text) })));
  for (const group of Map.groupBy(patterns, ({ policy }) => policy.schedule).values()) {
    const first = new Map<string, PolicySpec>();
    for (const [i, one] of group.entries()) {
      const before = group.length <= mostCompared ? group.slice(0, i).find((other) => disagree(one.policy, other.policy) && overlap(one, other)) : undefined;
      const other = before?.policy ?? first.get(one.text);
      if (!first.has(one.text)) first.set(one.text, one.policy);
      if (!other || !disagree(one.policy, other)) continue;
      report.warn(
        "HSW002",
        one.policy.origin,
        ["match"],
        `policies "${other.name}" and "${one.policy.name}" disagree about ${before && before.text !== one.text ? `VMs that both ${before.text} and ${one.text} match` : one.text}`,
        "the highest priority and the shortest rpo win",
      );
    }
  }
}

function disagree(one: PolicySpec, other: PolicySpec): boolean {
  const differ = (a: number | undefined, b: number | undefined): boolean => a !== undefined && b !== undefined && a !== b;
  return one !== other && (differ(one.priority, other.priority) || differ(one.rpoMs, other.rpoMs));
}

interface Sampled {
  readonly text: string;
  readonly samplePath: string;
}

/** Whether a path is known that both match. */
function overlap(one: Sampled, other: Sampled): boolean {
  const [a, b] = [patternOf(one.text), patternOf(other.text)];
  return one.text === other.text || [one.samplePath, other.samplePath].some((path) => a.matches(path) && b.matches(path));
}

/** A path that a pattern matches. */
function samplePathOf(text: string): string {
  return text.replace(/\{([^,}]*)[^}]*\}/g, "$1").replace(/\*+|\?/g, "x");
}
