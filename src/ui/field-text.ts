import { type DependencySpec, defaultExpiryGraceMs, type WindowSpec } from "../model/desired.ts";
import { formatDuration } from "../model/duration.ts";
import { lazily } from "../model/lazily.ts";
import type { Change } from "../plan/plan.ts";

/*
 * The fields of what is planned, in the words in which people write them.
 */

const diff = lazily<typeof import("diff")>("diff");
const days = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
const fieldNames: Readonly<Record<string, string>> = { writtenPath: "path", writtenSockets: "sockets", writtenScratch: "scratch" };
/** What goes without saying. */
const fieldDefaults: Readonly<Record<string, unknown>> = {
  verify: "stored",
  initialExport: "scheduled",
  catchUp: "latest",
  overlap: "skip",
  priority: 50,
  concurrency: 2,
  compression: "none",
  expiryGraceMs: defaultExpiryGraceMs,
};
const newFields: Readonly<Record<Change["resource"], readonly string[]>> = {
  schedule: [
    "cron",
    "timezone",
    "exclude",
    "destination",
    "format",
    "compression",
    "incremental",
    "encryption",
    "keepImage",
    "verify",
    "boot",
    "retention",
    "rpoMs",
    "windows",
    "dependsOn",
    "initialExport",
    "catchUp",
    "overlap",
    "priority",
    "concurrency",
    "suspend",
  ],
  policy: ["match", "exclude", "schedule", "priority", "rpoMs"],
  destination: ["url", "layout", "expiryGraceMs"],
  provider: ["type", "writtenSockets", "libvirt", "writtenPath", "writtenScratch", "root"],
  notifier: ["type"],
};

/** What a person wants to know of a new thing: not its defaults. */
export function shownFields(change: Change & { readonly kind: "create" }): [name: string, text: string][] {
  const spec = JSON.parse(change.after) as Record<string, unknown>;
  // chunks are compressed unless somebody says otherwise
  const defaults = spec["incremental"] ? { ...fieldDefaults, compression: "zstd" } : fieldDefaults;
  // whom a schedule protects says it better, where the providers were asked
  const names = change.resource === "schedule" && change.consequences.gained.length === 0 ? ["vms", ...newFields.schedule] : newFields[change.resource];
  return names.flatMap((name): [string, string][] => {
    const value = spec[name];
    if (value === undefined || value === false || (Array.isArray(value) && value.length === 0) || value === defaults[name]) return [];
    return [[shownName(name), fieldText(name, value)]];
  });
}

/** One field before and after. */
export function fieldDiff(name: string, before: unknown, after: unknown): string {
  if (Array.isArray(before) && Array.isArray(after))
    return listDiff(
      before.map((each) => itemText(name, each)),
      after.map((each) => itemText(name, each)),
    );
  return `${fieldText(name, before)} -> ${fieldText(name, after)}`;
}

export function shownName(name: string): string {
  return fieldNames[name] ?? name.replace(/Ms$/, "");
}

function fieldText(name: string, value: unknown): string {
  if (Array.isArray(value)) return value.map((each) => itemText(name, each)).join(", ");
  return name.endsWith("Ms") && typeof value === "number" ? formatDuration(value) : valueText(value);
}

function itemText(name: string, item: unknown): string {
  if (typeof item === "string") return item;
  if (name === "windows") return windowText(item as WindowSpec);
  if (name === "dependsOn") return dependencyText(item as DependencySpec);
  return valueText(item);
}

function windowText({ startMinute, endMinute, days: open, timezone }: WindowSpec): string {
  const time = (minute: number): string => `${String(Math.floor(minute / 60)).padStart(2, "0")}:${String(minute % 60).padStart(2, "0")}`;
  return `${open.length < days.length ? `${open.map((day) => days[day]).join(" ")} ` : ""}${time(startMinute)} to ${time(endMinute)} ${timezone}`;
}

function dependencyText({ schedule, state, timeoutMs }: DependencySpec): string {
  return `${schedule} (${state}${timeoutMs === undefined ? "" : `, for ${formatDuration(timeoutMs)}`})`;
}

function valueText(value: unknown): string {
  if (value === null) return "(none)";
  if (typeof value !== "object") return JSON.stringify(value);
  return Object.entries(value)
    .filter(([, member]) => !(Array.isArray(member) && member.length === 0))
    .map(([key, member]) =>
      key.endsWith("Ms") && typeof member === "number"
        ? `${key.slice(0, -2)} ${formatDuration(member)}`
        : `${key} ${typeof member === "object" ? JSON.stringify(member) : String(member)}`,
    )
    .join(", ");
}

function listDiff(before: readonly string[], after: readonly string[]): string {
  return (
    diff()
      .diffArrays([...before], [...after])
      .flatMap((part) => part.value.map((value) => (part.added ? `+${value}` : part.removed ? `-${value}` : value)))
      .join("  ") || "(none)"
  );
}
