import type { VmPath } from "../model/vm-path.ts";
import type { Drift } from "../plan/plan.ts";
import type { State } from "../state/state.ts";

/** A protected VM that could not be looked at: nothing of it is exported, and nobody knows whether it should be. */
export interface Unseen {
  readonly schedule: string;
  readonly vmPath: VmPath;
  readonly reason: string;
}

/** @param isMissed whether anybody misses an export of that schedule */
export function unseenOf(drift: readonly Drift[], isMissed: (schedule: string) => boolean, { configuration }: Pick<State, "configuration">): Unseen[] {
  const unknown = drift.flatMap((each) => (each.kind === "unknown" ? [each] : []));
  if (unknown.length === 0) return [];
  return configuration.protections().flatMap(({ schedule, provider, identity, vmPath, state }): Unseen[] => {
    if (state !== "active" || !isMissed(schedule)) return [];
    const why = unknown.find(
      ({ what }) => what === `provider.${provider}` || what === `${provider}: ${identity}` || `${provider}: ${identity}`.startsWith(`${what}/`),
    );
    return why ? [{ schedule, vmPath, reason: why.message }] : [];
  });
}
