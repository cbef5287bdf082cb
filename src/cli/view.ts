import type { DesiredState } from "../model/desired.ts";
import type { Plan } from "../plan/plan.ts";

/** The timezone in which a schedule's times are shown; that of one that was removed comes from its recorded spec. */
export function timezonesOf(desired: DesiredState | undefined, plan?: Plan): (schedule: string) => string {
  const zones = new Map<string, string>();
  for (const change of plan?.changes ?? []) {
    if (change.resource !== "schedule") continue;
    const spec = JSON.parse(change.kind === "delete" ? change.before : change.after) as { timezone?: string };
    zones.set(change.address.slice("schedule.".length), spec.timezone ?? "UTC");
  }
  for (const { name, timezone } of desired?.schedules ?? []) zones.set(name, timezone);
  return (schedule) => zones.get(schedule) ?? "UTC";
}
