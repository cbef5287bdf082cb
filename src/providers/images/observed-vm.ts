import type { ObservedVm } from "../../model/observed.ts";
import type { FoundVm } from "./discover.ts";

/** A VM of an inventory, as its files tell. */
export function observedVm(provider: string, path: ObservedVm["path"], { identity, names, disks, descriptor }: FoundVm): ObservedVm {
  return {
    provider,
    path,
    identity,
    name: descriptor?.name ?? (names.at(-1) as string),
    disks: disks.map(({ name, peeked: { format, virtualBytes, dataBytes } }) => ({ name, format, virtualBytes, dataBytes })),
    ...(descriptor?.guestType ? { guestType: descriptor.guestType } : {}),
    ...(descriptor?.firmware ? { firmware: descriptor.firmware } : {}),
  };
}
