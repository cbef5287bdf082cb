import type { DesiredState } from "../model/desired.ts";
import type { ObservedDestination } from "../model/observed.ts";
import type { Recorded, RestorePoint } from "../model/recorded.ts";

export interface MovedPoint {
  readonly point: RestorePoint;
  /** Where its destination is now. */
  readonly url: string;
}

/**
 * Restore points whose destination has moved with all that is in it, as a work tree with its exports does: the files give its name another
 * URL, none of them the old one, and at the new one this state's mark and the point's manifest are found.
 */
export function movedPoints(desired: DesiredState, { lineage, points }: Recorded, destinations: readonly ObservedDestination[]): MovedPoint[] {
  const urls = new Set(desired.destinations.map(({ url }) => url));
  const astray = points.filter(({ destinationUrl }) => !urls.has(destinationUrl));
  if (astray.length === 0) return [];
  const ours = new Map(destinations.filter((each) => each.lineage === lineage).map((each) => [each.name, each]));
  const there = new Map([...ours].map(([name, each]) => [name, new Set(each.points.map(({ manifestPath }) => manifestPath))]));
  return astray.flatMap((point) => {
    const destination = ours.get(point.destination);
    return destination && there.get(point.destination)?.has(point.manifestPath) ? [{ point, url: destination.url }] : [];
  });
}

/** The record as it will be once the move is noted. */
export function withMoves(recorded: Recorded, moved: readonly MovedPoint[]): Recorded {
  if (moved.length === 0) return recorded;
  const urls = new Map(moved.map(({ point, url }) => [point.id, url]));
  return { ...recorded, points: recorded.points.map((point) => ({ ...point, destinationUrl: urls.get(point.id) ?? point.destinationUrl })) };
}

/** One line for each destination. */
export function movesOf(moved: readonly MovedPoint[]): { readonly destination: string; readonly url: string; readonly points: number }[] {
  const byName = Map.groupBy(moved, ({ point }) => point.destination);
  return [...byName].map(([destination, points]) => ({ destination, url: points[0]?.url ?? "", points: points.length }));
}
