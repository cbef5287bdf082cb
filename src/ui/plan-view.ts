import { formatBytes } from "../model/bytes.ts";
import { formatDuration } from "../model/duration.ts";
import type { Instant } from "../model/instant.ts";
import { type Change, type DueExport, type Plan, unexplainedProtections } from "../plan/plan.ts";
import { fieldDiff, shownFields, shownName } from "./field-text.ts";
import { printable, type Style } from "./style.ts";
import { formatTime } from "./times.ts";

export interface PlanViewOptions {
  readonly style: Style;
  /** Only the last line. */
  readonly summary: boolean;
  /** The timezone of a schedule, for its times. */
  readonly timezoneOf: (schedule: string) => string;
}

/** The plan as a person reads it: what matters, in the order of its parts, and one line that sums it up. */
export function renderPlan(plan: Plan, options: PlanViewOptions): string {
  const { style } = options;
  if (options.summary) return `${summaryLine(plan)}\n`;
  const sections = [
    headLine(plan),
    ...changeSection(plan, options),
    ...protectionSection(plan, style),
    ...dueSection(plan, options),
    ...driftSection(plan, style),
    ...expirySection(plan, options),
    ...warningSection(plan, style),
  ];
  return `${sections.filter((section) => section !== "").join("\n\n")}\n\n${style.bold(summaryLine(plan))}\n`;
}

function headLine({ revision, lineage, serial }: Plan): string {
  const where = revision?.commit
    ? `${revision.branch ?? "detached"}@${revision.commit.slice(0, 7)} (${revision.dirty ? "with changes that are not committed" : "clean"})`
    : "files without a commit";
  return `infrastructure at ${where} · state ${lineage === "new" ? "new" : `${lineage.slice(0, 4)}…`}  serial ${serial}`;
}

export function summaryLine(plan: Plan): string {
  const { changes, exports, deferred, expiry, unchanged } = plan;
  const count = (kind: Change["kind"]): number => changes.filter((change) => change.kind === kind).length;
  const moved = plan.protections.length === 0 ? 0 : unexplainedProtections(plan).length;
  const points = new Set([...expiry.mark, ...expiry.remove].map(({ point }) => point)).size;
  return `Plan: ${count("create")} to add, ${count("update")} to change, ${count("delete")} to remove, ${unchanged} unchanged. ${moved > 0 ? `${plural(moved, "VM")} gained, lost or renamed. ` : ""}${plural(exports.length, "export")} due, ${deferred.length} deferred. ${plural(points, "restore point")} ${points === 1 ? "expires" : "expire"}.`;
}

