import type { DesiredState } from "../model/desired.ts";
import { HypersdkError } from "../model/errors.ts";
import { epochMsOf, type Instant, instantOf } from "../model/instant.ts";
import type { Plan, Revision } from "../plan/plan.ts";
import { fireTimes } from "../schedule/cron.ts";
import type { Lease } from "../state/leases.ts";
import { isOfTheState } from "../state/state.ts";
import type { EngineContext } from "./context.ts";
import { type Drifted, tellDrift, unknownStart } from "./drift.ts";
import { type Place, RunPool } from "./queue.ts";
import { applyConfiguration, workOf } from "./reconcile.ts";
import { noteRevision, rejection } from "./revisions.ts";
import { type RunOutcome, type RunWork, runExport } from "./run-export.ts";

/** What a branch or a work tree holds. */
export interface Reading {
  readonly revision: Revision | null;
  /** The desired state, or why there is none. */
  readonly content: { readonly desired: DesiredState } | { readonly problem: HypersdkError };
  /** What is not wrong and yet worth a look, with its code. */
  readonly warnings?: readonly { readonly code: string; readonly text: string }[];
}

/** Where the desired state comes from while it is watched. */
export interface ConfigurationSource {
  /** For people: a URL and its branch, or a folder. */
  readonly name: string;
  /** What is there now; undefined when that is what the last call gave. @throws HypersdkError when it cannot be reached */
  read(signal: AbortSignal): Promise<Reading | undefined>;
  /** Calls back when something may have changed; it is asked every `interval` all the same. @returns how to stop */
  onChange?(changed: () => void): Promise<() => Promise<void>>;
}

interface Candidate {
  readonly desired: DesiredState;
  readonly revision: Revision | null;
}

/** How a watcher stands: for its view, its metrics and its health. */
export interface WatchStatus {
  readonly at: Instant;
  readonly applied: Revision | null;
  readonly serial: number;
  /** The newest revision that cannot be applied, while it is the newest. */
  readonly rejected: { readonly commit: string | null; readonly code: string; readonly reason: string } | undefined;
  /** Why the source cannot be read, and since when. */
  readonly sourceProblem: { readonly reason: string; readonly since: Instant } | undefined;
  /** Why the last pass failed. */
  readonly passProblem: { readonly code: string; readonly reason: string } | undefined;
  readonly lastPassAt: Instant | undefined;
  /** Providers, VMs and destinations of which nothing can be said now, with the reason. */
  readonly unknown: readonly string[];
  /** The next fire time of each schedule that runs, soonest first. */
  readonly next: readonly { readonly schedule: string; readonly timezone: string; readonly at: Instant }[];
  readonly waiting: number;
  readonly running: number;
}

export interface WatchOptions {
  readonly intervalMs: number;
  readonly lockTimeoutMs: number;
  readonly parallelism: number | undefined;
  readonly onStatus: (status: WatchStatus) => void;
  /** Called once no other watcher can be in the way, before anything else. */
  readonly onBegin?: () => Promise<void>;
  /** Lets the owner ask for a reading now. */
  readonly onRefresh: (refresh: () => void) => void;
}

/** Providers and destinations are looked at this often, if nothing else makes a pass: new VMs are protected, what drifted is seen. */
const lookEveryMs = 300_000;
/** No timer is longer: a clock that jumps, or a machine that slept, is noticed within so long. */
const longestSleepMs = 30_000;
/** Passes that exports ask for as they end are no closer together. */
const passEveryMs = 1000;
/** A pass waits so long for another process that applies. */
const reconcileTimeoutMs = 60_000;

/** A failure that ends the watch; every other one is told, and tried again. */
function isFatal(error: unknown): boolean {
  return !(error instanceof HypersdkError) || error.code === "LeaseLost" || error.code === "StateUnusable";
}

/**
 * Follows a source until it is aborted: every revision is planned and applied, exports start when they are due, each pass deciding anew
 * from the state. What cannot be read or applied leaves the last good revision running.
 * @throws LockHeld when another watcher works on this state for longer than `lockTimeoutMs`
 */
