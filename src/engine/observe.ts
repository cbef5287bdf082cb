import type { Destination } from "../destinations/destination.ts";
import { readMarker } from "../exports/lineage.ts";
import { manifestName } from "../exports/manifest.ts";
import type { DesiredState } from "../model/desired.ts";
import { HypersdkError } from "../model/errors.ts";
import type { Observed, ObservedDestination, ObservedVm, Unknown } from "../model/observed.ts";
import type { RecordedProtection } from "../model/recorded.ts";
import type { EngineContext } from "./context.ts";

/**
 * Asks every provider and destination. What cannot be reached becomes unknown with its reason; it never fails the rest.
 * @param protections of two VMs with one path, the one that is protected keeps it
 */
export async function observe(
  desired: DesiredState,
  context: Pick<EngineContext, "openProvider" | "openDestination">,
  protections: readonly RecordedProtection[] = [],
): Promise<Observed> {
  const shown: ObservedVm[] = [];
  const problems: { provider: string; message: string }[] = [];
  const unknownProviders: Unknown[] = [];
  const unknownVms: { provider: string; identity: string; reason: string }[] = [];
  for (const spec of desired.providers) {
    try {
      const inventory = await (await context.openProvider(spec)).inventory();
      // one by one: a call takes no hundred thousand arguments
      for (const vm of inventory.vms) shown.push(vm);
      for (const each of inventory.unknown ?? []) unknownVms.push({ provider: spec.name, ...each });
      for (const message of inventory.problems) problems.push({ provider: spec.name, message });
    } catch (error) {
      unknownProviders.push({ name: spec.name, reason: reasonOf(error) });
    }
  }
  const owners = ownersOf(shown, protections);
  const vms = shown.filter((vm) => owners.get(vm.path) === vm);
  for (const { provider, path } of shown.filter((vm) => owners.get(vm.path) !== vm))
    problems.push({ provider, message: `${path} is also a VM of provider ${owners.get(path)?.provider}: it is not taken twice` });
  const destinations: ObservedDestination[] = [];
  const unknownDestinations: Unknown[] = [];
  for (const spec of desired.destinations) {
    try {
      destinations.push(await observeDestination(await context.openDestination(spec)));
    } catch (error) {
      unknownDestinations.push({ name: spec.name, reason: reasonOf(error) });
    }
  }
  return { vms, problems, unknownProviders, unknownVms, destinations, unknownDestinations };
}

/** Who has each path: the VM that is protected under it, or else the first. */
function ownersOf(vms: readonly ObservedVm[], protections: readonly RecordedProtection[]): Map<string, ObservedVm> {
  const keyOf = (provider: string, identity: string, path: string): string => `${provider}\n${identity}\n${path}`;
  const isProtected = new Set(protections.map(({ provider, identity, vmPath }) => keyOf(provider, identity, vmPath)));
  const owners = new Map<string, ObservedVm>();
  for (const vm of vms) if (!owners.has(vm.path) || isProtected.has(keyOf(vm.provider, vm.identity, vm.path))) owners.set(vm.path, vm);
  return owners;
}

/** What a plan says when it may look at nothing. */
export function observeNothing(desired: DesiredState): Observed {
  const reason = "not looked at: the plan is offline";
  return {
    vms: [],
    problems: [],
    unknownVms: [],
    destinations: [],
    unknownProviders: desired.providers.map(({ name }) => ({ name, reason })),
    unknownDestinations: desired.destinations.map(({ name }) => ({ name, reason })),
    isOffline: true,
  };
}

async function observeDestination(destination: Destination): Promise<ObservedDestination> {
  const marker = await readMarker(destination);
  const points: { manifestPath: string; storedBytes: number }[] = [];
  const bytes = new Map<string, number>();
  const base = { name: destination.spec.name, url: destination.spec.url, ...(marker ? { lineage: marker.lineage, layout: marker.layout } : {}) };
  if (marker?.layout === "repository") {
    const { listPoints } = await import("../repository/points.ts");
    const listed = (await listPoints(destination)).map(({ path }) => ({ manifestPath: path, storedBytes: null }));
    return { ...base, ...(await sealOf(destination, listed.length > 0)), points: listed };
  }
  const files = marker ? await destination.list() : [];
  for (const file of files) {
    if (file.isLink) continue;
    const folder = file.path.slice(0, Math.max(0, file.path.lastIndexOf("/")));
    if (file.path.endsWith(`/${manifestName}`)) points.push({ manifestPath: file.path, storedBytes: 0 });
    else if (!file.isPartial) bytes.set(folder, (bytes.get(folder) ?? 0) + file.bytes);
  }
  return {
    ...base,
    points: points.map(({ manifestPath }) => ({ manifestPath, storedBytes: bytes.get(manifestPath.slice(0, manifestPath.lastIndexOf("/"))) ?? 0 })),
  };
}

/** @throws ArtifactDamaged where there are points, and no config: none of them can be read */
async function sealOf(destination: Destination, hasPoints: boolean): Promise<Pick<ObservedDestination, "isSealed" | "keyProblem">> {
  const [{ Repository, withoutConfig }, { requireKey }] = await Promise.all([import("../repository/repository.ts"), import("../repository/keys.ts")]);
  const isSealed = await Repository.isSealed(destination);
  if (isSealed === undefined && hasPoints) throw withoutConfig(destination, "points");
  try {
    // nothing is sealed there for the sake of keys that only open
    if (destination.encryption && (isSealed || (isSealed === undefined && destination.encryption.sealing))) requireKey(destination);
    return isSealed === undefined ? {} : { isSealed };
  } catch (error) {
    return { ...(isSealed === undefined ? {} : { isSealed }), keyProblem: reasonOf(error) };
  }
}

function reasonOf(error: unknown): string {
  if (error instanceof HypersdkError) return error.message;
  throw error;
}
