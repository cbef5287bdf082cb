import type { DesiredState } from "../model/desired.ts";
import { emptiedReason, type Observed, type ObservedDestination, type ObservedVm } from "../model/observed.ts";
import type { Recorded } from "../model/recorded.ts";

/*
 * What providers and destinations show, before anything is made of it: who a VM is, and what an empty folder says.
 */

/**
 * A VM that `renames` says was known by another path keeps that path's identity, so that its history goes on; a new VM under the
 * former path gets one of its own. What the provider calls them stays in `sourceIdentity`.
 */
export function withRenames(desired: DesiredState, vms: readonly ObservedVm[]): ObservedVm[] {
  if (desired.renames.length === 0) return [...vms];
  const formerly = new Map(desired.renames.map((rename) => [rename.vm, rename.formerly]));
  const left = new Set(desired.renames.map((rename) => rename.formerly));
  const roots = new Map(desired.providers.map((provider) => [provider.name, provider.root]));
  const byPath = new Map(vms.map((vm) => [vm.path, vm]));
  return vms.map((vm) => {
    const old = formerly.get(vm.path);
    const root = roots.get(vm.provider) ?? "";
    if (old !== undefined) {
      const below = (path: string): string => (path.startsWith(`${root}/`) ? path.slice(root.length + 1) : path);
      // the identity that the former path had: an image has its path's with an ending; where identities are no paths, that of who is there now
      const own = below(vm.path);
      const ending = vm.identity.startsWith(own) ? vm.identity.slice(own.length) : undefined;
      const identity = ending !== undefined && /^(?:\.\w+)?$/.test(ending) ? below(old) + ending : (byPath.get(old)?.identity ?? below(old));
      return { ...vm, identity, sourceIdentity: vm.identity };
    }
    return left.has(vm.path) ? { ...vm, identity: `${vm.identity} (new)`, sourceIdentity: vm.identity } : vm;
  });
}

/**
 * A folder in which a disk is not mounted is empty: nothing is known of what belongs there, least of all that it is gone.
 */
export function withoutEmptied(observed: Observed, { points }: Recorded): Observed {
  const urls = new Set(points.map(({ destinationUrl }) => destinationUrl));
  const isEmptied = ({ lineage, url }: ObservedDestination): boolean => lineage === undefined && urls.has(url);
  const emptied = observed.destinations.filter(isEmptied);
  if (emptied.length === 0) return observed;
  return {
    ...observed,
    destinations: observed.destinations.filter((each) => !isEmptied(each)),
    unknownDestinations: [...observed.unknownDestinations, ...emptied.map(({ name }) => ({ name, reason: emptiedReason(name) }))],
  };
}
