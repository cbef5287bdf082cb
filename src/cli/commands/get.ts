import { observe } from "../../engine/observe.ts";
import { formatBytes } from "../../model/bytes.ts";
import type { DesiredState } from "../../model/desired.ts";
import { formatDuration } from "../../model/duration.ts";
import { HypersdkError } from "../../model/errors.ts";
import { epochMsOf, type Instant, instantOf } from "../../model/instant.ts";
import type { Observed } from "../../model/observed.ts";
import type { Recorded } from "../../model/recorded.ts";
import { resourcesOf } from "../../plan/resources.ts";
import { fireTimes } from "../../schedule/cron.ts";
import { emptyRecorded, State } from "../../state/state.ts";
import { printable } from "../../ui/style.ts";
import { renderTable } from "../../ui/table.ts";
import { formatTime } from "../../ui/times.ts";
import { adapters, clock } from "../compose.ts";
import type { Io } from "../io.ts";
import { type Loaded, loadIfPossible, type SourceOptions } from "../load.ts";
import { timezonesOf } from "../view.ts";

export interface GetOptions extends SourceOptions {
  readonly output?: "wide";
}

interface Table {
  /** As `--json` gives them. */
  readonly items: readonly object[];
  readonly text: (isWide: boolean) => string;
}

/** A heading, the cell of an item, and what is special: shown only with `--output wide`, or aligned as numbers are. */
type Column<T> = readonly [heading: string, cell: (item: T) => string, ...("wide" | "right")[]];

function tableOf<T extends object>(items: readonly T[], columns: readonly Column<T>[]): Table {
  return {
    items,
    text(isWide) {
      const shown = columns.filter(([, , ...flags]) => isWide || !flags.includes("wide"));
      return renderTable(
        shown.map(([heading]) => heading),
        items.map((item) => shown.map(([, cell]) => cell(item))),
        shown.flatMap(([, , ...flags], column) => (flags.includes("right") ? [column] : [])),
      );
    },
  };
}

export async function get(kind: string, options: GetOptions, io: Io): Promise<number> {
  const table = tables.get(kind);
  if (!table) throw new HypersdkError("Usage", `there is no ${JSON.stringify(kind)} to get`, { hint: `one of: ${kinds.join(", ")}` });
  const loaded = await loadIfPossible(options, io.env, io.cwd, (reason) =>
    io.err(`${io.errStyle.yellow("warning")}: ${printable(reason)}; this is what the state knows\n`),
  );
  const state = State.openForReading(loaded.statePath);
  try {
    const { items, text } = await table(queryOf(loaded, state, io));
    if (io.json) io.result(`get-${kind}`, { items });
    else io.out(items.length === 0 ? `no ${kind}\n` : text(options.output === "wide"));
    return 0;
  } finally {
    state?.close();
  }
}

/** What a table is made of. */
interface Query {
  /** @throws ConfigInvalid when the files are not valid */
  readonly needed: () => DesiredState;
  readonly state: State | undefined;
  readonly recorded: Recorded;
  readonly zones: (schedule: string) => string;
  readonly sourceOf: Loaded["sourceOf"];
  readonly now: Instant;
  readonly warn: (message: string) => void;
}

function queryOf({ desired, sourceOf, diagnostics }: Loaded, state: State | undefined, io: Io): Query {
  const now = clock.now();
  return {
    needed: () => {
      if (!desired)
        throw new HypersdkError("ConfigInvalid", `the configuration has ${diagnostics.filter(({ severity }) => severity === "error").length} errors`, {
          hint: "hypersdk validate shows them",
        });
      return desired;
    },
    state,
    recorded: state?.recorded(now) ?? emptyRecorded,
    zones: timezonesOf(desired),
    sourceOf,
    now,
    warn: (message) => io.err(`${io.errStyle.yellow("warning")}: ${printable(message)}\n`),
  };
}

/** What the providers show, and warnings of what they do not. */
async function observedBy({ needed, warn, recorded }: Query): Promise<Observed> {
  const observed = await observe({ ...needed(), destinations: [] }, adapters, recorded.protections);
  for (const { name, reason } of observed.unknownProviders) warn(`provider ${name}: ${reason}`);
  for (const { identity, reason } of observed.unknownVms) warn(`nothing is known of ${identity} now: ${reason}`);
  for (const { provider, message } of observed.problems) warn(`provider ${provider}: ${message}`);
  return observed;
}

