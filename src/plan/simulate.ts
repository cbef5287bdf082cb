import TinyQueue from "tinyqueue";
import type { ScheduleSpec } from "../model/desired.ts";
import { epochMsOf, type Instant, instantOf } from "../model/instant.ts";
import type { RecordedProtection, RecordedRun, RunState } from "../model/recorded.ts";
import type { VmPath } from "../model/vm-path.ts";
import { retryDelayMs } from "../schedule/backoff.ts";
import { fireTimes } from "../schedule/cron.ts";
import { RunQueue, type Waiting } from "../schedule/run-queue.ts";
import { isOpen, nextOpening } from "../schedule/windows.ts";
import { type DueContext, decide, startsAtOnce } from "./due.ts";
import type { Member } from "./membership.ts";
import { turnOf } from "./plan.ts";

export interface Simulation {
  /** By protection key, as {@link membership} joins them. */
  readonly members: ReadonlyMap<string, Member>;
  /** What is known of them; those that are not known begin at `from`. */
  readonly protections: ReadonlyMap<string, RecordedProtection>;
  readonly suspended: readonly string[];
  /** Exports at once in all. */
  readonly limit: number;
  readonly from: Instant;
  readonly to: Instant;
  /** How long one attempt takes, in milliseconds. */
  readonly durationMs: (member: Member) => number;
  /** Whether an attempt fails, and whether it is tried again; never when absent. */
  readonly fails?: (member: Member, attempt: number) => boolean;
  /** The chance in retry delays, 0 ≤ x < 1. */
  readonly fraction?: () => number;
  /** More runs than this are not kept: the span is too long. @throws RangeError */
  readonly maxRuns?: number;
  /** Spans in which the process is dead: what ran when one begins starts anew after it. */
  readonly outages?: readonly { readonly fromMs: number; readonly toMs: number }[];
}

type Outcome = "completed" | "failed" | "skipped" | "superseded" | "unfinished";

/** One fire time of one protection, and what became of it. Times in epoch milliseconds. */
export interface SimulatedRun {
  readonly schedule: string;
  readonly vmPath: VmPath;
  readonly fireTimeMs: number;
  readonly priority: number;
  /** When its first attempt began; undefined when none did. */
  startedMs?: number;
  endedMs?: number;
  attempts: number;
  outcome: Outcome;
  /** What it waited for, or why it never ran. */
  reasons: string[];
}

export interface Timeline {
  readonly runs: readonly SimulatedRun[];
  /** The most exports at once, and since when. */
  readonly peak: { readonly running: number; readonly atMs: number };
  /** The longest queue of runs that could have started but had no place. */
  readonly peakWaiting: { readonly waiting: number; readonly atMs: number };
}

interface Subject {
  readonly key: string;
  readonly member: Member;
  protection: RecordedProtection;
  /** Oldest first: those that go on, and ended ones that a dependency may ask for. */
  runs: SimulatedRecord[];
  queued: Turnable | undefined;
  current: Turnable | undefined;
  /** The time of its next look; earlier ones in the heap are stale. */
  lookMs: number;
}

interface SimulatedRecord extends Omit<RecordedRun, "state" | "endedAt"> {
  state: RunState;
  endedAt?: Instant;
  readonly run: SimulatedRun;
}

interface Turnable extends Waiting {
  readonly queuedMs: number;
  readonly subject: Subject;
  readonly record: SimulatedRecord;
  attempt: number;
}

interface Event {
  readonly atMs: number;
  /** Ends come before looks of the same instant, so that a place that is freed is there. */
  readonly order: number;
  readonly sequence: number;
  happen(): void;
}

const [endOrder, lookOrder] = [0, 1];
const forAPlace = "waited for a place";

/**
 * Runs the scheduler over a span of time that never was: the decisions are those of the planner, the order is that of the queue, only
 * the clock, the providers and the chance are made up.
 */
