import type { VmPath } from "../model/vm-path.ts";
import type { UnknownThing } from "../plan/plan.ts";
import type { State } from "../state/state.ts";

/** A protected VM that could not be looked at: nothing of it is exported, and nobody knows whether it should be. */
export interface Unseen {
  readonly schedule: string;
  readonly vmPath: VmPath;
  readonly reason: string;
}

/**
 * @param unknown what could not be looked at: a provider, a VM, or a folder with VMs below
 * @param isMissed whether anybody misses an export of that schedule
 */
export function unseenOf(unknown: readonly UnknownThing[], isMissed: (schedule: string) => boolean, { configuration }: Pick<State, "configuration">): Unseen[] {
  if (unknown.length === 0) return [];
  const reasons = new Map(unknown.map(({ what, message }) => [what, message]));
  return configuration.protections().flatMap(({ schedule, provider, identity, vmPath, state }): Unseen[] => {
    if (state !== "active" || !isMissed(schedule)) return [];
    const names = identity.split("/");
    const itAndAbove = names.map((_, i) => `${provider}: ${names.slice(0, names.length - i).join("/")}`);
    const reason = [`provider.${provider}`, ...itAndAbove].map((what) => reasons.get(what)).find((each) => each !== undefined);
    return reason === undefined ? [] : [{ schedule, vmPath, reason }];
  });
}
