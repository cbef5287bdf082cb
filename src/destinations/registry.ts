import type { DestinationAddress } from "../model/desired.ts";
import { HypersdkError } from "../model/errors.ts";
import type { Random } from "../model/ports.ts";
import type { Destination } from "./destination.ts";

/** One line for each kind of store, by the scheme of its URL. */
const kinds: Readonly<Record<string, (spec: DestinationAddress, random: Random) => Promise<Destination>>> = {
  file: async (spec, random) => (await import("./file/file-destination.ts")).fileDestination(spec, random),
};

export function openDestination(spec: DestinationAddress, random: Random): Promise<Destination> {
  const scheme = spec.url.slice(0, spec.url.indexOf(":"));
  const open = kinds[scheme];
  if (!open) throw new HypersdkError("NotAvailableYet", `a destination at ${scheme}:// is not available yet`);
  return open(spec, random);
}