export async function watch(source: ConfigurationSource, context: EngineContext, options: WatchOptions): Promise<void> {
  const { state, clock, random, emit, signal } = context;
  const lease = await state.take("watcher", "watch", options.lockTimeoutMs, clock, random, signal);
  try {
    await options.onBegin?.();
    const watcher = new Watcher(source, context, options, lease);
    emit({ type: "watch_started", source: source.name });
    await watcher.run();
    emit({ type: "watch_stopped", reason: "it was asked to stop" });
  } finally {
    state.release(lease);
  }
}

class Watcher {
  readonly #source: ConfigurationSource;
  readonly #context: EngineContext;
  readonly #options: WatchOptions;
  readonly #lease: Lease;
  readonly #pool: RunPool;
  /** The last good one: it was applied, at least once. */
  #applied: Candidate | undefined;
  /** One that was read and is not applied yet. */
  #candidate: Candidate | undefined;
  /** One that could not be applied. It is tried again when somebody asks: what it lacked may be there. */
  #refused: Candidate | undefined;
  /** A source may be slow, or never answer: it is read beside everything else. */
  #reading: Promise<void> | undefined;
  #rejected: WatchStatus["rejected"];
  #sourceProblem: WatchStatus["sourceProblem"];
  #passProblem: WatchStatus["passProblem"];
  #lastPassAt: Instant | undefined;
  #next: WatchStatus["next"] = [];
  #nextReadMs = 0;
  #nextPassMs = Number.POSITIVE_INFINITY;
  #lastSeenMs = 0;
  /** What was told of drift, and goes on. */
  #drift: Drifted = new Map();
  /** Whether the last plan had exports that wait for others to end. */
  #someWait = false;
  #wake = new AbortController();
  /** What ended the reading: a bug, or a lock that was lost. */
  #broken: { readonly error: unknown } | undefined;