function schedules({ needed, recorded, sourceOf, now }: Query): Table {
  const suspended = new Set(recorded.suspended);
  const protections = Map.groupBy(recorded.protections, ({ schedule }) => schedule);
  const before = new Map(recorded.resources.map(({ address, spec }) => [address, spec]));
  const specs = new Map(resourcesOf(needed()).map(({ address, spec }) => [address, spec]));
  const isApplied = (address: string): boolean => before.get(address) === specs.get(address);
  const items = needed().schedules.map((each) => {
    const address = `schedule.${each.name}`;
    const isSuspended = each.suspend || suspended.has(each.name);
    return {
      name: each.name,
      cron: each.cron,
      timezone: each.timezone,
      next: isSuspended ? null : instantOf(fireTimes(each.cron, each.timezone).next(epochMsOf(now))),
      suspended: isSuspended,
      destination: each.destination,
      priority: each.priority,
      protections: protections.get(each.name)?.length ?? 0,
      applied: isApplied(address) ? ("yes" as const) : before.has(address) ? ("changed" as const) : ("no" as const),
      file: `${each.origin.file}:${sourceOf(each.origin.file).at(each.origin.pointer, each.origin.document, { severity: "warning", code: "", message: "" }).line}`,
    };
  });
  return tableOf(items, [
    ["name", (each) => each.name],
    ["cron", (each) => each.cron],
    ["next", (each) => (each.next ? formatTime(each.next, each.timezone, now) : "suspended")],
    ["VMs", (each) => String(each.protections), "right"],
    ["applied", (each) => each.applied],
    ["destination", (each) => each.destination],
    ["priority", (each) => String(each.priority), "wide"],
    ["file", (each) => each.file, "wide"],
  ]);
}

function policies({ needed }: Query): Table {
  const items = needed().policies.map(({ name, match, schedule, priority, rpoMs }) => ({
    name,
    match,
    schedule,
    priority: priority ?? null,
    rpo: rpoMs === undefined ? null : formatDuration(rpoMs),
  }));
  return tableOf(items, [
    ["name", (each) => each.name],
    ["match", (each) => each.match.join(", ")],
    ["schedule", (each) => each.schedule],
    ["priority", (each) => String(each.priority ?? "-")],
    ["rpo", (each) => each.rpo ?? "-"],
  ]);
}

function protections({ recorded, zones, now }: Query): Table {
  const items = recorded.protections.map(({ schedule, vmPath, provider, identity, state: condition, effectiveSince, handledUntil, lastSuccessAt }) => ({
    schedule,
    vm: vmPath,
    provider,
    identity,
    state: condition,
    since: effectiveSince,
    handledUntil: handledUntil ?? null,
    lastSuccess: lastSuccessAt ?? null,
  }));
  return tableOf(items, [
    ["schedule", (each) => each.schedule],
    ["VM", (each) => each.vm],
    ["state", (each) => each.state],
    ["last success", (each) => (each.lastSuccess ? formatTime(each.lastSuccess, zones(each.schedule), now) : "never")],
    ["provider", (each) => each.provider, "wide"],
    ["identity", (each) => each.identity, "wide"],
  ]);
}

function runs({ state, zones, now }: Query): Table {
  const items = (state?.runs.list(1000) ?? []).map((run) => ({
    id: run.id,
    schedule: run.schedule,
    vm: run.vmPath,
    kind: run.kind,
    fireTime: run.fireTime,
    state: run.state,
    attempts: run.attempts,
    ended: run.endedAt ?? null,
    errorCode: run.errorCode ?? null,
    error: run.error ?? null,
  }));
  return tableOf(items, [
    ["id", (each) => each.id.slice(0, 8)],
    ["schedule", (each) => each.schedule],
    ["VM", (each) => each.vm],
    ["kind", (each) => each.kind, "wide"],
    ["fire time", (each) => formatTime(each.fireTime, zones(each.schedule), now)],
    ["state", (each) => each.state],
    ["attempts", (each) => String(each.attempts), "wide"],
    ["error", (each) => each.error ?? ""],
  ]);
}

