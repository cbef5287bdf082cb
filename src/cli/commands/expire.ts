import { removePoints } from "../../engine/expire.ts";
import { observe } from "../../engine/observe.ts";
import { formatBytes } from "../../model/bytes.ts";
import { HypersdkError } from "../../model/errors.ts";
import { epochMsOf } from "../../model/instant.ts";
import type { RestorePoint } from "../../model/recorded.ts";
import { groupsOf, verdictsOf } from "../../plan/expiry.ts";
import { withoutLost } from "../../plan/lost.ts";
import type { Expiry, LostPoint } from "../../plan/plan.ts";
import { plan } from "../../plan/planner.ts";
import { plural } from "../../ui/plan-view.ts";
import { printable } from "../../ui/style.ts";
import { renderTable } from "../../ui/table.ts";
import { clock, random } from "../compose.ts";
import { loadDesired } from "../desired.ts";
import { exitCodes } from "../exit-codes.ts";
import type { Io } from "../io.ts";
import type { SourceOptions } from "../load.ts";
import { askForYes } from "../prompt.ts";
import { inSession, progressOn } from "../session.ts";

export interface ExpireOptions extends SourceOptions {
  readonly schedule?: string;
  readonly dryRun?: boolean;
  readonly autoApprove?: boolean;
}

/**
 * Without a schedule: removes what retention marked and whose time of grace is over. With one that is no longer in the files:
 * lets go of everything it kept, but held points.
 */
export async function expire(options: ExpireOptions, io: Io): Promise<number> {
  const { desired, statePath, revision } = await loadDesired(options, io);
  const session = { statePath, revision, progress: io.json || io.quiet ? undefined : progressOn(io) };
  return inSession(io, session, async ({ state, context, settle }) => {
    const points = state.artifacts.list();
    const { expiry, lost, due } = await look();
    const rows = calendar(points, lost, options.schedule);
    const leaving = options.schedule === undefined ? due : retained(options.schedule);
    const blocked =
      options.schedule === undefined
        ? expiry.blocked.map(({ schedule, vmPath, points: count, reason }) => ({ schedule, vm: vmPath, points: count, reason }))
        : [];
    if (!io.json) {
      for (const line of options.schedule === undefined ? blockedLines(expiry) : []) io.err(`${line}\n`);
      if (rows.length > 0) io.out(renderTable(["schedule", "VM", "instant", "size", "kept by"], rows, [3]));
      io.out(
        `${plural(leaving.length, "restore point")} ${leaving.length === 1 ? "goes" : "go"}, ${formatBytes(leaving.reduce((sum, point) => sum + point.storedBytes, 0))}\n`,
      );
    }
    if (options.dryRun || leaving.length === 0) {
      if (io.json) io.result("expire", { removed: 0, leaving: leaving.map(({ id }) => id), failed: [], blocked });
      return exitCodes.done;
    }
    if (!options.autoApprove) await ask(io);
    const lease = await state.take("reconcile", "expire", 0, clock, random);
    try {
      const destinations = [
        ...desired.destinations,
        ...points.map(({ destination, destinationUrl }) => ({
          name: destination,
          url: destinationUrl,
        })),
      ];
      // time has passed since it was looked and asked
      const still = options.schedule === undefined ? new Set((await look()).due.map(({ id }) => id)) : undefined;
      const going = leaving.filter(({ id }) => still?.has(id) ?? true);
      const { removed, failed } = await removePoints(going, destinations, options.schedule === undefined, lease, context);
      settle();
      const notRemoved = failed.map(({ point, error }) => ({ point: point.id, code: error.code, reason: error.message }));
      if (io.json) io.result("expire", { removed, leaving: leaving.map(({ id }) => id), failed: notRemoved, blocked });
      else io.out(`${plural(removed, "restore point")} removed\n`);
      return failed.length > 0 ? exitCodes.partlyFailed : exitCodes.done;
    } finally {
      state.release(lease);
    }

    function retained(schedule: string): RestorePoint[] {
      if (desired.schedules.some(({ name }) => name === schedule)) {
        throw new HypersdkError("Failed", `schedule "${schedule}" is still in the files: its retention decides what goes`, {
          hint: "remove it from the files first, or change its retention",
        });
      }
      const its = points.filter((point) => point.schedule === schedule);
      if (its.length === 0) throw new HypersdkError("NotFound", `no restore point belongs to a schedule "${schedule}"`);
      return its.filter(({ held }) => !held);
    }
    /** What retention says of all that is there now, and what of it was marked and has had its time of grace. */
    async function look(): Promise<{ readonly expiry: Expiry; readonly lost: ReadonlyMap<string, LostPoint>; readonly due: readonly RestorePoint[] }> {
      const observed = await observe(desired, context, state.configuration.protections());
      const now = clock.now();
      const recorded = state.recorded(now);
      const { expiry, drift } = plan({ desired, recorded, observed, revision, now });
      const lost = new Map(drift.flatMap((each) => ("point" in each ? [[each.point, each] as const] : [])));
      const byId = new Map(recorded.points.map((point) => [point.id, point]));
      const due = expiry.remove.flatMap(({ point }) => byId.get(point) ?? []).filter(({ expiresAt }) => expiresAt !== undefined && expiresAt <= now);
      return { expiry, lost, due };
    }
  });

  function calendar(points: readonly RestorePoint[], lost: ReadonlyMap<string, LostPoint>, only: string | undefined): string[][] {
    const nowMs = epochMsOf(clock.now());
    return groupsOf(withoutLost(points, lost).filter(({ schedule }) => only === undefined || schedule === only)).flatMap((group) => {
      const schedule = desired.schedules.find(({ name }) => name === group[0]?.schedule);
      const byId = new Map(group.map((point) => [point.id, point]));
      return verdictsOf(group, schedule?.retention, schedule?.timezone ?? "UTC", nowMs).map(({ id, keptBy }) => {
        const point = byId.get(id) as RestorePoint;
        const why = lost.has(id)
          ? `it is lost: ${lost.get(id)?.message}`
          : !schedule
            ? "retained: its schedule is gone"
            : keptBy.length > 0
              ? keptBy.join(", ")
              : `nothing${point.expiresAt ? `; may go after ${point.expiresAt}` : ""}`;
        return [point.schedule, point.vmPath, point.instant, formatBytes(point.storedBytes), why];
      });
    });
  }
}

function blockedLines({ blocked }: Expiry): string[] {
  return blocked.map(
    ({ schedule, vmPath, points, reason }) =>
      `${schedule}  ${printable(vmPath)}: ${plural(points, "restore point")} would go, and ${points === 1 ? "stays" : "stay"}: ${reason}`,
  );
}

async function ask(io: Io): Promise<void> {
  if (!io.isInteractive)
    throw new HypersdkError("Declined", "nobody can answer whether these restore points may go", { hint: "say --auto-approve, or --dry-run to only look" });
  await askForYes("Remove them?", "nothing was removed");
}
