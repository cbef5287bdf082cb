import type { ObservedDestination } from "../model/observed.ts";
import type { RestorePoint } from "../model/recorded.ts";
import type { LostPoint } from "./plan.ts";

/**
 * Restore points that are recorded and not at their destination as they were stored, by their ids. Of what was not looked at nothing
 * is lost.
 */
export function lostPoints(points: readonly RestorePoint[], destinations: readonly ObservedDestination[]): Map<string, LostPoint> {
  const lost = new Map<string, LostPoint>();
  for (const destination of destinations) {
    const there = new Map(destination.points.map((point) => [point.manifestPath, point.storedBytes]));
    for (const point of points) {
      if (point.destinationUrl !== destination.url) continue;
      const bytes = there.get(point.manifestPath);
      const at = { point: point.id, destination: destination.name, schedule: point.schedule, vmPath: point.vmPath };
      if (bytes === undefined) lost.set(point.id, { ...at, kind: "point-missing", message: `${point.manifestPath} is gone` });
      else if (bytes !== null && bytes !== point.storedBytes)
        lost.set(point.id, { ...at, kind: "point-altered", message: `its files have ${bytes} bytes, ${point.storedBytes} were stored` });
    }
  }
  return lost;
}

/** The points with what is lost called bad: it counts as no restore point, so that no other goes for its sake. */
export function withoutLost(points: readonly RestorePoint[], lost: ReadonlyMap<string, LostPoint>): readonly RestorePoint[] {
  return lost.size === 0 ? points : points.map((point) => (lost.has(point.id) ? { ...point, state: "bad" } : point));
}
