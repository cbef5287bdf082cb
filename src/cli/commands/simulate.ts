import { observe } from "../../engine/observe.ts";
import { formatDuration } from "../../model/duration.ts";
import { HypersdkError } from "../../model/errors.ts";
import { epochMsOf, type Instant, instantOf } from "../../model/instant.ts";
import type { RecordedProtection } from "../../model/recorded.ts";
import { type Member, membership, protectionKey } from "../../plan/membership.ts";
import { withRenames } from "../../plan/shown.ts";
import { type SimulatedRun, type Simulation, simulate as simulateRuns, type Timeline } from "../../plan/simulate.ts";
import { emptyRecorded, State } from "../../state/state.ts";
import { plural } from "../../ui/plan-view.ts";
import { printable } from "../../ui/style.ts";
import { renderTable } from "../../ui/table.ts";
import { formatTime } from "../../ui/times.ts";
import { adapters, clock } from "../compose.ts";
import { loadDesired, scheduleNamed } from "../desired.ts";
import type { Io } from "../io.ts";
import type { SourceOptions } from "../load.ts";
import { timeOption } from "../time-option.ts";
import { timezonesOf } from "../view.ts";

export interface SimulateOptions extends SourceOptions {
  readonly from?: string;
  readonly to?: string;
  readonly providerSpeed?: readonly string[];
  readonly schedule?: readonly string[];
  readonly all?: boolean;
}

const usualBytesPerSecond = 100 * 2 ** 20;
/** Runs that a terminal is shown without `--all`. */
const shownRuns = 200;

/** What the files would do over a span of time, without doing any of it: the timeline of runs, waits and skips. */
export async function simulate(options: SimulateOptions, io: Io): Promise<number> {
  const now = clock.now();
  const from = timeOption("--from", options.from) ?? now;
  const to = timeOption("--to", options.to) ?? instantOf(epochMsOf(from) + 7 * 86_400_000);
  if (to <= from) throw new HypersdkError("Usage", "--to is not behind --from");
  const speeds = speedsOf(options.providerSpeed ?? []);
  const { desired, statePath } = await loadDesired(options, io);
  const named = (options.schedule ?? []).map((name) => scheduleNamed(name, desired));
  const shown = new Set((named.length > 0 ? named : desired.schedules).map(({ name }) => name));
  const state = State.openForReading(statePath);
  try {
    const recorded = state?.recorded(now) ?? emptyRecorded;
    const observed = await observe({ ...desired, destinations: [] }, adapters, recorded.protections);
    for (const { name, reason } of observed.unknownProviders)
      io.err(`${io.errStyle.yellow("warning")}: provider ${name} cannot be reached, its VMs are those that the state remembers: ${printable(reason)}\n`);
    const { members } = membership(desired, withRenames(desired, observed.vms, recorded.protections), recorded.protections);
    const protections = new Map(recorded.protections.map((each) => [protectionKey(each.schedule, each.provider, each.identity), each]));
    const known = (member: Member): number | undefined =>
      protections.get(protectionKey(member.schedule.name, member.provider, member.identity))?.lastDurationMs;
    // the plan of the state is made now; before, nothing of it has happened yet, and later all that was due until then
    const justBefore = instantOf(epochMsOf(from) - 1);
    const servedUntilThen = (each: RecordedProtection): RecordedProtection => ({ ...each, effectiveSince: justBefore, handledUntil: justBefore });
    const relevant = options.from === undefined ? protections : new Map(from < now ? [] : [...protections].map(([key, each]) => [key, servedUntilThen(each)]));
    const unknown = [...speeds.keys()].find((name) => name !== "" && !desired.providers.some((provider) => provider.name === name));
    if (unknown !== undefined) throw new HypersdkError("Usage", `--provider-speed: no provider is named "${unknown}"`);
    const timeline = bounded({
      members: new Map([...members].map(([key, member]) => [key, { ...member, vm: member.vm ?? vmOf(member) }])),
      protections: relevant,
      suspended: recorded.suspended,
      limit: desired.concurrency,
      // the first instant counts
      from: options.from === undefined ? from : justBefore,
      to,
      durationMs(member) {
        const speed = speeds.get(member.provider) ?? speeds.get("");
        const last = speed === undefined ? known(member) : undefined;
        const bytes = member.vm?.disks.reduce((sum, disk) => sum + disk.dataBytes, 0) ?? 0;
        return last ?? (bytes / (speed ?? usualBytesPerSecond)) * 1000;
      },
    });
    report(timeline, { from, to, protections: members.size, shown, all: options.all ?? false, zones: timezonesOf(desired) }, io);
    return 0;
  } finally {
    state?.close();
  }
}

const maxRuns = 2_000_000;

function bounded(simulation: Simulation): Timeline {
  try {
    return simulateRuns({ ...simulation, maxRuns });
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new HypersdkError("Usage", `there are more than ${maxRuns.toLocaleString("en")} runs in that span`, { hint: "simulate a shorter one", cause: error });
  }
}