function artifacts({ recorded, zones, now }: Query): Table {
  const items = recorded.points.map((point) => ({
    id: point.id,
    schedule: point.schedule,
    vm: point.vmPath,
    instant: point.instant,
    storedBytes: point.storedBytes,
    state: point.state,
    held: point.held,
    heldReason: point.heldReason ?? null,
    expiresAt: point.expiresAt ?? null,
    destination: point.destination,
    manifest: point.manifestPath,
  }));
  return tableOf(items, [
    ["id", (each) => each.id.slice(0, 8)],
    ["schedule", (each) => each.schedule],
    ["VM", (each) => each.vm],
    ["instant", (each) => formatTime(each.instant, zones(each.schedule), now)],
    ["size", (each) => formatBytes(each.storedBytes), "right"],
    ["state", (each) => (each.held ? `${each.state}, held` : each.expiresAt && each.state === "good" ? "expires" : each.state)],
    ["destination", (each) => each.destination],
    ["manifest", (each) => each.manifest, "wide"],
    ["held because", (each) => each.heldReason ?? "", "wide"],
  ]);
}

async function vms(query: Query): Promise<Table> {
  const { vms, unknownProviders } = await observedBy(query);
  const unknown = unknownProviders[0];
  if (unknown && vms.length === 0) throw new HypersdkError("ProviderUnreachable", `provider ${unknown.name}: ${unknown.reason}`);
  const items = vms.map((vm) => ({
    path: vm.path,
    name: vm.name,
    provider: vm.provider,
    identity: vm.identity,
    isRunning: vm.isRunning ?? null,
    guestType: vm.guestType ?? null,
    firmware: vm.firmware ?? null,
    disks: vm.disks.map(({ name, format, virtualBytes, dataBytes }) => ({ name, format, virtualBytes, dataBytes })),
  }));
  return tableOf(items, [
    ["VM", (vm) => vm.path],
    ["state", (vm) => (vm.isRunning === null ? "-" : vm.isRunning ? "running" : "off")],
    ["disks", (vm) => String(vm.disks.length), "right"],
    ["virtual", (vm) => formatBytes(sum(vm.disks.map((disk) => disk.virtualBytes))), "right"],
    ["data", (vm) => formatBytes(sum(vm.disks.map((disk) => disk.dataBytes))), "right"],
    ["formats", (vm) => [...new Set(vm.disks.map((disk) => disk.format))].join(", ")],
    ["guest", (vm) => vm.guestType ?? "-", "wide"],
    ["firmware", (vm) => vm.firmware ?? "-", "wide"],
  ]);
}

async function providers(query: Query): Promise<Table> {
  const { vms, unknownProviders, problems } = await observedBy(query);
  const items = query.needed().providers.map(({ name, type, root, writtenPath }) => ({
    name,
    type,
    root,
    path: writtenPath,
    vms: vms.filter(({ provider }) => provider === name).length,
    /** Why it could not be asked. */
    unreachable: unknownProviders.find((each) => each.name === name)?.reason ?? null,
    problems: problems.filter(({ provider }) => provider === name).map(({ message }) => message),
  }));
  return tableOf(items, [
    ["name", (each) => each.name],
    ["type", (each) => each.type],
    ["VMs", (each) => (each.unreachable === null ? String(each.vms) : "?"), "right"],
    ["problems", (each) => String(each.problems.length), "right"],
    ["root", (each) => each.root, "wide"],
    ["path", (each) => each.path, "wide"],
    ["state", (each) => each.unreachable ?? "reachable"],
  ]);
}

function destinations({ needed, recorded }: Query): Table {
  const items = needed().destinations.map((each) => {
    const points = recorded.points.filter((point) => point.destinationUrl === each.url);
    return { name: each.name, url: each.url, layout: each.layout, points: points.length, storedBytes: sum(points.map((point) => point.storedBytes)) };
  });
  return tableOf(items, [
    ["name", (each) => each.name],
    ["points", (each) => String(each.points), "right"],
    ["stored", (each) => formatBytes(each.storedBytes), "right"],
    ["layout", (each) => each.layout],
    ["url", (each) => each.url],
  ]);
}

const tables: ReadonlyMap<string, (query: Query) => Table | Promise<Table>> = new Map(
  Object.entries({ schedules, policies, protections, runs, artifacts, vms, providers, destinations }),
);

export const kinds: readonly string[] = [...tables.keys()];

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
