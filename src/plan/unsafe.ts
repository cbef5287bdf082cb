import type { RetentionSpec, VerifyLevel } from "../model/desired.ts";
import { fireTimes } from "../schedule/cron.ts";
import type { Change, FieldChange, Plan } from "./plan.ts";

/** Why `apply --auto-approve=safe` would not carry a plan out, as it removes or weakens protection; empty where it would. */
export function unsafeReasons(plan: Plan): string[] {
  const reasons: string[] = [];
  for (const change of plan.changes) {
    if (change.kind === "delete") reasons.push(`removes ${change.address}`);
    if (change.consequences.expirable > 0)
      reasons.push(`${change.address} makes ${change.consequences.expirable} restore ${change.consequences.expirable === 1 ? "point" : "points"} expirable`);
    if (change.kind === "update") reasons.push(...weakenings(change));
  }
  for (const protection of plan.protections) if (protection.kind === "end") reasons.push(`${protection.schedule} no longer protects ${protection.vmPath}`);
  return reasons;
}

type Update = Change & { readonly kind: "update" };

function weakenings(change: Update): string[] {
  const reasons = change.fields.filter((each) => isWeaker(change.resource, each)).map(({ field }) => `changes ${shownName(field)} of ${change.address}`);
  if (runsLessOften(change)) reasons.push(`${change.address} runs less often`);
  return reasons;
}

/** As it is written: without its unit, or where it is on this machine. */
function shownName(field: string): string {
  return field.replace(/Ms$/, "").replace(/^written(.)/, (_, first: string) => first.toLowerCase());
}

const levels: readonly VerifyLevel[] = ["none", "stored", "checksum", "restore", "boot"];
/** Fields of which any change may be one for the worse. */
const guarded: Readonly<Record<Change["resource"], readonly string[]>> = {
  schedule: ["destination", "encryption"],
  destination: ["url", "layout"],
  provider: ["writtenPath", "writtenSockets", "libvirt", "root"],
  policy: [],
  notifier: [],
};

function isWeaker(resource: Change["resource"], { field, before, after }: FieldChange): boolean {
  if (guarded[resource].includes(field)) return true;
  switch (field) {
    case "suspend":
      return after === true;
    case "verify":
      return levels.indexOf(after as VerifyLevel) < levels.indexOf(before as VerifyLevel);
    case "retention":
      return keepsLess(before as RetentionSpec | null, after as RetentionSpec | null);
    // with it or without it, the destination has another layout, and exports to what is there fail
    case "incremental":
      return !before !== !after || millis(after, "fullReadEveryMs") > millis(before, "fullReadEveryMs");
    case "rpoMs":
      return (after ?? Number.POSITIVE_INFINITY) > (before ?? Number.POSITIVE_INFINITY);
    case "expiryGraceMs":
      return Number(after) < Number(before);
    case "catchUp":
      return after === "skip";
    // what a run waits for may keep it waiting
    case "windows":
    case "dependsOn":
      return Array.isArray(after) && after.length > 0;
    default:
      return false;
  }
}

function millis(spec: unknown, name: string): number {
  return Number((spec as Record<string, unknown> | null)?.[name] ?? 0);
}

/** No rules keep everything. */
function keepsLess(before: RetentionSpec | null | undefined, after: RetentionSpec | null | undefined): boolean {
  if (!after) return false;
  if (!before) return true;
  return Object.entries(before).some(([rule, count]) => ((after as Record<string, number | undefined>)[rule] ?? 0) < count);
}

function runsLessOften({ resource, fields, before, after }: Update): boolean {
  if (resource !== "schedule" || !fields.some(({ field }) => field === "cron")) return false;
  const [old, next] = [before, after]
    .map((spec) => JSON.parse(spec) as { cron: string; timezone: string })
    .map(({ cron, timezone }) => fireTimes(cron, timezone).longestGapMs());
  return (next as number) > (old as number);
}
