import { fieldsOf, instantOfWall, startOfDay, wallOf } from "./zone.ts";

/** A span of the day in which runs may start. `endMinute` at or before `startMinute` runs past midnight. */
export interface Window {
  readonly startMinute: number;
  readonly endMinute: number;
  /** 0 is Sunday. The days on which the window starts. */
  readonly days: readonly number[];
  readonly timezone: string;
}

const minuteMs = 60_000;
const dayMs = 86_400_000;

/** No windows at all means always open. */
export function isOpen(windows: readonly Window[], epochMs: number): boolean {
  return nextOpening(windows, epochMs) === epochMs;
}

/**
 * The first instant at or after `epochMs` at which a run may start: `epochMs` itself where a window is open.
 * @returns epoch milliseconds; undefined when no window ever opens (no days)
 */
export function nextOpening(windows: readonly Window[], epochMs: number): number | undefined {
  if (windows.length === 0) return epochMs;
  let soonest: number | undefined;
  for (const window of windows) {
    const opening = openingOf(window, epochMs);
    if (opening !== undefined && (soonest === undefined || opening < soonest)) soonest = opening;
  }
  return soonest;
}

/** Days from yesterday (a window may run past midnight) to the same weekday next week. */
function openingOf(window: Window, epochMs: number): number | undefined {
  const today = startOfDay(wallOf(window.timezone, epochMs));
  const length = window.endMinute > window.startMinute ? window.endMinute : window.endMinute + 1440;
  for (let i = -1; i <= 8; i++) {
    const day = today + i * dayMs;
    if (!window.days.includes(fieldsOf(day).weekday)) continue;
    const end = instantOfWall(window.timezone, day + length * minuteMs);
    if (end <= epochMs) continue;
    const start = instantOfWall(window.timezone, day + window.startMinute * minuteMs);
    // one that lies wholly in an hour that the clock leaves out is not there on that day
    if (start >= end) continue;
    return Math.max(start, epochMs);
  }
  return undefined;
}
