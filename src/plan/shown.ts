import type { DesiredState } from "../model/desired.ts";
import { emptiedReason, type Observed, type ObservedDestination, type ObservedVm } from "../model/observed.ts";
import type { Recorded, RecordedProtection } from "../model/recorded.ts";
import type { VmPath } from "../model/vm-path.ts";

/*
 * What providers and destinations show, before anything is made of it: who a VM is, and what an empty folder says.
 */

/**
 * A VM that `renames` says was known by another path keeps that path's identity, so that its history goes on; a new VM under the
 * former path gets one of its own. What the provider calls them stays in `sourceIdentity`.
 * @param protections what is recorded: who a path belonged to, and which renames were carried out
 */
export function withRenames(desired: DesiredState, vms: readonly ObservedVm[], protections: readonly RecordedProtection[]): ObservedVm[] {
  if (desired.renames.length === 0) return [...vms];
  const renames = new Map(desired.renames.map((rename) => [rename.vm, rename.formerly]));
  const roots = new Map(desired.providers.map((provider) => [provider.name, provider.root]));
  const byPath = new Map(vms.map((vm) => [vm.path, vm]));
  const shown = new Set(vms.map(({ provider, identity }) => `${provider}\n${identity}`));
  const known = new Map(protections.map(({ provider, identity, vmPath }) => [`${provider}\n${identity}`, vmPath]));
  const isKnown = ({ provider }: ObservedVm, identity: string): boolean => known.has(`${provider}\n${identity}`);
  const targets = new Map(desired.renames.map((rename) => [rename.formerly, rename.vm]));
  const taken = new Set<string>();
  return vms.map(withHistory).map((vm, i) => {
    // whatever is renamed to what: of two with one identity the second would be exported by nobody
    const key = `${vm.provider}\n${vm.identity}`;
    const shownAs = vms[i] as ObservedVm;
    if (taken.has(key)) return { ...shownAs, identity: newcomer(shownAs), sourceIdentity: shownAs.identity };
    taken.add(key);
    return vm;
  });

  function withHistory(vm: ObservedVm): ObservedVm {
    const old = firstOf(vm.path);
    if (old !== undefined) return { ...vm, identity: identityAt(vm, old), sourceIdentity: vm.identity };
    const target = targets.get(vm.path);
    // until the other one is there, this is the one that will be renamed
    const isLeft = target !== undefined && (byPath.has(target) || known.get(`${vm.provider}\n${vm.identity}`) === target);
    return isLeft ? { ...vm, identity: newcomer(vm), sourceIdentity: vm.identity } : vm;
  }

  /** The path that a VM had first: names that were left one after the other are followed, as long as nobody else has them now. */
  function firstOf(path: VmPath): VmPath | undefined {
    let old = renames.get(path);
    for (let steps = renames.size; steps > 0 && old !== undefined && !byPath.has(old); steps--) old = renames.get(old) ?? old;
    return old;
  }
  /** The identity that was, or is, at a path. */
  function identityAt(vm: ObservedVm, old: VmPath): string {
    const root = roots.get(vm.provider) ?? "";
    const below = (path: string): string => (path.startsWith(`${root}/`) ? path.slice(root.length + 1) : path);
    // an image has its path's with an ending; where identities are no paths, it is that of who is there now
    const own = below(vm.path);
    const ending = vm.identity.startsWith(own) ? vm.identity.slice(own.length) : undefined;
    const isPath = ending !== undefined && /^(?:\.\w+)?$/.test(ending);
    const identity = isPath ? below(old) + ending : (byPath.get(old)?.identity ?? below(old));
    if (isKnown(vm, identity)) return identity;
    // one that had been renamed before, or has another kind of file now, is known by where it was, or is already
    const at = (path: VmPath): RecordedProtection | undefined =>
      protections.find((each) => each.provider === vm.provider && each.vmPath === path && !shown.has(`${each.provider}\n${each.identity}`));
    return (at(old) ?? at(vm.path))?.identity ?? identity;
  }
  /** No provider calls a VM so: no name in a path is empty. */
  function newcomer(vm: ObservedVm): string {
    const former = `${vm.identity} (new)`;
    return isKnown(vm, former) && !shown.has(`${vm.provider}\n${former}`) ? former : `${vm.identity}//new`;
  }
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
