import type { DesiredState } from "../model/desired.ts";
import type { Observed } from "../model/observed.ts";
import { patternOf } from "../model/pattern.ts";
import type { Membership } from "./membership.ts";
import { type MovedPoint, movesOf } from "./moved.ts";
import { order } from "./order.ts";
import type { PlanWarning } from "./plan.ts";

/** What a plan says beside what it does: what was probably not meant, and what will fail. */
export function warningsOf(desired: DesiredState, observed: Observed, joined: Membership, moved: readonly MovedPoint[]): PlanWarning[] {
  const warnings: PlanWarning[] = movesOf(moved).map(({ destination, url, points }) => ({
    code: "HSW019",
    message: `${destination} has moved: ${points} restore ${points === 1 ? "point is" : "points are"} at ${url} now`,
    address: `destination.${destination}`,
  }));
  if (observed.unknownProviders.length === 0) {
    const roots = new Map(desired.providers.map(({ name, root }) => [name, root]));
    const unseen = observed.unknownVms.map(({ provider, identity }) => `${roots.get(provider) ?? ""}/${identity}`);
    /** What cannot be seen may be what a pattern means. */
    const mayBeUnseen = (text: string): boolean =>
      unseen.some(
        (path) => [path, path.replace(/\.[^./]+$/, ""), `${path}/any`].some(patternOf(text).matches) || patternOf(text).prefix.startsWith(`${path}/`),
      );
    for (const { address, pattern } of joined.unmatched)
      if (!mayBeUnseen(pattern)) warnings.push({ code: "HSW008", message: `the pattern ${pattern} matches no VM`, address });
    const protectedSchedules = new Set([...joined.members.values()].map(({ schedule }) => schedule.name));
    // where no pattern of its own matches, that says it; where nothing names a VM, the files' own finding does
    const told = new Set(joined.unmatched.map(({ address }) => address));
    const named = new Set(desired.policies.map(({ schedule }) => schedule));
    for (const { name, vms } of desired.schedules) {
      const isTold = told.has(`schedule.${name}`) || (vms.length === 0 && !named.has(name));
      if (!protectedSchedules.has(name) && !isTold && !vms.some(mayBeUnseen))
        warnings.push({ code: "HSW003", message: `schedule "${name}" protects no VM`, address: `schedule.${name}` });
    }
  }
  for (const { name, layout, isSealed, keyProblem } of observed.destinations) {
    const spec = desired.destinations.find((each) => each.name === name);
    const encryption = spec?.encryption;
    const warn = (message: string, code = "HSW015"): void => void warnings.push({ code, message, address: `destination.${name}` });
    if (spec && layout !== undefined && layout !== spec.layout)
      warn(
        `${name} holds the layout ${layout}, and the files say ${spec.layout}: exports there will fail; say layout: ${layout}, or name another destination`,
        "HSW021",
      );
    // copies alone go to one that no schedule writes to, with the key of what is copied
    const isWritten = desired.schedules.some(({ destination }) => destination === name);
    if (isSealed === true && !encryption && isWritten) warn(`the repository at ${name} is encrypted, and no schedule of it names the key: exports will fail`);
    if (isSealed === false && encryption) warn(`the files want ${name} encrypted, and the repository there is not: exports will fail; name a new destination`);
    if (keyProblem !== undefined) warn(`the key of ${name} cannot be had here: ${keyProblem}`);
  }
  const paths = new Set(observed.vms.map(({ path }) => path));
  if (observed.unknownProviders.length + observed.unknownVms.length === 0)
    for (const { vm, formerly } of desired.renames)
      if (!paths.has(vm)) warnings.push({ code: "HSW022", message: `${vm}, which renames says was ${formerly}, is not there`, address: `renames.${vm}` });
  for (const { provider, message } of observed.problems) warnings.push({ code: "HSW012", message, address: `provider.${provider}` });
  return warnings.sort((a, b) => order(a.code, b.code) || order(a.message, b.message) || order(a.address ?? "", b.address ?? ""));
}
