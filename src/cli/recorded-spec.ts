import { cronProblem } from "../schedule/cron.ts";
import { isTimezone } from "../schedule/zone.ts";

/** Whether the JSON that a state has of a resource can be what was written, as far as anything counts on it. */
export function isRecordedSpec(address: string, json: string): boolean {
  const spec = JSON.parse(json) as unknown;
  if (typeof spec !== "object" || spec === null || Array.isArray(spec)) return false;
  if (!address.startsWith("schedule.")) return true;
  const { cron, timezone } = spec as Readonly<Record<string, unknown>>;
  return typeof cron === "string" && cronProblem(cron) === undefined && typeof timezone === "string" && isTimezone(timezone);
}