  constructor(source: ConfigurationSource, context: EngineContext, options: WatchOptions, lease: Lease) {
    this.#source = source;
    this.#context = context;
    this.#options = options;
    this.#lease = lease;
    this.#pool = new RunPool(options.parallelism ?? 1, context.signal, (work, place) => this.#export(work, place));
    context.signal.addEventListener("abort", () => this.#wake.abort(), { once: true });
    options.onRefresh(() => {
      this.#candidate ??= this.#refused;
      this.#refused = undefined;
      if (this.#applied) this.#nextPassMs = 0;
      this.#readSoon();
    });
  }

  async run(): Promise<void> {
    const { signal } = this.#context;
    const stop = await this.#source.onChange?.(() => this.#readSoon());
    try {
      while (!signal.aborted && !this.#pool.broken && !this.#broken) {
        this.#noticeClock();
        if (!this.#reading && this.#now() >= this.#nextReadMs) this.#beginReading();
        if (this.#now() >= this.#nextPassMs) await this.#pass();
        this.#tell();
        await this.#sleepUntil(Math.min(this.#reading ? Number.POSITIVE_INFINITY : this.#nextReadMs, this.#nextPassMs));
      }
    } finally {
      await stop?.();
      await this.#reading;
      await this.#pool.idle();
      this.#tell();
    }
    const broken = this.#broken ?? this.#pool.broken;
    if (broken) throw broken.error;
  }

  #now(): number {
    return epochMsOf(this.#context.clock.now());
  }

  #readSoon(): void {
    this.#nextReadMs = 0;
    this.#wake.abort();
  }

  #passSoon(): void {
    this.#nextPassMs = Math.min(this.#nextPassMs, (this.#lastPassAt ? epochMsOf(this.#lastPassAt) : 0) + passEveryMs);
    this.#wake.abort();
  }

  /** A clock that went back would hold everything up until it has caught up. */
  #noticeClock(): void {
    const nowMs = this.#now();
    if (nowMs < this.#lastSeenMs) {
      this.#nextReadMs = 0;
      if (this.#applied) this.#nextPassMs = 0;
    }
    this.#lastSeenMs = nowMs;
  }

  async #sleepUntil(atMs: number): Promise<void> {
    if (this.#context.signal.aborted) return;
    this.#wake = new AbortController();
    const ms = Math.min(longestSleepMs, atMs - this.#now());
    if (ms <= 0) return;
    // what woke it is looked at by the loop
    await this.#context.clock.sleep(ms, this.#wake.signal).catch(() => {});
  }

  #beginReading(): void {
    this.#nextReadMs = this.#now() + this.#options.intervalMs;
    this.#reading = this.#read()
      .catch((error: unknown) => {
        if (this.#context.signal.aborted) return;
        if (isFatal(error)) this.#broken = { error };
        else this.#failed(error as HypersdkError);
      })
      .finally(() => {
        this.#reading = undefined;
        this.#wake.abort();
      });
  }

  /** Takes over what the source holds, or says why not. */
  async #read(): Promise<void> {
    const { emit, clock, signal } = this.#context;
    let reading: Reading | undefined;
    try {
      reading = await this.#source.read(signal);
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof HypersdkError)) throw error;
      if (this.#sourceProblem?.reason !== error.message) emit({ type: "source_lost", code: error.code, reason: error.message });
      this.#sourceProblem = { reason: error.message, since: this.#sourceProblem?.since ?? clock.now() };
      return;
    }
    if (this.#sourceProblem) emit({ type: "source_back" });
    this.#sourceProblem = undefined;
    if (!reading) return;
    const { revision, content, warnings = [] } = reading;
    const commit = revision?.commit ?? null;
    const problem = "problem" in content ? content.problem : undefined;
    // a revision that was refused is looked at again and again, and told once
    if (problem && this.#rejected?.commit === commit && this.#rejected.reason === problem.message) return;
    emit({ type: "revision_found", commit, branch: revision?.branch ?? null, dirty: revision?.dirty ?? false });
    for (const { code, text } of warnings) emit({ type: "warning", code, text });
    this.#candidate = this.#refused = undefined;
    if ("problem" in content) this.#reject(revision, content.problem);
    else {
      this.#rejected = undefined;
      this.#candidate = { desired: content.desired, revision };
      this.#nextPassMs = 0;
      this.#note(revision, undefined);
    }
  }

  /** Records what was looked at last. The source gives it once: a state that is busy costs the note, not the revision. */
  #note(revision: Revision | null, problem: HypersdkError | undefined): void {
    try {
      noteRevision(revision, problem, this.#lease, this.#context);
    } catch (error) {
      if (isFatal(error)) throw error;
      this.#failed(error as HypersdkError);
    }
  }

  /** The last good revision goes on. */
  #reject(revision: Revision | null, problem: HypersdkError): void {
    const { code, message } = problem;
    this.#rejected = { commit: revision?.commit ?? null, code, reason: message };
    this.#context.emit(rejection(revision, problem, this.#applied));
    this.#note(revision, problem);
  }

  /** Plans, applies and starts what is due, by the newest revision, or by the last good one where that cannot be applied. */
  async #pass(): Promise<void> {
    const candidate = this.#candidate ?? this.#applied;
    if (!candidate) {
      this.#nextPassMs = Number.POSITIVE_INFINITY;
      return;
    }
    const { signal, state } = this.#context;
    const context = { ...this.#context, revision: candidate.revision };
    this.#nextPassMs = Number.POSITIVE_INFINITY;
    try {
      if (!state.isInPlace()) throw new HypersdkError("StateUnusable", `the state file ${state.path} was removed or replaced while it was in use`);
      const { plan } = await applyConfiguration(candidate.desired, context, { lockTimeoutMs: reconcileTimeoutMs, approve: async (made) => made });
      if (candidate !== this.#applied) this.#rejected = undefined;
      this.#applied = candidate;
      if (this.#candidate === candidate) this.#candidate = undefined;
      this.#passProblem = undefined;
      this.#drift = tellDrift(plan, this.#drift, context.emit);
      this.#lastPassAt = plan.at;
      this.#start(plan, candidate.desired, context);
      this.#next = nextOf(candidate.desired, plan);
      this.#nextPassMs = Math.min(this.#nextPassMs, nextPassOf(this.#next, plan, context));
    } catch (error) {
      if (signal.aborted) return;
      if (isFatal(error)) throw error;
      if (candidate !== this.#applied && this.#applied && !isOfTheState(error)) {
        this.#refused = candidate;
        if (this.#candidate === candidate) this.#candidate = undefined;
        this.#nextPassMs = 0;
        this.#reject(candidate.revision, error as HypersdkError);
      } else this.#failed(error as HypersdkError);
    }
  }

  /** Told when it is another problem than before, and tried again. */
  #failed({ code, message, hint }: HypersdkError): void {
    const { emit, clock } = this.#context;
    if (this.#passProblem?.reason !== message) emit({ type: "pass_failed", code, reason: message, hint: hint ?? null });
    this.#passProblem = { code, reason: message };
    if (this.#applied || this.#candidate) this.#nextPassMs = epochMsOf(clock.now()) + this.#options.intervalMs;
  }

  /** An export whose journal cannot be written is cut off: the next pass finds it, as it finds those of a process that died. */
  async #export(work: RunWork, place: Place): Promise<RunOutcome> {
    try {
      return await runExport(work, place, { ...this.#context, revision: this.#applied?.revision ?? null });
    } catch (error) {
      if (!isOfTheState(error)) throw error;
      this.#failed(error);
      return "interrupted";
    }
  }

  /** Gives the pool what is due now; what waited there and is not due any more leaves it. */
  #start(plan: Plan, desired: DesiredState, context: EngineContext): void {
    this.#pool.limit = this.#options.parallelism ?? desired.concurrency;
    const outcomes = this.#pool.offer(workOf(plan.exports, desired, context));
    this.#someWait = plan.deferred.some(({ waitsFor }) => waitsFor !== "window");
    for (const outcome of outcomes) {
      outcome.then(
        (how) => this.#ended(how),
        // the pool is broken, and the loop sees it
        () => this.#wake.abort(),
      );
    }
  }

  #ended(outcome: RunOutcome): void {
    if (this.#someWait && (outcome === "completed" || outcome === "failed")) this.#passSoon();
    this.#tell();
  }

  #tell(): void {
    const { clock, state } = this.#context;
    this.#options.onStatus({
      at: clock.now(),
      applied: this.#applied?.revision ?? null,
      serial: state.serial,
      rejected: this.#rejected,
      sourceProblem: this.#sourceProblem,
      passProblem: this.#passProblem,
      lastPassAt: this.#lastPassAt,
      unknown: [...this.#drift.values()].filter((reason) => reason.startsWith(unknownStart)),
      next: this.#next,
      waiting: this.#pool.waiting,
      running: this.#pool.running,
    });
  }
}

function nextOf(desired: DesiredState, plan: Plan): WatchStatus["next"] {
  const suspended = new Set(plan.suspended);
  const atMs = epochMsOf(plan.at);
  return desired.schedules
    .filter(({ name, suspend }) => !suspend && !suspended.has(name))
    .map(({ name, cron, timezone }) => ({ schedule: name, timezone, at: instantOf(fireTimes(cron, timezone).next(atMs)) }))
    .sort((a, b) => (a.at < b.at ? -1 : a.at > b.at ? 1 : a.schedule < b.schedule ? -1 : 1));
}

/** When the planner can come to another answer by the clock alone. */
function nextPassOf(next: WatchStatus["next"], plan: Plan, { state }: EngineContext): number {
  const atMs = epochMsOf(plan.at);
  const times = [atMs + lookEveryMs];
  const first = next[0];
  if (first) times.push(epochMsOf(first.at));
  for (const { until, deadline } of plan.deferred) times.push(epochMsOf(until ?? deadline));
  for (const { expiresAt } of state.artifacts.list()) if (expiresAt !== undefined) times.push(epochMsOf(expiresAt));
  return Math.min(...times.filter((each) => each > atMs));
}