export function simulate(simulation: Simulation): Timeline {
  const { members, limit, durationMs, fails = () => false, fraction = () => 0, maxRuns = Number.POSITIVE_INFINITY } = simulation;
  const [fromMs, toMs] = [Date.parse(simulation.from), Date.parse(simulation.to)];
  const events = new TinyQueue<Event>([], (a, b) => a.atMs - b.atMs || a.order - b.order || a.sequence - b.sequence);
  const done: SimulatedRun[] = [];
  const subjects = new Map<string, Subject>();
  const bySchedule = new Map<string, Subject[]>();
  const dependents = new Map<string, Set<string>>();
  /** Subjects that wait for a dependency, by their schedule. */
  const blocked = new Map<string, Set<Subject>>();
  const suspended = new Set(simulation.suspended);
  let queue = new RunQueue<Turnable>(limit);
  let [nowMs, sequence, generation] = [fromMs, 0, 0];
  let isDown = false;
  let peak = { running: 0, atMs: fromMs };
  let peakWaiting = { waiting: 0, atMs: fromMs };

  for (const [key, member] of members) {
    const protection = simulation.protections.get(key) ?? beginOf(member, simulation.from);
    const subject: Subject = { key, member, protection, runs: [], queued: undefined, current: undefined, lookMs: Number.POSITIVE_INFINITY };
    subjects.set(key, subject);
    const { name, dependsOn } = member.schedule;
    const same = bySchedule.get(name);
    if (same) same.push(subject);
    else bySchedule.set(name, [subject]);
    for (const { schedule } of dependsOn) dependents.set(schedule, (dependents.get(schedule) ?? new Set()).add(name));
  }
  const schedules = new Map([...members.values()].map(({ schedule }) => [schedule.name, schedule]));
  /** First exports that start at once and that nobody has asked about yet, by their schedule. */
  const firstExports = new Map<string, number>();
  const protectionsOf = new Map([...bySchedule].map(([name, all]) => [name, all.map((subject) => subject.protection)]));
  const context: DueContext = {
    get now() {
      return instantOf(nowMs);
    },
    schedules,
    protections: { get: (key: string) => subjects.get(key)?.protection } as ReadonlyMap<string, RecordedProtection>,
    protectionsOf: (schedule) => protectionsOf.get(schedule) ?? [],
    runs: { get: (key: string) => subjects.get(key)?.runs } as unknown as DueContext["runs"],
    isSuspended: (schedule) => suspended.has(schedule) || (schedules.get(schedule)?.suspend ?? false),
    // what a simulation tells is when, not how much
    hasPoints: () => false,
    firstExportsOf: (schedule) => firstExports.get(schedule) ?? 0,
  };

  function at(atMs: number, order: number, happen: () => void): void {
    if (atMs > toMs) return;
    const bornIn = generation;
    events.push({ atMs, order, sequence: sequence++, happen: () => void (bornIn === generation && happen()) });
  }
  function lookAt(subject: Subject, atMs: number): void {
    if (subject.lookMs > nowMs && subject.lookMs <= atMs) return;
    subject.lookMs = atMs;
    at(atMs, lookOrder, () => {
      if (subject.lookMs !== atMs) return;
      subject.lookMs = Number.POSITIVE_INFINITY;
      look(subject, false);
    });
  }

  /** Asks the planner about one protection, and does as it says. */
  function look(subject: Subject, begins: boolean): void {
    const { member, key } = subject;
    const { cron, timezone, name, windows } = member.schedule;
    blocked.get(name)?.delete(subject);
    lookAt(subject, fireTimes(cron, timezone).next(nowMs));
    const decision = decide(key, member, begins, context);
    if (!decision) return;
    const { fireTime } = decision.export;
    const known = subject.runs.find((each) => each.fireTime === fireTime);
    // what runs now was asked about while it ran
    if (known && (known.state === "running" || subject.queued?.record === known)) return;
    const record = known ?? begin(subject, fireTime);
    if (decision.kind === "skipped") {
      record.state = "skipped";
      finish(subject, record, "skipped", decision.export.reason);
      return;
    }
    if (!known && nowMs > record.run.fireTimeMs) note(record.run, "caught up");
    if (decision.kind === "deferred") {
      note(record.run, decision.export.reason);
      if (decision.export.waitsFor === "dependency") {
        blocked.set(name, (blocked.get(name) ?? new Set()).add(subject));
        lookAt(subject, epochMsOf(decision.export.deadline));
      } else if (decision.export.waitsFor === "window") {
        const opening = nextOpening(windows, nowMs);
        if (opening !== undefined) lookAt(subject, opening);
      }
      return;
    }
    const turn: Turnable = {
      ...turnOf(decision.export),
      schedule: name,
      concurrency: member.schedule.concurrency,
      queuedMs: nowMs,
      subject,
      record,
      attempt: 0,
    };
    subject.queued = turn;
    queue.add(turn);
  }

  function begin(subject: Subject, fireTime: Instant): SimulatedRecord {
    const { schedule, vmPath, priority } = subject.member;
    const before = subject.runs.find(({ state }) => state === "queued");
    if (before) {
      before.state = "skipped";
      if (subject.queued) {
        queue.remove(subject.queued);
        note(before.run, forAPlace);
      }
      subject.queued = undefined;
      end(before, "superseded", "its next fire time came first");
      wakeDependents(before);
    }
    const run: SimulatedRun = { schedule: schedule.name, vmPath, fireTimeMs: Date.parse(fireTime), priority, attempts: 0, outcome: "unfinished", reasons: [] };
    const { provider, identity } = subject.member;
    const record: SimulatedRecord = {
      id: "",
      schedule: schedule.name,
      provider,
      identity,
      vmPath,
      kind: "scheduled",
      fireTime,
      state: "queued",
      createdAt: context.now,
      run,
    };
    const asked = askedFrom(schedule.name);
    subject.runs = [...subject.runs.filter(({ state, fireTime: at }) => state === "queued" || state === "running" || at >= asked), record];
    if (done.length >= maxRuns) throw new RangeError(`more than ${maxRuns} runs`);
    done.push(run);
    return record;
  }

  /** The earliest firing of a schedule that a dependent may still ask for: its own fire times last until the next one. */
  function askedFrom(name: string): Instant {
    const { cron, timezone } = schedules.get(name) as ScheduleSpec;
    let earliest = nowMs;
    for (const dependent of dependents.get(name) ?? []) {
      const spec = schedules.get(dependent) as ScheduleSpec;
      earliest = Math.min(earliest, fireTimes(cron, timezone).latest(fireTimes(spec.cron, spec.timezone).latest(nowMs)));
    }
    return instantOf(earliest);
  }

  function startWhatCan(): void {
    for (let turn = queue.take(); turn; turn = queue.take()) {
      const { subject, record } = turn;
      subject.queued = undefined;
      if (!isOpen(subject.member.schedule.windows, nowMs)) {
        queue.free(turn);
        if (turn.attempt > 0) giveUp(turn, "its window closed before the retry");
        else look(subject, false);
        continue;
      }
      subject.current = turn;
      turn.attempt++;
      record.state = "running";
      record.run.startedMs ??= nowMs;
      record.run.attempts++;
      if (turn.attempt === 1 && nowMs > turn.queuedMs) note(record.run, forAPlace);
      const started = turn;
      at(nowMs + Math.max(1, durationMs(subject.member)), endOrder, () => ended(started));
    }
    if (queue.running > peak.running) peak = { running: queue.running, atMs: nowMs };
    if (queue.waiting > peakWaiting.waiting) peakWaiting = { waiting: queue.waiting, atMs: nowMs };
  }

  function ended(turn: Turnable): void {
    const { subject, record, attempt } = turn;
    const { retry } = subject.member.schedule;
    queue.free(turn);
    if (!fails(subject.member, attempt)) {
      subject.current = undefined;
      record.state = "completed";
      finish(subject, record, "completed");
      look(subject, false);
      return;
    }
    if (attempt > retry.attempts) giveUp(turn, "every attempt failed");
    else at(nowMs + retryDelayMs(retry, attempt, fraction()), lookOrder, () => queue.add(turn));
  }

  function giveUp({ subject, record }: Turnable, reason: string): void {
    subject.current = undefined;
    record.state = "failed";
    finish(subject, record, "failed", reason);
    look(subject, false);
  }

  /** A fire time is handled. */
  function finish(subject: Subject, record: SimulatedRecord, outcome: Outcome, reason?: string): void {
    end(record, outcome, reason);
    const { handledUntil } = subject.protection;
    if (handledUntil === undefined || record.fireTime > handledUntil) subject.protection = { ...subject.protection, handledUntil: record.fireTime };
    wakeDependents(record);
  }

  /** Whoever waits for this schedule looks again. */
  function wakeDependents({ schedule }: SimulatedRecord): void {
    for (const name of dependents.get(schedule) ?? []) for (const waiting of blocked.get(name) ?? []) at(nowMs, lookOrder, () => look(waiting, false));
  }

  function end(record: SimulatedRecord, outcome: Outcome, reason?: string): void {
    const { run } = record;
    run.outcome = outcome;
    run.endedMs = nowMs;
    record.endedAt = instantOf(nowMs);
    if (reason !== undefined) note(run, reason);
  }

  function note(run: SimulatedRun, reason: string): void {
    if (run.reasons.at(-1) !== reason) run.reasons.push(reason);
  }

  for (const { fromMs: downMs, toMs: upMs } of simulation.outages ?? []) {
    events.push({ atMs: downMs, order: endOrder, sequence: sequence++, happen: die });
    events.push({ atMs: upMs, order: lookOrder, sequence: sequence++, happen: rise });
  }
  /** Everything that only a process knows is gone: timers, the queue, what runs. */
  function die(): void {
    generation++;
    isDown = true;
    queue = new RunQueue(limit);
    blocked.clear();
    for (const subject of subjects.values()) {
      if (subject.current) subject.current.record.state = "queued";
      subject.current = subject.queued = undefined;
      subject.lookMs = Number.POSITIVE_INFINITY;
    }
  }
  function rise(): void {
    isDown = false;
    for (const subject of subjects.values()) look(subject, false);
  }

  const begins = ({ key }: Subject): boolean => !simulation.protections.has(key);
  const countFirst = (subject: Subject, by: number): void => {
    const { name } = subject.member.schedule;
    if (begins(subject) && startsAtOnce(subject.member, context)) firstExports.set(name, (firstExports.get(name) ?? 0) + by);
  };
  for (const subject of subjects.values()) countFirst(subject, 1);
  for (const subject of subjects.values()) {
    countFirst(subject, -1);
    look(subject, begins(subject));
  }
  startWhatCan();
  for (let event = events.peek(); event && event.atMs <= toMs; event = events.peek()) {
    nowMs = event.atMs;
    while (events.peek()?.atMs === nowMs) events.pop()?.happen();
    if (!isDown) startWhatCan();
  }
  for (const { queued } of subjects.values()) if (queued && queued.attempt === 0) note(queued.record.run, forAPlace);
  return { runs: done, peak, peakWaiting };
}

function beginOf({ schedule, provider, identity, vmPath }: Member, from: Instant): RecordedProtection {
  return { schedule: schedule.name, provider, identity, vmPath, state: "active", effectiveSince: from };
}