/** A VM that its provider does not show now is taken to be there, without data that anybody knows of. */
function vmOf({ provider, identity, vmPath }: Member): NonNullable<Member["vm"]> {
  return { provider, identity, name: identity, path: vmPath, disks: [] };
}

interface Asked {
  readonly from: Instant;
  readonly to: Instant;
  readonly protections: number;
  readonly shown: ReadonlySet<string>;
  readonly all: boolean;
  readonly zones: (schedule: string) => string;
}

/** What became of the runs of one schedule, or of all. */
function tally(runs: readonly SimulatedRun[]) {
  const count = (outcome: SimulatedRun["outcome"]): number => runs.filter((run) => run.outcome === outcome).length;
  return {
    runs: runs.length,
    completed: count("completed"),
    skipped: count("skipped"),
    superseded: count("superseded"),
    unfinished: count("unfinished"),
    longestWaitMs: runs.reduce((longest, { startedMs, fireTimeMs }) => Math.max(longest, (startedMs ?? fireTimeMs) - fireTimeMs), 0),
  };
}

/** Everything is simulated, as all schedules share the places; of those that were asked for, the runs are told. */
function report({ runs: all, peak, peakWaiting }: Timeline, asked: Asked, io: Io): void {
  const { from, to, protections, zones } = asked;
  const runs = all.filter(({ schedule }) => asked.shown.has(schedule));
  const bySchedule = Map.groupBy(runs, ({ schedule }) => schedule);
  const schedules = [...asked.shown].map((schedule) => ({ schedule, ...tally(bySchedule.get(schedule) ?? []) }));
  const summary = {
    from,
    to,
    protections,
    ...tally(runs),
    peakRunning: { count: peak.running, at: instantOf(peak.atMs) },
    peakWaiting: { count: peakWaiting.waiting, at: instantOf(peakWaiting.atMs) },
    schedules,
  };
  const at = (ms: number | undefined): Instant | null => (ms === undefined ? null : instantOf(ms));
  if (io.json) {
    io.result("simulation", {
      ...summary,
      timeline: runs.map(({ schedule, vmPath, fireTimeMs, startedMs, endedMs, priority, outcome, reasons }) => ({
        schedule,
        vmPath,
        fireTime: instantOf(fireTimeMs),
        started: at(startedMs),
        ended: at(endedMs),
        priority,
        outcome,
        reasons,
      })),
    });
    return;
  }
  const { style } = io;
  const shown = asked.all ? runs : runs.slice(0, shownRuns);
  if (runs.length > 0)
    io.out(
      renderTable(
        ["fires", "starts", "ends", "schedule", "VM", "", ""],
        shown.map(({ schedule, vmPath, fireTimeMs, startedMs, endedMs, outcome, reasons }) => [
          formatTime(instantOf(fireTimeMs), zones(schedule), from),
          startedMs === undefined ? "-" : startedMs === fireTimeMs ? "at once" : `+${formatDuration(startedMs - fireTimeMs)}`,
          startedMs === undefined || endedMs === undefined ? "-" : `+${formatDuration(endedMs - fireTimeMs)}`,
          schedule,
          printable(vmPath),
          outcome,
          reasons.join("; "),
        ]),
      ),
    );
  if (shown.length < runs.length) io.out(`${style.dim(`and ${runs.length - shown.length} more: --all, or --json`)}\n`);
  const missed = ({ skipped, superseded }: { readonly skipped: number; readonly superseded: number }): number => skipped + superseded;
  if (schedules.length > 1)
    io.out(
      `\n${renderTable(
        ["schedule", "runs", "completed", "missed", "not ended", "longest wait"],
        schedules.map((each) => [
          each.schedule,
          String(each.runs),
          String(each.completed),
          String(missed(each)),
          String(each.unfinished),
          formatDuration(each.longestWaitMs),
        ]),
        [1, 2, 3, 4, 5],
      )}`,
    );
  io.out(
    `\n${style.bold(`${plural(runs.length, "run")}: ${summary.completed} completed, ${missed(summary)} missed, ${summary.unfinished} not ended by then.`)} The longest wait was ${formatDuration(summary.longestWaitMs)}.\n` +
      `In all, ${plural(protections, "protection")}: at most ${plural(summary.peakRunning.count, "export")} at once (${formatTime(summary.peakRunning.at, "UTC", from)}), at most ${summary.peakWaiting.count} waiting for a place.\n`,
  );
}

/** `100MiB/s` for every provider, `lab=100MiB/s` for one. */
function speedsOf(texts: readonly string[]): Map<string, number> {
  const units: Readonly<Record<string, number>> = { KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30 };
  return new Map(
    texts.map((text) => {
      const match = /^(?:([A-Za-z0-9_.-]+)=)?(\d+(?:\.\d+)?)(KiB|MiB|GiB)(?:\/s)?$/.exec(text);
      const rate = Number(match?.[2]) * (units[match?.[3] ?? ""] ?? 0);
      if (!match || !(rate > 0))
        throw new HypersdkError("Usage", `--provider-speed ${JSON.stringify(text)} is no speed`, { hint: "such as 200MiB/s or lab=200MiB/s" });
      return [match[1] ?? "", rate] as const;
    }),
  );
}
