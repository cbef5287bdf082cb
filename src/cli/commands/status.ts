import { observe } from "../../engine/observe.ts";
import { formatBytes } from "../../model/bytes.ts";
import type { ScheduleSpec } from "../../model/desired.ts";
import { formatDuration } from "../../model/duration.ts";
import { epochMsOf, type Instant, instantOf } from "../../model/instant.ts";
import type { Recorded } from "../../model/recorded.ts";
import { failingOf } from "../../plan/failing.ts";
import { plan } from "../../plan/planner.ts";
import { fireTimes } from "../../schedule/cron.ts";
import { exportScope } from "../../state/leases.ts";
import { emptyRecorded, State } from "../../state/state.ts";
import { plural } from "../../ui/plan-view.ts";
import { barOf, progressText } from "../../ui/progress.ts";
import { printable } from "../../ui/style.ts";
import { formatTime } from "../../ui/times.ts";
import { adapters, clock } from "../compose.ts";
import type { Io } from "../io.ts";
import { loadIfPossible, type SourceOptions } from "../load.ts";
import { timezonesOf } from "../view.ts";

/** One screen: what is applied, what comes next, how the last runs ended, what is overdue, how much is stored. */
export async function status(options: SourceOptions, io: Io): Promise<number> {
  const loaded = await loadIfPossible(options, io.env, io.cwd, (reason) =>
    io.err(`${io.errStyle.yellow("warning")}: ${printable(reason)}; this is what the state knows\n`),
  );
  const state = State.openForReading(loaded.statePath);
  try {
    const now = clock.now();
    const recorded = state?.recorded(now) ?? emptyRecorded;
    const applied = JSON.parse(state?.configuration.meta("applied_revision") ?? "null") as {
      commit: string | null;
      branch: string | null;
      dirty?: boolean;
      at: string;
    } | null;
    const attempted = JSON.parse(state?.configuration.meta("attempted_revision") ?? "null") as {
      commit: string | null;
      at: string;
      problem: string | null;
    } | null;
    const watching = state?.leases.list().find(({ scope, alive }) => scope === "watcher" && alive);
    const { desired } = loaded;
    const zones = timezonesOf(desired);
    const suspended = new Set(recorded.suspended);
    // what the files say more is pending until it is applied
    const next = appliedSchedules(recorded)
      .filter((each) => !each.suspend && !suspended.has(each.name))
      .map((each) => ({ schedule: each.name, at: instantOf(fireTimes(each.cron, each.timezone).next(epochMsOf(now))) }))
      .sort((a, b) => (a.at < b.at ? -1 : 1))
      .slice(0, 8);
    const alive = state?.leases.alive();
    const running = (state?.runs.begun() ?? []).map((run) => ({
      schedule: run.schedule,
      vm: run.vmPath,
      fireTime: run.fireTime,
      state: alive?.has(exportScope(run)) ? run.state : ("cut off" as const),
      startedAt: run.startedAt,
      readBytes: run.readBytes,
      totalBytes: run.totalBytes,
    }));
    const runs = (state?.runs.list(8) ?? []).map((run) => ({
      schedule: run.schedule,
      vm: run.vmPath,
      fireTime: run.fireTime,
      state: run.state,
      error: run.error ?? null,
    }));
    const made = desired && plan({ desired, recorded, observed: await observe(desired, adapters, recorded.protections), revision: loaded.revision, now });
    const drift = made?.drift ?? [];
    const pending = made?.changes.length ?? 0;
    const waiting = (made?.deferred ?? [])
      .filter(({ waitsFor }) => waitsFor !== "running")
      .map(({ schedule, vmPath, fireTime, reason, until }) => ({ schedule, vm: vmPath, fireTime, reason, until }));
    const unknown = drift.flatMap((each) => (each.kind === "unknown" ? [{ what: each.what, reason: each.message }] : []));
    const overdue = drift.flatMap((each) => (each.kind === "overdue" ? [{ schedule: each.schedule, vm: each.vmPath, reason: each.message }] : []));
    const missing = recorded.protections.filter((each) => each.state === "missing").length;
    const damaged = recorded.points
      .filter((point) => point.state === "bad")
      .map((point) => ({ point: point.id, schedule: point.schedule, vm: point.vmPath, instant: point.instant }));
    const failing = failingOf(recorded).map(({ id, schedule, vmPath, fireTime }) => ({
      schedule,
      vm: vmPath,
      fireTime,
      error: state?.runs.get(id)?.error ?? null,
    }));
    const storedBytes = recorded.points.reduce((sum, point) => sum + point.storedBytes, 0);
    const value = {
      lineage: recorded.lineage,
      serial: recorded.serial,
      revision: applied,
      valid: desired !== undefined,
      pending,
      protections: recorded.protections.length,
      missing,
      next,
      running,
      waiting,
      unknown,
      runs,
      failing,
      overdue,
      damaged,
      points: recorded.points.length,
      storedBytes,
      suspended: [...suspended],
      attempted: attempted && { commit: attempted.commit ?? null, at: attempted.at, problem: attempted.problem },
      watcher: watching ? { pid: watching.pid, host: watching.host, since: watching.since } : null,
    };
    if (io.json) {
      io.result("status", value);
      return 0;
    }
    const { style } = io;
    const gone = [...new Set(recorded.protections.filter((each) => each.state === "missing").map(({ vmPath }) => printable(vmPath)))];
    const goneText = `${gone.length} missing: ${gone.slice(0, 5).join(", ")}${gone.length > 5 ? ", …" : ""}`;
    io.out(
      `${style.bold("revision")}  ${applied?.commit ? `${applied.branch ?? "detached"}@${applied.commit.slice(0, 7)}${applied.dirty ? " with changes" : ""}` : applied ? "files without a commit" : "nothing applied yet"}  serial ${recorded.serial}${applied ? `  applied ${formatTime(instantOf(Date.parse(applied.at)), "UTC", now)}` : ""}\n`,
    );
    if (watching) io.out(`${style.bold("watched")}   by process ${watching.pid} on ${watching.host} since ${formatTime(watching.since, "UTC", now)}\n`);
    if (attempted?.problem)
      io.out(`${style.red("rejected")}  ${attempted.commit?.slice(0, 7) ?? "the work tree"}: ${printable(attempted.problem)}; what was applied goes on\n`);
    if (!desired && loaded.fileCount > 0) io.out(`${style.red("the files are invalid")}: hypersdk validate shows why; what was applied goes on\n`);
    if (pending > 0)
      io.out(
        `${style.yellow("pending")}   ${plural(pending, "change")} of the files ${pending === 1 ? "is" : "are"} not applied: hypersdk plan shows ${pending === 1 ? "it" : "them"}\n`,
      );
    io.out(
      `${style.bold("protects")}  ${plural(new Set(recorded.protections.map(({ provider, identity }) => `${provider}\n${identity}`)).size, "VM")}${gone.length > 0 ? `, ${style.red(goneText)}` : ""}${suspended.size > 0 ? `; suspended: ${[...suspended].join(", ")}` : ""}\n`,
    );
    io.out(
      `${style.bold("stored")}    ${plural(recorded.points.length, "restore point")}, ${formatBytes(storedBytes)}${damaged.length > 0 ? `, ${style.red(`${damaged.length} damaged`)}` : ""}\n`,
    );
    const section = (title: string, lines: readonly string[], empty: string): void =>
      io.out(`\n${style.bold(title)}\n${lines.length > 0 ? lines.map((line) => `  ${line}\n`).join("") : `  ${style.dim(empty)}\n`}`);
    section(
      "next runs",
      next.map(
        (each) =>
          `${formatTime(each.at, zones(each.schedule), now)}  ${each.schedule}  ${style.dim(`in ${formatDuration(epochMsOf(each.at) - epochMsOf(now))}`)}`,
      ),
      "none",
    );
    if (waiting.length > 0)
      section(
        "waiting",
        waiting
          .slice(0, 20)
          .map(
            (each) =>
              `${formatTime(each.fireTime, zones(each.schedule), now)}  ${each.schedule}  ${printable(each.vm)}  ${printable(each.reason)}${each.until ? `, opens ${formatTime(each.until, zones(each.schedule), now)}` : ""}`,
          ),
        "nothing",
      );
    if (running.length > 0)
      section(
        "running",
        running.map((run) => `${run.schedule}  ${printable(run.vm)}  ${progressOf(run, now)}`),
        "nothing",
      );
    section(
      "last runs",
      runs
        .filter(({ state }) => state !== "running" && state !== "storing" && state !== "verifying")
        .map(
          (run) =>
            `${run.state === "completed" ? style.green("✓") : run.state === "failed" ? style.red("✗") : "·"} ${formatTime(run.fireTime, zones(run.schedule), now)}  ${run.schedule}  ${printable(run.vm)}  ${run.state}${run.error ? `  ${printable(run.error)}` : ""}`,
        ),
      "none yet",
    );
    if (failing.length > 0)
      section(
        "failed, and not made since",
        [
          ...failing
            .slice(0, 20)
            .map(
              (each) =>
                `${style.red("✗")} ${each.schedule}  ${printable(each.vm)}  ${formatTime(each.fireTime, zones(each.schedule), now)}${each.error ? `  ${printable(each.error)}` : ""}`,
            ),
          ...(failing.length > 20 ? [`and ${failing.length - 20} more: hypersdk get runs`] : []),
        ],
        "nothing",
      );
    section(
      "overdue",
      overdue.slice(0, 20).map((each) => `${style.red("!")} ${each.schedule}  ${printable(each.vm)}  ${each.reason}`),
      "nothing is overdue",
    );
    if (unknown.length > 0)
      section(
        "cannot be looked at",
        unknown.slice(0, 20).map((each) => `${style.yellow("?")} ${printable(each.what)}  ${printable(each.reason)}`),
        "nothing",
      );
    return 0;
  } finally {
    state?.close();
  }
}

