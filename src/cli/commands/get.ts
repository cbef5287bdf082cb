import { observe } from "../../engine/observe.ts";
import { formatBytes } from "../../model/bytes.ts";
import { formatDuration } from "../../model/duration.ts";
import { HypersdkError } from "../../model/errors.ts";
import { epochMsOf, instantOf } from "../../model/instant.ts";
import { fireTimes } from "../../schedule/cron.ts";
import { emptyRecorded, State } from "../../state/state.ts";
import { printable } from "../../ui/style.ts";
import { renderTable } from "../../ui/table.ts";
import { formatTime } from "../../ui/times.ts";
import { adapters, clock } from "../compose.ts";
import type { Io } from "../io.ts";
import { type Loaded, loadIfPossible, type SourceOptions } from "../load.ts";
import { timezonesOf } from "../view.ts";

export const kinds = ["schedules", "policies", "protections", "runs", "artifacts", "vms", "destinations"] as const;
export type GetKind = (typeof kinds)[number];

export interface GetOptions extends SourceOptions {
  readonly output?: "wide";
}

interface Table {
  readonly items: readonly object[];
  readonly headings: readonly string[];
  readonly rows: readonly (readonly string[])[];
  /** Only with `--output wide`. */
  readonly wide: readonly number[];
  readonly right?: readonly number[];
}

export async function get(kind: string, options: GetOptions, io: Io): Promise<number> {
  if (!(kinds as readonly string[]).includes(kind))
    throw new HypersdkError("Usage", `there is no ${JSON.stringify(kind)} to get`, { hint: `one of: ${kinds.join(", ")}` });
  const loaded = await loadIfPossible(options, io.env, io.cwd, (reason) =>
    io.err(`${io.errStyle.yellow("warning")}: ${printable(reason)}; this is what the state knows\n`),
  );
  const state = State.openForReading(loaded.statePath);
  try {
    const { items, headings, rows, wide, right = [] } = await tableOf(kind as GetKind, loaded, state, io);
    if (io.json) {
      io.result(`get-${kind}`, { items });
      return 0;
    }
    const hidden = new Set(options.output === "wide" ? [] : wide);
    const keep = <T>(row: readonly T[]): T[] => row.filter((_, column) => !hidden.has(column));
    const shift = (column: number): number => column - [...hidden].filter((each) => each < column).length;
    io.out(rows.length === 0 ? `no ${kind}\n` : renderTable(keep(headings), rows.map(keep), right.filter((column) => !hidden.has(column)).map(shift)));
    return 0;
  } finally {
    state?.close();
  }
}

