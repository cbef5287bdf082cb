import { patternOf } from "../model/pattern.ts";
import type { Plan, PlannedExport } from "./plan.ts";

/**
 * The part of a plan that is about the VMs and addresses that are wanted. A target is a VM pattern (`/dc/vm/*`) or an address
 * (`schedule.daily`). Changes are narrowed by address alone; protections, exports and expiry by both. What an export needs comes with it: its
 * provider and its destination; where one of those is excluded, the export is, and of a destination what expires there.
 */
export function narrow(plan: Plan, targets: readonly string[], excluded: readonly string[]): Plan {
  if (targets.length + excluded.length === 0) return plan;
  const vms = (list: readonly string[]) => list.filter((each) => each.startsWith("/")).map(patternOf);
  const addresses = (list: readonly string[]): Set<string> => new Set(list.filter((each) => !each.startsWith("/")));
  const [wantedVms, unwantedVms] = [vms(targets), vms(excluded)];
  const [wanted, unwanted] = [addresses(targets), addresses(excluded)];
  const isAll = targets.length === 0;
  const address = (name: string): boolean => (isAll || wanted.has(name)) && !unwanted.has(name);
  const vm = ({ schedule, vmPath }: { readonly schedule: string; readonly vmPath: string }): boolean =>
    (isAll || wanted.has(`schedule.${schedule}`) || wantedVms.some((pattern) => pattern.matches(vmPath))) &&
    !unwanted.has(`schedule.${schedule}`) &&
    !unwantedVms.some((pattern) => pattern.matches(vmPath));
  // a protection cannot begin before its schedule is there
  const withheld = new Set(
    plan.changes.filter((change) => change.resource === "schedule" && !address(change.address)).map((change) => change.address.slice("schedule.".length)),
  );
  const both = (each: { readonly schedule: string; readonly vmPath: string }): boolean => vm(each) && !withheld.has(each.schedule);
  const going = (each: PlannedExport): boolean => both(each) && needs(each).every((name) => !unwanted.has(name));
  const [exports, deferred] = [plan.exports.filter(going), plan.deferred.filter(going)];
  const needed = new Set([...exports, ...deferred].flatMap(needs));
  const leaving = [...plan.expiry.mark, ...plan.expiry.remove].filter(({ destination }) => !unwanted.has(`destination.${destination}`));
  const points = new Set(leaving.filter(both).map(({ point }) => point));
  return {
    ...plan,
    changes: plan.changes.filter((change) => address(change.address) || needed.has(change.address)),
    protections: plan.protections.filter(both),
    exports,
    deferred,
    skipped: plan.skipped.filter(going),
    drift: plan.drift.filter((each) => ("vmPath" in each ? both(each) : isAll)),
    expiry: {
      mark: plan.expiry.mark.filter(({ point }) => points.has(point)),
      remove: plan.expiry.remove.filter(({ point }) => points.has(point)),
      withdraw: isAll ? plan.expiry.withdraw : [],
      blocked: plan.expiry.blocked.filter(both),
    },
  };
}

function needs({ provider, destination }: PlannedExport): string[] {
  return [`provider.${provider}`, `destination.${destination}`];
}
