import { setFlagsFromString } from "node:v8";
import { type Reconciled, reconcile } from "../../engine/reconcile.ts";
import { tellDrift, type WatchStatus, watch as watchSourceOf } from "../../engine/watch.ts";
import { HypersdkError } from "../../model/errors.ts";
import { epochMsOf } from "../../model/instant.ts";
import { State } from "../../state/state.ts";
import { WatchMetrics } from "../../ui/metrics.ts";
import { ProgressView } from "../../ui/progress.ts";
import { WatchView } from "../../ui/watch-view.ts";
import { clock, engineContext, random, toolVersion } from "../compose.ts";
import { loadDesired } from "../desired.ts";
import { openEventLog } from "../event-log.ts";
import { exitCodes } from "../exit-codes.ts";
import { type HealthServer, serveHealth } from "../health-server.ts";
import { listenForInterrupts } from "../interrupts.ts";
import type { Io } from "../io.ts";
import { type SourceOptions, statePathFor } from "../load.ts";
import { watchSource } from "../watch-source.ts";
import { durationOption, progressOn } from "./apply.ts";

export interface WatchOptions extends SourceOptions {
  readonly interval?: string;
  readonly once?: boolean;
  readonly listen?: string;
  readonly parallelism?: number;
  readonly lockTimeout?: string;
  readonly adopt?: boolean;
}

const shortestIntervalMs = 1000;
/** What still holds the process after it has ended everything is left behind. */
const leftBehindMs = 1000;

/** Follows a branch or a work tree: applies each revision, exports when it is due, until it is told to stop. */
export async function watch(options: WatchOptions, io: Io): Promise<number> {
  const intervalMs = options.interval === undefined ? 30_000 : durationOption("--interval", options.interval);
  if (intervalMs < shortestIntervalMs) throw new HypersdkError("Usage", "--interval is at least 1s", { hint: "such as 30s" });
  const lockTimeoutMs = durationOption("--lock-timeout", options.lockTimeout);
  if (options.once && options.listen !== undefined) throw new HypersdkError("Usage", "--once and --listen cannot be combined");
  return options.once ? once(options, lockTimeoutMs, io) : forever(options, intervalMs, lockTimeoutMs, io);
}

/** One reading, one pass, its exports: what a timer outside would start. */
async function once(options: WatchOptions, lockTimeoutMs: number, io: Io): Promise<number> {
  const { desired, revision, statePath } = await loadDesired(options, io);
  const events = openEventLog(io.eventsTarget, io.logLevel);
  const interrupts = listenForInterrupts(io.err);
  const state = State.openForWriting(statePath, random);
  const progress = io.quiet ? undefined : progressOn(io);
  try {
    const context = engineContext(state, {
      signal: interrupts.signal,
      revision,
      adopt: options.adopt ?? false,
      emit: (event) => {
        events.write(event);
        progress?.handle(event);
      },
    });
    const watcher = await state.take("watcher", "watch --once", lockTimeoutMs, clock, random, interrupts.signal);
    let result: Reconciled;
    try {
      result = await reconcile(desired, context, {
        lockTimeoutMs,
        parallelism: options.parallelism,
        exports: true,
        approve: async (plan) => {
          tellDrift(plan, new Map(), context.emit);
          return plan;
        },
      });
    } finally {
      state.writeUnlocked(() => state.leases.release(watcher));
    }
    progress?.stop();
    const { plan, completed, failed, notStarted, removed } = result;
    if (io.json)
      io.result("watch-once", {
        commit: revision?.commit ?? null,
        changes: plan.changes.length,
        completed,
        failed: failed.length,
        notStarted: notStarted.length,
        removed,
      });
    else if (!io.quiet) io.out(`${plan.changes.length} changes applied, ${completed} exports completed, ${failed.length} failed\n`);
    if (interrupts.exitCode !== undefined) return interrupts.exitCode;
    return failed.length + result.notRemoved > 0 ? exitCodes.partlyFailed : exitCodes.done;
  } finally {
    progress?.stop();
    interrupts.dispose();
    events.close();
    state.close();
  }
}

async function forever(options: WatchOptions, intervalMs: number, lockTimeoutMs: number, io: Io): Promise<number> {
  // the young generation would grow to 48 MiB over a day of short work, and never shrink again
  setFlagsFromString("--semi-space-growth-factor=1");
  const source = await watchSource(options, io.env, io.cwd);
  const events = openEventLog(io.eventsTarget, io.logLevel);
  let refresh: () => void = () => {};
  const interrupts = listenForInterrupts(io.err, () => refresh());
  const state = State.openForWriting(await statePathFor(options, io.env, io.cwd), random);
  const metrics = new WatchMetrics(toolVersion(), () =>
    state.configuration
      .protections()
      .flatMap(({ schedule, vmPath, lastSuccessAt }) => (lastSuccessAt === undefined ? [] : [{ schedule, vmPath, lastSuccessAt }])),
  );
  const zones = new Map<string, string>();
  const view = new WatchView(io.errStyle, (schedule) => zones.get(schedule) ?? "UTC", clock.now);
  const isTerminal = process.stderr.isTTY === true && !io.env["CI"];
  const target = { write: io.err, isTerminal, columns: process.stderr.columns ?? 0 };
  const progress = io.quiet ? undefined : new ProgressView(target, io.errStyle, Date.now, () => view.lines(clock.now()));
  let status: WatchStatus | undefined;
  let server: HealthServer | undefined;
  try {
    if (options.listen !== undefined) {
      server = await serveHealth(
        options.listen,
        metrics,
        () => status,
        () => epochMsOf(clock.now()),
      );
      if (!io.quiet) io.err(`health and metrics: http://${server.address}/metrics\n`);
    }
    const context = engineContext(state, {
      signal: interrupts.signal,
      revision: null,
      adopt: options.adopt ?? false,
      emit: (event) => {
        events.write(event);
        metrics.handle(event);
        view.handle(event);
        progress?.handle(event);
      },
    });
    await watchSourceOf(source, context, {
      intervalMs,
      lockTimeoutMs,
      parallelism: options.parallelism,
      onRefresh: (now) => {
        refresh = now;
      },
      onStatus: (now) => {
        status = now;
        for (const { schedule, timezone } of now.next) zones.set(schedule, timezone);
        metrics.update(now);
        view.update(now);
      },
    });
    return interrupts.exitCode === undefined || interrupts.exitCode === exitCodes.terminated ? exitCodes.done : interrupts.exitCode;
  } catch (error) {
    if (interrupts.exitCode !== undefined && interrupts.signal.aborted) return interrupts.exitCode;
    throw error;
  } finally {
    progress?.stop();
    await server?.close();
    interrupts.dispose();
    events.close();
    state.close();
    // a helper of a git that was ended holds a pipe for as long as its server says nothing
    if (interrupts.signal.aborted) setTimeout(() => process.exit(), leftBehindMs).unref();
  }
}
