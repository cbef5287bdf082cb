import type {
  DesiredState,
  DestinationSpec,
  NotAvailable,
  NotifierSpec,
  Origin,
  PolicySpec,
  ProviderSpec,
  RenameSpec,
  ScheduleSpec,
} from "../model/desired.ts";
import { defaultExpiryGraceMs } from "../model/desired.ts";
import { nearestName } from "../model/nearest.ts";
import { parseVmPath, type VmPath } from "../model/vm-path.ts";
import { type Access, checkAccess } from "./access.ts";
import { checkCycles, checkPlaces, checkReferences, checkRenames, type Reference } from "./cross-checks.ts";
import { decodeSchedule } from "./decode-schedule.ts";
import { alertsOf, durationOf, patternsOf, priorityOf } from "./decode-values.ts";
import { parseDestinationUrl } from "./destination-url.ts";
import { type Diagnostic, sortDiagnostics } from "./diagnostic.ts";
import { encryptionsOf, otherKeys } from "./encryption.ts";
import { reportFindings } from "./findings.ts";
import type { Fragment, Item, RawItem, Section } from "./read-file.ts";
import { Report } from "./report.ts";
import { resolvePath } from "./resolve-path.ts";
import type { SourceFile } from "./source-file.ts";

export interface ConfigFile {
  /** As the person knows it: relative to the work tree or as it was named. */
  readonly file: string;
  /** The absolute folder that holds it: relative paths in it start there. */
  readonly folder: string;
  readonly fragment: Fragment;
}

function withOrigin(file: string, item: RawItem): Item {
  return { ...item, origin: { file, document: item.document, pointer: item.pointer } };
}

export interface Combined {
  /** Undefined when there is an error. */
  readonly desired: DesiredState | undefined;
  readonly diagnostics: readonly Diagnostic[];
  readonly ignoredDocuments: number;
}

