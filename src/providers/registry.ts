import type { ProviderSpec } from "../model/desired.ts";
import { HypersdkError } from "../model/errors.ts";
import type { Cache, Clock } from "../model/ports.ts";
import type { Provider } from "./provider.ts";

/** One line for each kind of provider; the code behind it is loaded when it is used. */
const kinds: Readonly<Record<string, (spec: ProviderSpec, clock: Clock, cache: Cache | undefined) => Promise<Provider>>> = {
  qemu: async (spec, clock) =>
    spec.libvirt === undefined
      ? (await import("./qemu/qemu-provider.ts")).qemuProvider(spec, clock)
      : (await import("./qemu/libvirt-provider.ts")).libvirtProvider(spec, spec.libvirt, clock),
  local: async (spec, clock, cache) => (await import("./local/local-provider.ts")).localProvider(spec, clock, cache),
};

/** @param cache where an inventory may leave what makes the next one faster */
export function openProvider(spec: ProviderSpec, clock: Clock, cache: Cache | undefined): Promise<Provider> {
  const open = kinds[spec.type];
  if (!open) throw new HypersdkError("NotAvailableYet", `provider type "${spec.type}" is not available yet`);
  return open(spec, clock, cache);
}
