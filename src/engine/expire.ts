import { claim } from "../exports/lineage.ts";
import type { DestinationAddress } from "../model/desired.ts";
import { HypersdkError } from "../model/errors.ts";
import type { RestorePoint } from "../model/recorded.ts";
import { isRepositoryPoint } from "../repository/points.ts";
import type { Lease } from "../state/leases.ts";
import type { EngineContext } from "./context.ts";

/**
 * Removes restore points, oldest first. The manifest goes first: a point without it does not exist, so that a crash leaves
 * files that nobody lists and that the next removal clears. Never touches a destination of another state.
 * @returns how many are gone, and those that could not be removed, with the reason; after an interrupt the rest stays
 */
export async function removePoints(
  points: readonly RestorePoint[],
  destinations: readonly DestinationAddress[],
  lease: Lease,
  context: EngineContext,
): Promise<{ readonly removed: number; readonly failed: readonly { readonly point: RestorePoint; readonly error: HypersdkError }[] }> {
  const { state, clock, emit, signal, revision } = context;
  const failed: { point: RestorePoint; error: HypersdkError }[] = [];
  let removed = 0;
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