/** All files together are one desired state: names are unique per kind, references are resolved, defaults are filled in. */
export function combine(files: readonly ConfigFile[], sourceOf: (file: string) => SourceFile, access: Access | undefined): Combined {
  const report = new Report(sourceOf);
  const folders = new Map(files.map(({ file, folder }) => [file, folder]));
  const notAvailable: NotAvailable[] = [];
  const later = (origin: Origin, below: readonly (string | number)[], what: string): void => {
    notAvailable.push({ what, origin: { ...origin, pointer: [...origin.pointer, ...below] } });
    report.warn("HSW010", origin, below, `${what} is not available yet`, "plan and apply refuse it", true);
  };
  const items = (section: Section): Item[] =>
    files.flatMap(({ file, fragment }) => fragment.items.filter((item) => item.section === section).map((item) => withOrigin(file, item)));

  for (const { file, fragment } of files) for (const { key, document } of fragment.later) later({ file, document, pointer: [] }, [key], `"${key}"`);

  const defaults = mergeDefaults(files, report);
  const providers = unique(items("providers"), "provider", report).map((item) => decodeProvider(item.value, item.origin, folders, report, later));
  const destinations = unique(items("destinations"), "destination", report).flatMap((item) =>
    decodeDestination(item.value, item.origin, folders, report, later),
  );
  const notifiers: NotifierSpec[] = unique(items("notifiers"), "notifier", report).map(({ value, origin }) => {
    later(origin, ["type"], `notifier type "${value["type"]}"`);
    return { name: value["name"] as string, type: value["type"] as string, origin };
  });

  const brokenItems = (section: Section): Item[] =>
    files.flatMap(({ file, fragment }) => fragment.broken.filter((each) => each.section === section).map((each) => withOrigin(file, each)));
  const brokenNames = (section: Section): Set<string> => new Set(brokenItems(section).map(({ value }) => String(value["name"])));
  const brokenDestinations = brokenNames("destinations");
  const isIncremental = ({ value }: RawItem): boolean => Boolean(value["incremental"] ?? defaults["incremental"]);
  const incrementalNames = new Set(
    // one that is wrong elsewhere means it all the same
    [...items("schedules"), ...brokenItems("schedules")].filter(isIncremental).map(({ value }) => String(value["destination"])),
  );
  const layoutOf = ({ name, layout }: Pick<DecodedDestination, "name" | "layout">): DestinationSpec["layout"] =>
    layout ?? (incrementalNames.has(name) ? "repository" : "image");
  const byName = new Map(destinations.map((destination) => [destination.name, destination]));
  /** Says all that is wrong with a schedule; a destination that stands in it as a URL is one from then on. */
  const take = (item: Item, later: Later): ScheduleSpec | undefined => {
    const destination = String(item.value["destination"]);
    const layout = layoutOf(byName.get(destination) ?? { name: destination, layout: undefined });
    const schedule = decodeSchedule(item, defaults, report, later, layout);
    if (layout === "image" && isIncremental(item))
      report.error(
        "HSE026",
        item.origin,
        "incremental" in item.value ? ["incremental"] : [],
        `destination "${destination}" has the layout image`,
        "increments need a repository: say layout: repository there, or leave the layout out",
      );
    if ("destination" in item.value && !byName.has(destination) && !brokenDestinations.has(destination)) {
      const inline = inlineDestination(destination, item.origin, folders, byName, report, later);
      if (inline) byName.set(inline.name, inline);
    }
    return schedule;
  };
  // what has the wrong shape, or a name that is taken, is no schedule: all that is wrong with it is told with the rest
  const onlyComplain = (item: Item): unknown => take({ ...item, value: { cron: "0 0 * * *", vms: [], ...item.value } }, () => {});
  const schedules = unique(items("schedules"), "schedule", report, onlyComplain).flatMap((item) => take(item, later) ?? []);
  for (const item of brokenItems("schedules")) onlyComplain(item);
  const policies = unique(items("policies"), "policy", report).map((item) => decodePolicy(item.value, item.origin, report, later));
  const renames = items("renames").flatMap(({ value, origin }): RenameSpec[] => {
    const vm = vmPathOf(value["vm"] as string, origin, "vm", report);
    const formerly = vmPathOf(value["formerly"] as string, origin, "formerly", report);
    return vm && formerly ? [{ vm, formerly, origin }] : [];
  });

  checkRenames(renames, report);
  const encryptions = encryptionsOf(schedules, folders, report);
  const laidOut = named(
    [...byName.values()].map((destination): DestinationSpec => {
      const encryption = encryptions.get(destination.name);
      const isWritten = schedules.some((schedule) => schedule.destination === destination.name);
      return { ...destination, layout: layoutOf(destination), ...(encryption ? { encryption } : {}), ...(isWritten ? {} : otherKeys(encryptions.values())) };
    }),
  );
  // also of a schedule that something else is wrong with
  const everySchedule = [...items("schedules"), ...brokenItems("schedules")];
  const dependencies = everySchedule.flatMap(({ value, origin }) =>
    ((value["dependsOn"] ?? []) as { readonly schedule: string }[]).map(
      ({ schedule }, i): Reference => ({ schedule, origin, below: ["dependsOn", i, "schedule"] }),
    ),
  );
  const everyPolicy = [...items("policies"), ...brokenItems("policies")].filter(({ value }) => typeof value["schedule"] === "string");
  const references = [
    ...everyPolicy.map(({ value, origin }): Reference => ({ schedule: String(value["schedule"]), origin, below: ["schedule"] })),
    ...dependencies,
  ];
  checkReferences(references, new Set(everySchedule.map(({ value }) => String(value["name"]))), report);
  checkCycles(everySchedule, report);
  if (access) checkAccess(files, folders, providers, laidOut, access, report);
  const usesDefaultProvider = providers.length === 0 && schedules.length > 0;
  const allProviders = usesDefaultProvider ? [defaultProvider(schedules[0] as ScheduleSpec, folders)] : named(providers);
  checkPlaces(allProviders, laidOut, report);
  if (usesDefaultProvider && access) checkAccess([], folders, allProviders, [], access, report);
  const fromFiles = files.flatMap(({ fragment }) => fragment.diagnostics);
  const hasErrors = [...report.diagnostics, ...fromFiles].some(({ severity }) => severity === "error");
  const desired: DesiredState = {
    providers: allProviders,
    destinations: laidOut,
    notifiers: named(notifiers),
    schedules: named(schedules),
    policies: named(policies),
    renames: [...renames].sort((a, b) => (a.vm < b.vm ? -1 : 1)),
    concurrency: (defaults["concurrency"] as number | undefined) ?? 4,
    notAvailable,
  };
  if (!hasErrors) reportFindings(desired, report);
  const diagnostics = sortDiagnostics([...fromFiles, ...report.withoutIgnored()]);
  return {
    desired: diagnostics.some(({ severity }) => severity === "error") ? undefined : desired,
    diagnostics,
    ignoredDocuments: files.reduce((sum, { fragment }) => sum + fragment.ignoredDocuments, 0),
  };
}

