import type { ScheduleSpec } from "../model/desired.ts";
import { fireTimes } from "../schedule/cron.ts";
import { nextOpening } from "../schedule/windows.ts";

/**
 * The soonest that a firing can start, in epoch milliseconds: when a window is open, and not before what it depends on can; undefined when it
 * never does. How long exports take, and who else wants a place, the simulator knows.
 * @param isSuspended schedules that start nothing, so that whatever depends on them never starts either
 */
export function soonestStarts(
  schedules: readonly ScheduleSpec[],
  isSuspended: (schedule: ScheduleSpec) => boolean,
): (schedule: ScheduleSpec, fireTimeMs: number) => number | undefined {
  const byName = new Map(schedules.map((schedule) => [schedule.name, schedule]));
  /** Many may depend on one: each firing is asked once. */
  const known = new Map<string, number | undefined>();

  function soonest(schedule: ScheduleSpec, at: number): number | undefined {
    const key = `${schedule.name}\n${at}`;
    if (!known.has(key)) known.set(key, isSuspended(schedule) ? undefined : begin(schedule, at));
    return known.get(key);
  }
  function begin(schedule: ScheduleSpec, at: number): number | undefined {
    let ready = at;
    for (const { schedule: name, timeoutMs } of schedule.dependsOn) {
      const other = byName.get(name);
      const began = other && soonest(other, fireTimes(other.cron, other.timezone).latest(at));
      if (began === undefined || began > at + (timeoutMs ?? Number.POSITIVE_INFINITY)) return undefined;
      ready = Math.max(ready, began);
    }
    const opening = nextOpening(schedule.windows, ready);
    return opening !== undefined && opening < fireTimes(schedule.cron, schedule.timezone).next(at) ? opening : undefined;
  }
  return soonest;
}
