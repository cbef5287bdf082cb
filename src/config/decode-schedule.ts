import type { DestinationSpec, Origin, RetentionSpec, RetrySpec, ScheduleSpec, VerifyLevel, WindowSpec } from "../model/desired.ts";
import { compressionsOf, type ExportFormat, type ImageCompression } from "../model/image-formats.ts";
import { cronProblem } from "../schedule/cron.ts";
import { isTimezone } from "../schedule/zone.ts";
import { alertsOf, durationOf, patternsOf, priorityOf } from "./decode-values.ts";
import type { Item } from "./read-file.ts";
import type { Report } from "./report.ts";

const weekdays = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
/** Fields whose whole presence has no effect in this version. */
/** What fields are called in a VMBackup. */
const vmBackupFields: Readonly<Record<string, string>> = { carbon: "carbonAware", alerts: "notifications" };
const laterFields = ["carbon", "bandwidth", "replicateTo"];

/** One schedule with its defaults filled in; undefined when something in it is wrong, which has been reported. */
export function decodeSchedule(
  { value, origin, isVmBackup }: Item,
  defaults: Readonly<Record<string, unknown>>,
  report: Report,
  later: (origin: Origin, below: readonly (string | number)[], what: string) => void,
  layout: DestinationSpec["layout"] = "image",
): ScheduleSpec | undefined {
  const errorsBefore = report.errorCount;
  const get = <T>(key: string): T | undefined => (value[key] ?? defaults[key]) as T | undefined;
  // where the value stands decides where a complaint points
  const below = (key: string): (string | number)[] => (key in value ? [key] : []);

  const cron = value["cron"] as string;
  const problem = cronProblem(cron);
  if (problem) {
    const words = {
      fields: ["it has not five fields", "minute hour day month weekday, or @hourly, @daily, @weekly, @monthly, @yearly"],
      syntax: ["it cannot be read", "numbers, names, * , - and / in five fields; no L, W, # or ?"],
      never: ["it never fires", "no such date exists"],
    }[problem];
    report.error("HSE015", origin, ["cron"], `cron expression "${cron}": ${words[0]}`, words[1]);
  }
  const timezone = get<string>("timezone") ?? "UTC";
  if (!isTimezone(timezone)) report.error("HSE016", origin, below("timezone"), `unknown timezone "${timezone}"`, "an IANA name such as Europe/Berlin or UTC");

  const written = (key: string): string => (isVmBackup && vmBackupFields[key]) || key;
  for (const key of laterFields) if (value[key] !== undefined && value[key] !== false) later(origin, [written(key)], `"${written(key)}"`);
  const alerts = alertsOf(value["alerts"]);
  if (alerts.length > 0) later(origin, [written("alerts")], `"${written("alerts")}"`);
  for (const { type, target } of isVmBackup ? alerts : []) {
    if (type === "webhook" && target.includes("://"))
      report.warn("HSW013", origin, ["notifications"], "a webhook's URL stands in the file", "whoever reads the repository can post to it; use a notifier");
  }
  const { verify, boot } = verifyOf(get("verify"), origin, below("verify"), report);
  const format = get<ExportFormat>("format") ?? "qcow2";
  const able = layout === "repository" ? repositoryCompressions : compressionsOf[format];
  const compression = compressionOf(get("compression"), able);
  if (compression.level !== undefined) later(origin, below("compression"), "a compression level");
  if (!able.includes(compression.algorithm)) {
    const what = layout === "repository" ? "a repository" : format;
    report.error("HSE023", origin, below("compression"), `compression ${compression.algorithm} is not one that ${what} has`, `${what} has ${able.join(", ")}`);
  }
  const incremental = get<boolean | { fullReadEvery?: string }>("incremental") ?? false;
  const fullReadEveryMs = durationOf(
    typeof incremental === "object" ? incremental.fullReadEvery : undefined,
    origin,
    [...below("incremental"), "fullReadEvery"],
    report,
  );

  const encryption = get<{ key?: string; recipients?: string[] }>("encryption");
  if (encryption && layout !== "repository")
    report.error("HSE027", origin, below("encryption"), "only a repository is encrypted", "say layout: repository at its destination");
  else if (encryption && encryption.key === undefined)
    report.error("HSE027", origin, below("encryption"), "encryption has no key", "an export reads what is there: give it a passphrase or an age identity");

  const keepImage = get<"latest">("keepImage");
  if (keepImage && layout !== "repository")
    report.error("HSE028", origin, below("keepImage"), "every restore point is an image already", "keepImage is for a destination with layout: repository");
  else if (keepImage && encryption)
    report.error("HSE028", origin, below("keepImage"), "an image would lie open beside the encrypted repository", "leave one of the two out");

  const windows = ((get("windows") as Record<string, unknown>[] | undefined) ?? []).map((window, i): WindowSpec => {
    const zone = (window["timezone"] as string | undefined) ?? timezone;
    if (!isTimezone(zone))
      report.error(
        "HSE016",
        origin,
        "windows" in value ? ["windows", i, "timezone"] : [],
        `unknown timezone "${zone}"`,
        "an IANA name such as Europe/Berlin or UTC",
      );
    const days = (window["days"] as string[] | undefined) ?? weekdays;
    return {
      startMinute: minuteOf(window["start"]),
      endMinute: minuteOf(window["end"]),
      days: days.map((day) => weekdays.indexOf(day)).sort(),
      timezone: zone,
    };
  });
  const rpoMs = durationOf(value["rpo"], origin, ["rpo"], report);
  const retention = retentionOf(get("retention"), origin, below("retention"), report);
  // in the order of their names, so that the canonical JSON of a schedule needs no copy
  const schedule: ScheduleSpec = {
    alerts,
    catchUp: get("catchUp") ?? "latest",
    compression: compression.algorithm,
    // a default concurrency is the limit over all schedules, not one for each
    concurrency: (value["concurrency"] as number | undefined) ?? 2,
    cron,
    dependsOn: ((value["dependsOn"] as Record<string, unknown>[] | undefined) ?? []).map((entry, i) => {
      const timeoutMs = durationOf(entry["timeout"], origin, ["dependsOn", i, "timeout"], report);
      return {
        schedule: entry["schedule"] as string,
        state: (entry["state"] as "completed" | undefined) ?? "completed",
        ...(timeoutMs === undefined ? {} : { timeoutMs }),
      };
    }),
    destination: value["destination"] as string,
    ...(boot ? { boot } : undefined),
    ...(encryption === undefined
      ? undefined
      : { encryption: { ...(encryption.key === undefined ? {} : { key: encryption.key }), recipients: encryption.recipients ?? [] } }),
    exclude: patternsOf((value["exclude"] as string[] | undefined) ?? [], origin, ["exclude"], "exclude", report),
    format,
    ...(incremental === false ? undefined : { incremental: { fullReadEveryMs: fullReadEveryMs ?? 7 * 86_400_000 } }),
    initialExport: get("initialExport") ?? "scheduled",
    ...(keepImage ? { keepImage } : undefined),
    name: value["name"] as string,
    origin,
    overlap: get("overlap") ?? "skip",
    priority: priorityOf(get("priority")) ?? 50,
    ...(retention === undefined ? undefined : { retention }),
    retry: retryOf((get("retry") as Record<string, unknown> | undefined) ?? {}, origin, below("retry"), report),
    ...(rpoMs === undefined ? undefined : { rpoMs }),
    suspend: (value["suspend"] as boolean | undefined) ?? false,
    timezone,
    verify,
    vms: patternsOf(value["vms"] as string[], origin, ["vms"], "vms", report),
    windows,
  };
  return report.errorCount === errorsBefore ? schedule : undefined;
}