function named<T extends { readonly name: string }>(list: readonly T[]): T[] {
  return [...list].sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** With no `providers` at all, VMs come from the folder `machines` beside the first file that has a schedule. */
function defaultProvider(schedule: ScheduleSpec, folders: ReadonlyMap<string, string>): ProviderSpec {
  const origin = { ...schedule.origin, pointer: [] };
  return {
    name: "local",
    type: "local",
    path: resolvePath(folders.get(origin.file) ?? "/", "./machines"),
    writtenPath: "./machines",
    root: "/datacenter/vm" as VmPath,
    origin,
  };
}

/** @param complain says what else is wrong with one that is defined twice */
function unique(items: readonly Item[], kind: string, report: Report, complain: (item: Item) => unknown = () => {}): Item[] {
  const first = new Map<string, Origin>();
  return items.filter((item) => {
    const { value, origin, isVmBackup } = item;
    const name = String(value["name"]);
    const known = first.get(name);
    if (!known) {
      first.set(name, origin);
      return true;
    }
    report.error("HSE010", origin, isVmBackup ? [] : ["name"], `${kind} "${name}" is defined twice`, "names are unique over all files", () => ({
      file: known.file,
      line: report.lineOf(known),
      label: "the first one stands here",
    }));
    complain(item);
    return false;
  });
}

function mergeDefaults(files: readonly ConfigFile[], report: Report): Record<string, unknown> {
  const merged: Record<string, unknown> = {};
  const from = new Map<string, Origin>();
  for (const { file, fragment } of files) {
    for (const { value, document } of fragment.defaults) {
      const origin: Origin = { file, document, pointer: ["defaults"] };
      for (const [key, member] of Object.entries(value)) {
        const known = from.get(key);
        if (known && JSON.stringify(merged[key]) !== JSON.stringify(member)) {
          report.error("HSE021", origin, [key], `the default of "${key}" is set twice, differently`, "defaults hold for all files", () => ({
            file: known.file,
            line: report.lineOf(known),
            label: "the first one stands here",
          }));
        }
        merged[key] = member;
        from.set(key, origin);
      }
    }
  }
  return merged;
}

type Later = (origin: Origin, below: readonly (string | number)[], what: string) => void;

/** The fields of each type of provider, beside name, type and root. */
const providerFields: Readonly<Record<string, readonly string[]>> = { local: ["path"], qemu: ["sockets", "libvirt", "path", "scratch"] };

function decodeProvider(value: RawItem["value"], origin: Origin, folders: ReadonlyMap<string, string>, report: Report, later: Later): ProviderSpec {
  const type = value["type"] as string;
  const written = (value["path"] as string | undefined) ?? "./machines";
  const fields = providerFields[type];
  if (!fields) later(origin, ["type"], `provider type "${type}"`);
  else
    for (const key of Object.keys(value))
      if (!["name", "type", "root", ...fields].includes(key))
        report.error("HSE006", origin, [key], `a ${type} provider has no "${key}"`, `known here: name, type, root, ${fields.join(", ")}`);
  if (type === "qemu" && (value["sockets"] === undefined) === (value["libvirt"] === undefined))
    report.error(
      "HSE006",
      origin,
      ["type"],
      'a qemu provider has either "sockets" or "libvirt"',
      "the folder with the machines' monitors, NAME.qmp, or a URI such as qemu:///system",
    );
  const folder = folders.get(origin.file) ?? "/";
  const place = (key: "sockets" | "scratch"): string | undefined => value[key] as string | undefined;
  const [sockets, scratch] = [place("sockets"), place("scratch")];
  return {
    name: value["name"] as string,
    type,
    path: resolvePath(folder, written),
    writtenPath: written,
    ...(sockets === undefined ? {} : { sockets: resolvePath(folder, sockets), writtenSockets: sockets }),
    ...(value["libvirt"] === undefined ? {} : { libvirt: value["libvirt"] as string }),
    ...(scratch === undefined ? {} : { scratch: resolvePath(folder, scratch), writtenScratch: scratch }),
    root: vmPathOf((value["root"] as string | undefined) ?? "/datacenter/vm", origin, "root", report) ?? ("/" as VmPath),
    origin,
  };
}

const destinationFieldsOfFile = ["name", "url", "layout", "expiryGrace"];

/** Where nothing says the layout, the schedules that write there do. */
type DecodedDestination = Omit<DestinationSpec, "layout"> & { readonly layout: DestinationSpec["layout"] | undefined };

function decodeDestination(value: RawItem["value"], origin: Origin, folders: ReadonlyMap<string, string>, report: Report, later: Later): DecodedDestination[] {
  const url = parseDestinationUrl(value["url"] as string, folders.get(origin.file) ?? "/");
  if (!url.ok) {
    report.error("HSE022", origin, ["url"], url.message, url.label);
    return [];
  }
  if (/^http:/i.test(String(value["endpoint"] ?? "")))
    report.warn("HSW005", origin, ["endpoint"], "the endpoint is plain http", "everything goes over the network unencrypted; use https");
  if (url.scheme !== "file") later(origin, ["url"], `a destination at ${url.scheme}://`);
  else
    for (const key of Object.keys(value))
      if (!destinationFieldsOfFile.includes(key))
        report.error("HSE006", origin, [key], `a file destination has no "${key}"`, `known here: ${destinationFieldsOfFile.join(", ")}`);
  return [
    {
      name: value["name"] as string,
      url: url.url,
      layout: value["layout"] as DestinationSpec["layout"] | undefined,
      inline: false,
      expiryGraceMs: durationOf(value["expiryGrace"], origin, ["expiryGrace"], report) ?? defaultExpiryGraceMs,
      origin,
    },
  ];
}

function inlineDestination(
  text: string,
  owner: Origin,
  folders: ReadonlyMap<string, string>,
  known: ReadonlyMap<string, unknown>,
  report: Report,
  later: Later,
): DecodedDestination | undefined {
  if (/^(\.{0,2}\/|\.$)/.test(text)) {
    const meant = text.startsWith("/") ? `file://${text}` : `file:${text}`;
    report.error("HSE012", owner, ["destination"], `${JSON.stringify(text)} is no destination`, `did you mean "${meant}"?`);
    return undefined;
  }
  if (!text.includes(":")) {
    report.error("HSE012", owner, ["destination"], `unknown destination "${text}"`, () => {
      const near = nearestName(text, known.keys());
      return near ? `no destination has this name; did you mean "${near}"?` : "no destination has this name, and it is no URL";
    });
    return undefined;
  }
  const url = parseDestinationUrl(text, folders.get(owner.file) ?? "/");
  if (!url.ok) {
    report.error("HSE022", owner, ["destination"], url.message, url.label);
    return undefined;
  }
  const origin: Origin = { ...owner, pointer: [...owner.pointer, "destination"] };
  if (url.scheme !== "file") later(owner, ["destination"], `a destination at ${url.scheme}://`);
  return { name: text, url: url.url, layout: undefined, expiryGraceMs: defaultExpiryGraceMs, inline: true, origin };
}

function decodePolicy(value: RawItem["value"], origin: Origin, report: Report, later: Later): PolicySpec {
  const match = ([] as string[]).concat(value["match"] as string | string[]);
  const priority = priorityOf(value["priority"]);
  const rpoMs = durationOf(value["rpo"], origin, ["rpo"], report);
  const alerts = alertsOf(value["alerts"]);
  if (alerts.length > 0) later(origin, ["alerts"], "alerts");
  return {
    name: value["name"] as string,
    schedule: value["schedule"] as string,
    match: patternsOf(match, origin, Array.isArray(value["match"]) ? ["match"] : undefined, "match", report),
    exclude: patternsOf((value["exclude"] as string[] | undefined) ?? [], origin, ["exclude"], "exclude", report),
    ...(priority === undefined ? {} : { priority }),
    ...(rpoMs === undefined ? {} : { rpoMs }),
    alerts,
    origin,
  };
}

function vmPathOf(text: string, origin: Origin, key: string, report: Report): VmPath | undefined {
  const path = parseVmPath(text);
  if (!path)
    report.error("HSE017", origin, [key], `"${key}" cannot be ${JSON.stringify(text)}`, 'segments are not empty, ".", ".." and hold no control characters');
  return path;
}