async function tableOf(kind: GetKind, { desired, sourceOf, diagnostics }: Loaded, state: State | undefined, io: Io): Promise<Table> {
  const now = clock.now();
  const recorded = state?.recorded(now) ?? emptyRecorded;
  const zones = timezonesOf(desired);
  const needed = () => {
    if (!desired)
      throw new HypersdkError("ConfigInvalid", `the configuration has ${diagnostics.filter(({ severity }) => severity === "error").length} errors`, {
        hint: "hypersdk validate shows them",
      });
    return desired;
  };
  switch (kind) {
    case "schedules": {
      const suspended = new Set(recorded.suspended);
      const items = needed().schedules.map((each) => {
        const isSuspended = each.suspend || suspended.has(each.name);
        return {
          name: each.name,
          cron: each.cron,
          timezone: each.timezone,
          next: isSuspended ? null : instantOf(fireTimes(each.cron, each.timezone).next(epochMsOf(now))),
          suspended: isSuspended,
          destination: each.destination,
          priority: each.priority,
          protections: recorded.protections.filter(({ schedule }) => schedule === each.name).length,
          file: `${each.origin.file}:${sourceOf(each.origin.file).at(each.origin.pointer, each.origin.document, { severity: "warning", code: "", message: "" }).line}`,
        };
      });
      return {
        items,
        headings: ["name", "cron", "next", "VMs", "destination", "priority", "file"],
        wide: [5, 6],
        right: [3],
        rows: items.map((each) => [
          each.name,
          each.cron,
          each.next ? formatTime(each.next, each.timezone, now) : "suspended",
          String(each.protections),
          each.destination,
          String(each.priority),
          each.file,
        ]),
      };
    }
    case "policies": {
      const items = needed().policies.map(({ name, match, schedule, priority, rpoMs }) => ({
        name,
        match,
        schedule,
        priority: priority ?? null,
        rpo: rpoMs === undefined ? null : formatDuration(rpoMs),
      }));
      return {
        items,
        headings: ["name", "match", "schedule", "priority", "rpo"],
        wide: [],
        rows: items.map((each) => [each.name, each.match.join(", "), each.schedule, String(each.priority ?? "-"), each.rpo ?? "-"]),
      };
    }
    case "protections": {
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
      return {
        items,
        headings: ["schedule", "VM", "state", "last success", "provider", "identity"],
        wide: [4, 5],
        rows: items.map((each) => [
          each.schedule,
          each.vm,
          each.state,
          each.lastSuccess ? formatTime(each.lastSuccess, zones(each.schedule), now) : "never",
          each.provider,
          each.identity,
        ]),
      };
    }
    case "runs": {
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
      return {
        items,
        headings: ["id", "schedule", "VM", "kind", "fire time", "state", "attempts", "error"],
        wide: [3, 6],
        rows: items.map((each) => [
          each.id.slice(0, 8),
          each.schedule,
          each.vm,
          each.kind,
          formatTime(each.fireTime, zones(each.schedule), now),
          each.state,
          String(each.attempts),
          each.error ?? "",
        ]),
      };
    }
    case "artifacts": {
      const items = recorded.points.map((point) => ({
        id: point.id,
        schedule: point.schedule,
        vm: point.vmPath,
        instant: point.instant,
        storedBytes: point.storedBytes,
        state: point.state,
        held: point.held,
        expiresAt: point.expiresAt ?? null,
        destination: point.destination,
        manifest: point.manifestPath,
      }));
      return {
        items,
        headings: ["id", "schedule", "VM", "instant", "size", "state", "destination", "manifest"],
        wide: [7],
        right: [4],
        rows: items.map((each) => [
          each.id.slice(0, 8),
          each.schedule,
          each.vm,
          formatTime(each.instant, zones(each.schedule), now),
          formatBytes(each.storedBytes),
          each.held ? `${each.state}, held` : each.expiresAt ? "expires" : each.state,
          each.destination,
          each.manifest,
        ]),
      };
    }
    case "vms": {
      const wanted = needed();
      const observed = await observe({ ...wanted, destinations: [] }, adapters);
      const unknown = observed.unknownProviders[0];
      if (unknown && observed.vms.length === 0) throw new HypersdkError("ProviderUnreachable", `provider ${unknown.name}: ${unknown.reason}`);
      for (const { identity, reason } of observed.unknownVms) io.err(`${io.errStyle.yellow("warning")}: nothing is known of ${identity} now: ${reason}\n`);
      const items = observed.vms.map((vm) => ({
        path: vm.path,
        name: vm.name,
        provider: vm.provider,
        identity: vm.identity,
        guestType: vm.guestType ?? null,
        firmware: vm.firmware ?? null,
        disks: vm.disks,
      }));
      return {
        items,
        headings: ["VM", "disks", "virtual", "data", "formats", "guest", "firmware"],
        wide: [5, 6],
        right: [1, 2, 3],
        rows: observed.vms.map((vm) => [
          vm.path,
          String(vm.disks.length),
          formatBytes(sum(vm.disks.map((disk) => disk.virtualBytes))),
          formatBytes(sum(vm.disks.map((disk) => disk.dataBytes))),
          [...new Set(vm.disks.map((disk) => disk.format))].join(", "),
          vm.guestType ?? "-",
          vm.firmware ?? "-",
        ]),
      };
    }
    case "destinations": {
      const items = needed().destinations.map((each) => {
        const points = recorded.points.filter((point) => point.destinationUrl === each.url);
        return { name: each.name, url: each.url, layout: each.layout, points: points.length, storedBytes: sum(points.map((point) => point.storedBytes)) };
      });
      return {
        items,
        headings: ["name", "points", "stored", "layout", "url"],
        wide: [],
        right: [1, 2],
        rows: items.map((each) => [each.name, String(each.points), formatBytes(each.storedBytes), each.layout, each.url]),
      };
    }
  }
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
