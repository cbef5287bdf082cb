import { setFlagsFromString } from "node:v8";
import { type WatchStatus, watch as watchSourceOf } from "../../engine/watch.ts";
import { watchOnce } from "../../engine/watch-once.ts";
import { HypersdkError } from "../../model/errors.ts";
import { epochMsOf } from "../../model/instant.ts";
import { WatchMetrics } from "../../ui/metrics.ts";
import { plural } from "../../ui/plan-view.ts";
import { WatchView } from "../../ui/watch-view.ts";
import { clock } from "../compose.ts";
import { exitCodes } from "../exit-codes.ts";
import { type HealthServer, parseAddress, serveHealth } from "../health-server.ts";
import type { Io } from "../io.ts";
import { type SourceOptions, statePathFor } from "../load.ts";
import { inSession, progressOn } from "../session.ts";
import { toolVersion } from "../tool-version.ts";
import { watchSource } from "../watch-source.ts";
import { durationOption, tellUnseen } from "./apply.ts";

export interface WatchOptions extends SourceOptions {
  readonly interval?: string;
  readonly once?: boolean;
  readonly listen?: string;
  readonly parallelism?: number;
  readonly lockTimeout?: string;
  readonly adopt?: boolean;
}

const shortestIntervalMs = 1000;

/** Follows a branch or a work tree: applies each revision, exports when it is due, until it is told to stop. */
export async function watch(options: WatchOptions, io: Io): Promise<number> {
  const intervalMs = options.interval === undefined ? 30_000 : durationOption("--interval", options.interval);
  if (intervalMs < shortestIntervalMs) throw new HypersdkError("Usage", "--interval is at least 1s", { hint: "such as 30s" });
  const lockTimeoutMs = durationOption("--lock-timeout", options.lockTimeout);
  if (options.once && options.listen !== undefined) throw new HypersdkError("Usage", "--once and --listen cannot be combined");
  if (io.json && !options.once)
    throw new HypersdkError("Usage", "watch has no result that --json could print", { hint: "--events FILE has its events as JSON; --once has a result" });
  return options.once ? once(options, lockTimeoutMs, io) : forever(options, intervalMs, lockTimeoutMs, io);
}

/** One reading, one pass, its exports: what a timer outside would start. */
async function once(options: WatchOptions, lockTimeoutMs: number, io: Io): Promise<number> {
  const source = await watchSource(options, io.env, io.cwd);
  const statePath = await statePathFor(options, io.env, io.cwd);
  const session = { statePath, revision: null, adopt: options.adopt, progress: io.quiet ? undefined : progressOn(io) };
  return inSession(io, session, async ({ context, settle }) => {
    const { revision, result } = await watchOnce(source, context, { lockTimeoutMs, parallelism: options.parallelism });
    settle();
    const { plan, completed, failed, notStarted, removed } = result;
    if (io.json)
      io.result("watch-once", {
        commit: revision?.commit ?? null,
        changes: plan.changes.length,
        completed,
        failed: failed.length,
        notStarted: notStarted.length,
        removed,
        unseen: result.unseen,
      });
    else if (!io.quiet) io.out(`${plural(plan.changes.length, "change")} applied, ${plural(completed, "export")} completed, ${failed.length} failed\n`);
    if (!io.json) tellUnseen(result.unseen, io);
    return failed.length + result.notRemoved + result.unseen.length > 0 ? exitCodes.partlyFailed : exitCodes.done;
  });
}

async function forever(options: WatchOptions, intervalMs: number, lockTimeoutMs: number, io: Io): Promise<number> {
  // the young generation would grow to 48 MiB over a day of short work, and never shrink again
  setFlagsFromString("--semi-space-growth-factor=1");
  if (options.listen !== undefined) parseAddress(options.listen);
  const source = await watchSource(options, io.env, io.cwd);
  const statePath = await statePathFor(options, io.env, io.cwd);
  const zones = new Map<string, string>();
  const view = new WatchView(io.errStyle, (schedule) => zones.get(schedule) ?? "UTC", clock.now);
  let refresh: () => void = () => {};
  const session = {
    statePath,
    revision: null,
    adopt: options.adopt,
    progress: io.quiet ? undefined : progressOn(io, () => view.lines(clock.now())),
    onHangUp: () => refresh(),
  };
  const code = await inSession(io, session, async ({ state, context, listen }) => {
    const metrics = new WatchMetrics(toolVersion(), () => state.configuration.protections());
    listen((event) => metrics.handle(event));
    listen((event) => view.handle(event));
    let status: WatchStatus | undefined;
    let server: HealthServer | undefined;
    try {
      await watchSourceOf(source, context, {
        intervalMs,
        lockTimeoutMs,
        parallelism: options.parallelism,
        async onBegin() {
          if (options.listen === undefined) return;
          server = await serveHealth(
            options.listen,
            metrics,
            () => status,
            () => epochMsOf(clock.now()),
          );
          if (!io.quiet) io.err(`health and metrics: http://${server.address}/metrics\n`);
        },
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
      return exitCodes.done;
    } finally {
      await server?.close();
    }
  });
  // to be told to end is how a daemon ends
  return code === exitCodes.terminated ? exitCodes.done : code;
}
