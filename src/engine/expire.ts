import { listHolds } from "../exports/holds.ts";
import { claim } from "../exports/lineage.ts";
import { finderOfPoints } from "../exports/verify.ts";
import type { DestinationAddress } from "../model/desired.ts";
import { HypersdkError } from "../model/errors.ts";
import { latestBy } from "../model/instant.ts";
import type { RestorePoint } from "../model/recorded.ts";
import { groupKey } from "../plan/expiry.ts";
import { isRepositoryPoint } from "../repository/points.ts";
import type { Lease } from "../state/leases.ts";
import type { EngineContext } from "./context.ts";
import { isOfThePoint } from "./run-export.ts";

/**
 * Removes restore points, oldest first. The manifest goes first: a point without it does not exist, so that a crash leaves
 * files that nobody lists and that the next removal clears. Never touches a destination of another state.
 * @param keepsOne whether a good one of each VM must stay: then nothing goes until everything that it is made of has been found
 * @returns how many are gone, and those that could not be removed, with the reason; after an interrupt the rest stays
 */
export async function removePoints(
  points: readonly RestorePoint[],
  destinations: readonly DestinationAddress[],
  keepsOne: boolean,
  lease: Lease,
  context: EngineContext,
): Promise<{ readonly removed: number; readonly failed: readonly { readonly point: RestorePoint; readonly error: HypersdkError }[] }> {
  const { state, clock, emit, signal, revision } = context;
  const failed: { point: RestorePoint; error: HypersdkError }[] = [];
  let removed = 0;
  const leaving = new Set(points.map(({ id }) => id));
  const stays = new Map<string, Promise<void>>();
  const finders = new Map<string, ReturnType<typeof finderOfPoints>>();
  const holds = new Map<string, ReturnType<typeof listHolds>>();
  for (const point of points) {
    if (signal.aborted) break;
    // somebody may have held it, or removed it, since it was chosen
    const now = state.artifacts.get(point.id);
    if (!now || now.held) {
      if (now) emit({ type: "warning", code: "Held", text: `the restore point ${point.id} of ${point.vmPath} is held, and stays` });
      continue;
    }
    try {
      const spec = destinations.find(({ url }) => url === point.destinationUrl);
      if (!spec) throw new HypersdkError("NotFound", `no destination of the files has the URL ${point.destinationUrl}`);
      const destination = await context.openDestination(spec);
      await claim(destination, state.lineage, clock.now(), { adopt: context.adopt, hasPoints: true });
      if (!holds.has(spec.url)) holds.set(spec.url, listHolds(destination));
      const reason = (await holds.get(spec.url))?.get(point.id);
      if (reason !== undefined) {
        // this state may be older than the hold
        state.write(lease, () => state.artifacts.setHeld(point.id, reason));
        emit({ type: "warning", code: "Held", text: `the restore point ${point.id} of ${point.vmPath} is held at ${spec.name}, and stays` });
        continue;
      }
      if (keepsOne) {
        const group = groupKey(point);
        let find = finders.get(spec.url);
        if (!find) finders.set(spec.url, (find = finderOfPoints(destination)));
        if (!stays.has(group)) stays.set(group, newestStays(group, leaving, find, lease, context));
        await stays.get(group);
      }
      await destination.remove(point.manifestPath);
      // chunks stay until a compaction finds that no other point uses them
      if (!isRepositoryPoint(point.manifestPath))
        for (const { path } of await destination.list(point.manifestPath.slice(0, point.manifestPath.lastIndexOf("/")))) await destination.remove(path);
      state.write(lease, () => {
        state.artifacts.remove(point.id);
        state.audit.append({
          at: clock.now(),
          type: "point.removed",
          subject: point.id,
          detail: { schedule: point.schedule, vmPath: point.vmPath, instant: point.instant, storedBytes: point.storedBytes },
          commit: revision?.commit ?? null,
          author: revision?.author ?? null,
        });
      });
      removed++;
      emit({ type: "point_removed", point: point.id, vmPath: point.vmPath, schedule: point.schedule, storedBytes: point.storedBytes });
    } catch (error) {
      if (!(error instanceof HypersdkError) || error.code === "LeaseLost") throw error;
      failed.push({ point, error });
      emit({ type: "warning", code: error.code, text: `the restore point ${point.id} of ${point.vmPath} was not removed: ${error.message}` });
    }
  }
  return { removed, failed };
}

/**
 * The newest good point of a VM that is to stay is one: its manifest can be read, and what that names is there. A plan knows no more than
 * that a manifest is there, and a point whose disks are gone keeps nothing.
 * @throws ArtifactDamaged where it is none; it is bad from then on, so that the next plan lets nothing go for its sake
 */
async function newestStays(
  group: string,
  leaving: ReadonlySet<string>,
  find: (manifestPath: string) => Promise<void>,
  lease: Lease,
  { state, clock }: Pick<EngineContext, "state" | "clock">,
): Promise<void> {
  const latest = latestBy(clock.now());
  const newest = state.artifacts
    .list()
    .findLast((point) => groupKey(point) === group && point.state === "good" && point.instant <= latest && !leaving.has(point.id));
  if (!newest) throw new HypersdkError("ArtifactDamaged", "no good restore point of its VM would stay");
  try {
    await find(newest.manifestPath);
  } catch (error) {
    if (!isOfThePoint(error) && !(error instanceof HypersdkError && error.code === "NotFound")) throw error;
    state.write(lease, () => state.artifacts.setBadAt(newest.destinationUrl, newest.manifestPath));
    throw new HypersdkError("ArtifactDamaged", `the newest that would stay, ${newest.id}, is damaged: ${error.message}`, { cause: error });
  }
}