/** `███░░ 42%  1.2 GiB of 2.9 GiB  310 MiB/s  ~5s`, as a watcher's terminal shows it; after the reading, what is done now. */
function progressOf(
  run: { readonly state: string; readonly startedAt: Instant; readonly readBytes: number | null; readonly totalBytes: number | null },
  now: Instant,
): string {
  if (run.state === "cut off") return "its process is gone: the next apply, watch, or run of it clears it, and finishes or repeats what was scheduled";
  const sinceMs = epochMsOf(now) - epochMsOf(run.startedAt);
  if (run.readBytes === null || run.totalBytes === null) return `begun ${formatDuration(sinceMs)} ago`;
  if (run.state === "verifying") return `${formatBytes(run.readBytes)} read, verifying`;
  return `${barOf(run.readBytes, run.totalBytes)}  ${progressText(run.readBytes, run.totalBytes, (run.readBytes / Math.max(1, sinceMs)) * 1000)}`;
}

/** Schedules as they were applied last. */
function appliedSchedules({ resources }: Recorded): Pick<ScheduleSpec, "name" | "cron" | "timezone" | "suspend">[] {
  return resources.flatMap(({ address, spec }) =>
    address.startsWith("schedule.") ? [{ ...(JSON.parse(spec) as ScheduleSpec), name: address.slice("schedule.".length) }] : [],
  );
}