function verifyOf(value: unknown, origin: Origin, below: (string | number)[], report: Report): Pick<ScheduleSpec, "verify" | "boot"> {
  if (typeof value !== "object" || value === null) return { verify: (value as VerifyLevel | undefined) ?? "stored" };
  const { level, marker, timeout } = value as { level: VerifyLevel; marker?: string; timeout?: string };
  const timeoutMs = durationOf(timeout, origin, below.length > 0 ? [...below, "timeout"] : [], report);
  return { verify: level, boot: { ...(marker === undefined ? {} : { marker }), ...(timeoutMs === undefined ? {} : { timeoutMs }) } };
}

/** Of the chunks, the usual one first. */
const repositoryCompressions: readonly ImageCompression[] = ["zstd", "none"];

function compressionOf(value: unknown, able: readonly ImageCompression[]): { readonly algorithm: ImageCompression; readonly level?: number } {
  if (typeof value === "string") return { algorithm: value as ImageCompression };
  return (value as { algorithm: ImageCompression; level?: number } | undefined) ?? { algorithm: able[0] as ImageCompression };
}

function retryOf(value: Readonly<Record<string, unknown>>, origin: Origin, below: (string | number)[], report: Report): RetrySpec {
  const duration = (key: string): number | undefined => durationOf(value[key], origin, below.length > 0 ? [...below, key] : [], report);
  const on = value["on"] as string[] | undefined;
  return {
    attempts: (value["attempts"] as number | undefined) ?? 3,
    initialDelayMs: duration("initialDelay") ?? 60_000,
    jitter: (value["jitter"] as number | undefined) ?? 0.1,
    maxDelayMs: duration("maxDelay") ?? 1_800_000,
    ...(on ? { on } : undefined),
    strategy: (value["strategy"] as RetrySpec["strategy"] | undefined) ?? "exponential",
  };
}

function retentionOf(value: unknown, origin: Origin, below: (string | number)[], report: Report): RetentionSpec | undefined {
  if (value === undefined) return undefined;
  if (typeof value === "string") {
    const withinMs = durationOf(value, origin, below, report);
    return withinMs === undefined ? undefined : { withinMs };
  }
  const { within, ...counts } = value as { within?: string } & Record<string, number>;
  const withinMs = durationOf(within, origin, below.length > 0 ? [...below, "within"] : [], report);
  return { ...counts, ...(withinMs === undefined ? {} : { withinMs }) };
}

function minuteOf(time: unknown): number {
  const [hour = 0, minute = 0] = String(time).split(":").map(Number);
  return hour * 60 + minute;
}