export function plural(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

function changeSection({ changes, at }: Plan, { style, timezoneOf }: PlanViewOptions): string[] {
  return changes.map((change) => {
    const sign = { create: style.green("+"), update: style.yellow("~"), delete: style.red("-") }[change.kind];
    const fields: [name: string, text: string][] = change.kind === "create" ? shownFields(change) : [];
    const field = (name: string, text: string): void => void fields.push([name, text]);
    if (change.kind === "update") for (const { field: name, before, after } of change.fields) field(shownName(name), fieldDiff(name, before, after));
    const { gained, lost, nextRunBefore, nextRunAfter, expirable, keepsPoints } = change.consequences;
    const zone = timezoneOf(change.address.slice(change.address.indexOf(".") + 1));
    const time = (instant: Instant | undefined): string => (instant ? formatTime(instant, zone, at) : "never");
    if (change.kind !== "delete" && change.resource === "schedule" && nextRunBefore !== nextRunAfter)
      field("next run", nextRunBefore ? `${time(nextRunBefore)} -> ${time(nextRunAfter)}` : time(nextRunAfter));
    if (gained.length > 0) field("protects", named(gained));
    if (lost.length > 0) field("lets go of", named(lost));
    if (expirable > 0) field("expires", plural(expirable, "restore point"));
    const nameWidth = Math.max(12, width(fields.map(([name]) => name)));
    const lines = [
      `  ${sign} ${style.bold(change.address)}${change.kind === "delete" ? `        because ${printable(change.reason)}` : ""}`,
      ...fields.map(([name, text]) => `      ${name.padEnd(nameWidth)} ${printable(text)}`),
    ];
    if (keepsPoints > 0)
      lines.push(
        `      keeps its ${plural(keepsPoints, "restore point")}; \`hypersdk expire --schedule ${change.address.slice("schedule.".length)}\` would let them go`,
      );
    return lines.join("\n");
  });
}

/** Of an increment, or of what will be the base of one, also why. */
function modeText({ mode, modeReason, isIncremental, diskModes }: DueExport): string {
  const [only, ...more] = diskModes;
  if (isOfSeveral(diskModes)) return mode;
  return only && more.length === 0 ? diskModeText(only) : isIncremental ? `${mode} (${modeReason})` : mode;
}

/** A line for each disk, where they are not all read in the same way. */
function diskLines({ diskModes }: DueExport): string[] {
  return isOfSeveral(diskModes) ? diskModes.map((each) => `        ${printable(each.name)}  ${diskModeText(each)}`) : [];
}

function isOfSeveral(diskModes: DueExport["diskModes"]): boolean {
  return diskModes.length > 1 && diskModes.some(({ reason, changedBytes }) => changedBytes !== undefined || reason !== diskModes[0]?.reason);
}

function diskModeText({ mode, reason, changedBytes }: DueExport["diskModes"][number]): string {
  return `${mode} (${printable(reason)}${changedBytes === undefined ? "" : `, ${formatBytes(changedBytes)}`})`;
}

function named(paths: readonly string[]): string {
  const shown = paths.slice(0, 2).join(", ");
  return `${plural(paths.length, "VM")}: ${shown}${paths.length > 2 ? ` … (+${paths.length - 2})` : ""}`;
}

/** Changes of protections that no change of a schedule explains. */
function protectionSection(plan: Plan, style: Style): string[] {
  const words = {
    begin: style.green("+ protects"),
    end: style.red("- lets go"),
    missing: style.red("! missing"),
    found: style.green("+ is back"),
    renamed: style.yellow("~ renamed"),
    restarted: style.yellow("~ restarts"),
  };
  const shown = unexplainedProtections(plan);
  if (shown.length === 0) return [];
  const lines = shown
    .slice(0, 20)
    .map(
      (each) =>
        `  ${words[each.kind]}  ${each.schedule}  ${printable(each.vmPath)}${each.kind === "renamed" ? `  (was ${printable(each.from)})` : ""}${"reason" in each ? `  ${style.dim(each.reason)}` : ""}`,
    );
  if (shown.length > 20) lines.push(`  … and ${shown.length - 20} more`);
  return [["protections", ...lines].join("\n")];
}

function dueSection({ exports, deferred, skipped, at, suspended }: Plan, { style, timezoneOf }: PlanViewOptions): string[] {
  const all = [...exports, ...deferred, ...skipped];
  if (all.length === 0 && suspended.length === 0) return [];
  const schedule = width(all.map((each) => each.schedule));
  const path = width(all.map((each) => printable(each.vmPath)));
  const name = (each: { readonly schedule: string; readonly vmPath: string }): string =>
    `${each.schedule.padEnd(schedule)}  ${printable(each.vmPath).padEnd(path)}`;
  const limited = <T>(list: readonly T[], render: (item: T) => string): string[] => [
    ...list.slice(0, 30).map(render),
    ...(list.length > 30 ? [`    … and ${list.length - 30} more`] : []),
  ];
  const lines = [
    ...limited(
      exports,
      (due) =>
        `  ${style.cyan(">")} ${name(due)}  ${modeText(due)}  ${sizeText(due)}${due.estimatedDurationMs === null ? "" : `  ~${formatDuration(due.estimatedDurationMs)}`}   to ${printable(due.destination)}${diskLines(
          due,
        )
          .map((line) => `\n${line}`)
          .join("")}`,
    ),
    ...limited(
      deferred,
      (each) =>
        `  ${style.yellow("~")} ${name(each)}  ${each.reason}${each.until ? `, opens ${formatTime(each.until, timezoneOf(each.schedule), at)}` : ""}; given up ${formatTime(each.deadline, timezoneOf(each.schedule), at)}`,
    ),
    ...limited(skipped, (each) => `  ${style.dim("x")} ${name(each)}  skipped: ${each.reason}`),
    ...suspended.map((each) => `  ${style.yellow("‖")} ${each}  is suspended; \`hypersdk resume ${each}\` lets it run`),
  ];
  return [["due now", ...lines].join("\n")];
}

function sizeText({ dataBytes, virtualBytes, disks }: DueExport): string {
  return `${plural(disks, "disk")}, ${formatBytes(dataBytes)} of ${formatBytes(virtualBytes)}`;
}

function width(texts: readonly string[]): number {
  return texts.reduce((longest, text) => Math.max(longest, text.length), 0);
}

export function driftSection({ drift }: Plan, style: Style): string[] {
  if (drift.length === 0) return [];
  const words = {
    "vm-missing": style.red("! VM missing"),
    "vm-new": style.green("+ VM new"),
    "vm-changed": style.yellow("~ VM changed"),
    overdue: style.red("! overdue"),
    "point-missing": style.red("! restore point missing"),
    "point-altered": style.red("! restore point altered"),
    unknown: style.yellow("? unknown"),
  };
  const what = (each: Plan["drift"][number]): string =>
    "what" in each ? each.what : `${each.schedule}  ${each.vmPath}${"point" in each ? `  ${each.point} at ${each.destination}` : ""}`;
  const lines = drift.slice(0, 30).map((each) => `  ${words[each.kind]}  ${printable(what(each))}  ${style.dim(printable(each.message))}`);
  if (drift.length > 30) lines.push(`  … and ${drift.length - 30} more`);
  return [["drift", ...lines].join("\n")];
}

function expirySection({ expiry, at }: Plan, { style, timezoneOf }: PlanViewOptions): string[] {
  const goes = new Set(expiry.remove.map(({ point }) => point));
  const lines = [
    ...expiry.remove.map(
      (mark) =>
        `  ${style.red("-")} ${mark.schedule}  ${printable(mark.vmPath)}  ${formatTime(mark.instant, timezoneOf(mark.schedule), at)}  ${formatBytes(mark.storedBytes)}  is removed: ${mark.rule}`,
    ),
    ...expiry.mark
      .filter(({ point }) => !goes.has(point))
      .map(
        (mark) =>
          `  ${style.yellow("-")} ${mark.schedule}  ${printable(mark.vmPath)}  ${formatTime(mark.instant, timezoneOf(mark.schedule), at)}  ${formatBytes(mark.storedBytes)}  ${mark.rule}; removed after ${formatTime(mark.expiresAt, timezoneOf(mark.schedule), at)}`,
      ),
    ...expiry.withdraw.map(({ point, reason }) => `  ${style.green("+")} ${point}  stays after all: ${reason}`),
    ...expiry.blocked.map(
      (each) => `  ${style.dim("=")} ${each.schedule}  ${printable(each.vmPath)}  ${plural(each.points, "restore point")} would expire, but ${each.reason}`,
    ),
  ];
  return lines.length === 0 ? [] : [["expiry", ...lines.slice(0, 40), ...(lines.length > 40 ? [`  … and ${lines.length - 40} more`] : [])].join("\n")];
}

function warningSection({ warnings }: Plan, style: Style): string[] {
  if (warnings.length === 0) return [];
  return [
    [
      "warnings",
      ...warnings.slice(0, 20).map(({ code, message, address }) => `  ${style.yellow(code)}  ${address ? `${address}: ` : ""}${printable(message)}`),
      ...(warnings.length > 20 ? [`  … and ${warnings.length - 20} more`] : []),
    ].join("\n"),
  ];
}
