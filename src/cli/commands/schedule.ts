import type { ScheduleSpec } from "../../model/desired.ts";
import { formatDuration } from "../../model/duration.ts";
import { HypersdkError } from "../../model/errors.ts";
import { epochMsOf, type Instant, instantOf } from "../../model/instant.ts";
import { soonestStarts } from "../../plan/soonest.ts";
import { fireTimes } from "../../schedule/cron.ts";
import { isOpen, nextOpening } from "../../schedule/windows.ts";
import { State } from "../../state/state.ts";
import { renderTable } from "../../ui/table.ts";
import { formatTime } from "../../ui/times.ts";
import { clock } from "../compose.ts";
import { scheduleNamed } from "../desired.ts";
import type { Io } from "../io.ts";
import { load, type SourceOptions } from "../load.ts";
import { timeOption } from "../time-option.ts";

export interface PreviewOptions extends SourceOptions {
  readonly from?: string;
  readonly count?: number;
}

/** The next fire times of a schedule: when each may start, what it waits for, and why it is not when its cron expression says. */
export async function preview(name: string, options: PreviewOptions, io: Io): Promise<number> {
  const { desired, statePath } = await load(options, io.env, io.cwd);
  if (!desired) throw new HypersdkError("ConfigInvalid", "the configuration has errors", { hint: "hypersdk validate shows them" });
  const { schedules } = desired;
  const schedule = scheduleNamed(name, desired);
  const from = timeOption("--from", options.from) ?? clock.now();
  const overridden = suspensionsIn(statePath);
  const isSuspended = (each: ScheduleSpec): boolean => each.suspend || overridden.has(each.name);
  const times = fireTimes(schedule.cron, schedule.timezone);
  // that it is suspended itself is told once for all of its firings
  const soonestOf = soonestStarts(schedules, (each) => each !== schedule && isSuspended(each));
  const items: Item[] = [];
  // the first instant counts
  for (let at = epochMsOf(from) - 1; items.length < (options.count ?? 10); ) {
    at = times.next(at);
    items.push(itemOf(schedule, schedules, soonestOf, at));
  }
  if (io.json) io.result("schedule-preview", { schedule: name, timezone: schedule.timezone, suspended: isSuspended(schedule), items });
  else {
    if (isSuspended(schedule)) io.err(`${io.errStyle.yellow("warning")}: the schedule is suspended: none of these fires\n`);
    const shown = (instant: Instant): string => formatTime(instant, schedule.timezone, from);
    const hasWindows = schedule.windows.length > 0;
    io.out(
      renderTable(
        ["fires", "starts", ...(hasWindows ? ["window"] : []), "because", "after"],
        items.map(({ fireTime, starts, window, reason, dependsOn }) => [
          shown(fireTime),
          starts ? shown(starts) : "never",
          ...(hasWindows ? [window ?? ""] : []),
          reason ?? "",
          dependsOn.map((each) => `${each.schedule} of ${shown(each.firing)} ${each.state}`).join(", "),
        ]),
      ),
    );
  }
  return 0;
}

interface Item {
  readonly fireTime: Instant;
  /** The soonest that its windows and what it depends on let it start; null when it never does. */
  readonly starts: Instant | null;
  /** The window in which it starts, or that it would have to wait for; null where it may start at any time. */
  readonly window: string | null;
  /** Why it starts later, or fires at another time than its cron expression says. */
  readonly reason: string | null;
  /** What has to have ended first. */
  readonly dependsOn: readonly { readonly schedule: string; readonly firing: Instant; readonly state: string; readonly until: Instant }[];
}

/** `22:00-06:00`, with its zone where that is not the schedule's. */
function windowAt({ windows, timezone }: ScheduleSpec, at: number | undefined): string | null {
  const window = at === undefined ? undefined : windows.find((each) => isOpen([each], at));
  if (!window) return null;
  const time = (minute: number): string => `${String(Math.floor(minute / 60)).padStart(2, "0")}:${String(minute % 60).padStart(2, "0")}`;
  return `${time(window.startMinute)}-${time(window.endMinute)}${window.timezone === timezone ? "" : ` ${window.timezone}`}`;
}

/** What `hypersdk suspend` holds back. */
function suspensionsIn(statePath: string): ReadonlySet<string> {
  const state = State.openForReading(statePath);
  try {
    return new Set(state?.configuration.suspensions());
  } finally {
    state?.close();
  }
}

function itemOf(schedule: ScheduleSpec, schedules: readonly ScheduleSpec[], soonestOf: ReturnType<typeof soonestStarts>, at: number): Item {
  const times = fireTimes(schedule.cron, schedule.timezone);
  const opening = nextOpening(schedule.windows, at);
  const nextMs = times.next(at);
  const shift = times.shiftOf(at);
  const soonest = soonestOf(schedule, at);
  const waitsFor = schedule.dependsOn.map((each) => each.schedule).join(", ");
  const reasons = [
    ...(shift === "gap" ? ["the clock goes forward over its time: the first instant after"] : []),
    ...(shift === "first of two" ? ["the clock goes back over its time: the first of two"] : []),
    ...(opening === undefined ? ["its windows never open"] : opening > at ? [`its window opens ${formatDuration(opening - at)} later`] : []),
    ...(opening !== undefined && opening >= nextMs ? ["its next fire time comes first: it never starts"] : []),
    ...(opening !== undefined && opening < nextMs && soonest === undefined ? [`${waitsFor} cannot have ended in time: it never starts`] : []),
    ...(opening !== undefined && soonest !== undefined && soonest > opening ? [`${waitsFor} cannot begin before`] : []),
  ];
  return {
    fireTime: instantOf(at),
    starts: soonest === undefined ? null : instantOf(soonest),
    window: windowAt(schedule, soonest ?? opening),
    reason: reasons.length > 0 ? reasons.join("; ") : null,
    dependsOn: schedule.dependsOn.flatMap(({ schedule: name, state, timeoutMs }) => {
      const other = schedules.find((each) => each.name === name);
      if (!other) return [];
      const until = Math.min(timeoutMs === undefined ? nextMs : at + timeoutMs, nextMs);
      return [{ schedule: name, firing: instantOf(fireTimes(other.cron, other.timezone).latest(at)), state, until: instantOf(until) }];
    }),
  };
}
