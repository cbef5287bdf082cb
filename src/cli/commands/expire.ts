import { removePoints } from "../../engine/expire.ts";
import { formatBytes } from "../../model/bytes.ts";
import { HypersdkError } from "../../model/errors.ts";
import { epochMsOf } from "../../model/instant.ts";
import type { RestorePoint } from "../../model/recorded.ts";
import { groupsOf, verdictsOf } from "../../plan/expiry.ts";
import { plural } from "../../ui/plan-view.ts";
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
    const now = clock.now();
    const points = state.artifacts.list();
    const rows = points.length === 0 ? [] : calendar(points, options.schedule);
    const leaving = options.schedule === undefined ? overdueMarks() : retained(options.schedule);
    if (!io.json) {
      if (rows.length > 0) io.out(renderTable(["schedule", "VM", "instant", "size", "kept by"], rows, [3]));
      io.out(
        `${plural(leaving.length, "restore point")} ${leaving.length === 1 ? "goes" : "go"}, ${formatBytes(leaving.reduce((sum, point) => sum + point.storedBytes, 0))}\n`,
      );
    }
    if (options.dryRun || leaving.length === 0) {
      if (io.json) io.result("expire", { removed: 0, leaving: leaving.map(({ id }) => id) });
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
      const { removed, failed } = await removePoints(leaving, destinations, lease, context);
      settle();
      if (io.json) io.result("expire", { removed, leaving: leaving.map(({ id }) => id) });
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
    function overdueMarks(): RestorePoint[] {
      return groupsOf(points).flatMap((group) => {
        const schedule = desired.schedules.find(({ name }) => name === group[0]?.schedule);
        if (!schedule) return [];
        const going = new Set(
          verdictsOf(group, schedule.retention, schedule.timezone, epochMsOf(now))
            .filter(({ keptBy }) => keptBy.length === 0)
            .map(({ id }) => id),
        );
        return group.filter((point) => going.has(point.id) && point.expiresAt !== undefined && point.expiresAt <= now);
      });
    }
  });

  function calendar(points: readonly RestorePoint[], only: string | undefined): string[][] {
    const nowMs = epochMsOf(clock.now());
    return groupsOf(points.filter(({ schedule }) => only === undefined || schedule === only)).flatMap((group) => {
      const schedule = desired.schedules.find(({ name }) => name === group[0]?.schedule);
      const byId = new Map(group.map((point) => [point.id, point]));
      return verdictsOf(group, schedule?.retention, schedule?.timezone ?? "UTC", nowMs).map(({ id, keptBy }) => {
        const point = byId.get(id) as RestorePoint;
        const why = !schedule
          ? "retained: its schedule is gone"
          : keptBy.length > 0
            ? keptBy.join(", ")
            : `nothing${point.expiresAt ? `; may go after ${point.expiresAt}` : ""}`;
        return [point.schedule, point.vmPath, point.instant, formatBytes(point.storedBytes), why];
      });
    });
  }
}

async function ask(io: Io): Promise<void> {
  if (!io.isInteractive)
    throw new HypersdkError("Declined", "nobody can answer whether these restore points may go", { hint: "say --auto-approve, or --dry-run to only look" });
  await askForYes("Remove them?", "nothing was removed");
}
