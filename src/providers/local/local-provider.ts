import type { ProviderSpec } from "../../model/desired.ts";
import { HypersdkError } from "../../model/errors.ts";
import { epochMsOf } from "../../model/instant.ts";
import type { ObservedVm } from "../../model/observed.ts";
import type { Cache, Clock } from "../../model/ports.ts";
import { vmPathUnder } from "../../model/vm-path.ts";
import { discover, type FoundVm } from "../images/discover.ts";
import { KnownHeads } from "../images/known-heads.ts";
import { observedVm } from "../images/observed-vm.ts";
import type { Provider } from "../provider.ts";

/**
 * A folder tree of disk images. It has no snapshots: an export reads the files as they are, and fails with `SourceChanged`
 * when size, time or inode of one of them is another after the last read than before the first.
 */
export function localProvider(spec: ProviderSpec, clock: Clock, cache?: Cache): Provider {
  return {
    name: spec.name,
    type: "local",
    async inventory() {
      const heads = cache && new KnownHeads(cache, spec.path, epochMsOf(clock.now()));
      const { vms, problems, unknown } = discover(spec.path, heads && ((path, name) => heads.peek(path, name)));
      heads?.save();
      const taken = new Set<string>();
      const observed: ObservedVm[] = [];
      const more: string[] = [];
      const take = (vm: FoundVm): void => {
        const path = vmPathUnder(spec.root, vm.names);
        if (!path) more.push(`${JSON.stringify(vm.identity)} cannot be a VM path: a name holds a control character or is no Unicode`);
        else if (taken.has(path)) more.push(`${JSON.stringify(vm.identity)} would be ${path}, as another VM is already`);
        else {
          taken.add(path);
          observed.push(observedVm(spec.name, path, vm));
        }
      };
      vms.forEach(take);
      return { vms: observed.sort((a, b) => (a.path < b.path ? -1 : 1)), problems: [...problems, ...more], unknown };
    },
    async snapshot(identity) {
      const { vms, unknown } = discover(spec.path);
      const vm = vms.find((each) => each.identity === identity);
      const reason = unknown.find((each) => each.identity === identity)?.reason;
      if (!vm && reason !== undefined) throw new HypersdkError("SourceUnavailable", `${identity}: ${reason}`);
      if (!vm) throw new HypersdkError("NotFound", `provider ${spec.name} has no VM ${JSON.stringify(identity)}`);
      // the readers of all formats come with it, and a plan needs none
      const { imageSnapshot } = await import("../images/image-snapshot.ts");
      return imageSnapshot(vm, clock);
    },
  };
}
