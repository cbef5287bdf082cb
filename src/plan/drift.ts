import type { Observed, ObservedDisk } from "../model/observed.ts";
import type { Recorded, RecordedDisk, RecordedProtection } from "../model/recorded.ts";
import type { Membership } from "./membership.ts";
import { order } from "./order.ts";
import type { Drift, LostPoint, ProtectionChange, UnknownThing } from "./plan.ts";

/** Part 3 of a plan: what the world shows against what was recorded. What cannot be seen is unknown, never drift. */
export function driftOf(
  observed: Observed,
  recorded: Recorded,
  lost: ReadonlyMap<string, LostPoint>,
  changes: readonly ProtectionChange[],
  overdue: ReadonlyMap<string, string>,
  joined: Membership,
  protections: ReadonlyMap<string, RecordedProtection>,
): Drift[] {
  const drift: Drift[] = unknownsOf(observed);
  drift.push(...unrecorded(observed, recorded));
  for (const change of changes) {
    const at = { schedule: change.schedule, vmPath: change.vmPath };
    if (change.kind === "missing") drift.push({ ...at, kind: "vm-missing", message: `provider ${change.provider} no longer shows it` });
    if (change.kind === "begin" && change.reason === "a pattern matches it now")
      drift.push({ ...at, kind: "vm-new", message: `new at provider ${change.provider}` });
  }
  for (const [key, message] of overdue) {
    const protection = protections.get(key) as RecordedProtection;
    drift.push({ kind: "overdue", schedule: protection.schedule, vmPath: protection.vmPath, message });
  }
  for (const [key, { schedule, vmPath, vm }] of joined.members) {
    const lastDisks = protections.get(key)?.lastDisks;
    const differences = vm && lastDisks ? diskDifferences(vm.disks, lastDisks) : [];
    if (differences.length > 0) drift.push({ kind: "vm-changed", schedule: schedule.name, vmPath, message: `since its last export ${differences.join(", ")}` });
  }
  drift.push(...lost.values());
  return drift.sort((a, b) => order(a.kind, b.kind) || order(JSON.stringify(a), JSON.stringify(b)));
}

/** What could not be looked at. */
export function unknownsOf({ unknownProviders, unknownVms, unknownDestinations }: Observed): UnknownThing[] {
  const unknown = (what: string, message: string): UnknownThing => ({ kind: "unknown", what, message });
  return [
    ...unknownProviders.map(({ name, reason }) => unknown(`provider.${name}`, reason)),
    ...unknownVms.map(({ provider, identity, reason }) => unknown(`${provider}: ${identity}`, reason)),
    ...unknownDestinations.map(({ name, reason }) => unknown(`destination.${name}`, reason)),
  ];
}

/** Restore points of this state's own that it does not know: it was put back from before them, or rebuilt from another destination only. */
function unrecorded({ destinations }: Observed, { lineage, points, unmanaged }: Recorded): Drift[] {
  return destinations.flatMap((destination): Drift[] => {
    if (destination.lineage !== lineage) return [];
    const known = new Set(points.flatMap(({ destinationUrl, manifestPath }) => (destinationUrl === destination.url ? [manifestPath] : [])));
    for (const path of unmanaged?.get(destination.url) ?? []) known.add(path);
    const count = destination.points.filter(({ manifestPath }) => !known.has(manifestPath)).length;
    const them = count === 1 ? "1 restore point there is" : `${count} restore points there are`;
    return count === 0
      ? []
      : [
          {
            kind: "unknown",
            what: `destination.${destination.name}`,
            message: `${them} not in this state: \`hypersdk state rebuild --from ${destination.name}\` records what is there`,
          },
        ];
  });
}

/** A disk that is gone is in no export from now on, and one that was exchanged is another one's content under its name. */
function diskDifferences(disks: readonly ObservedDisk[], last: readonly RecordedDisk[]): string[] {
  const before = new Map(last.map(({ name, virtualBytes }) => [name, virtualBytes]));
  const differences: string[] = [];
  for (const { name, virtualBytes } of disks) {
    const had = before.get(name);
    before.delete(name);
    if (had === undefined) differences.push(`disk ${name} is new`);
    else if (had !== virtualBytes) differences.push(`disk ${name} has ${virtualBytes} bytes instead of ${had}`);
  }
  return [...differences, ...[...before.keys()].map((name) => `disk ${name} is gone`)];
}
