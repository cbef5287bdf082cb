import { canonicalJson } from "../model/canonical-json.ts";
import type { DesiredState, Origin } from "../model/desired.ts";
import type { ResourceKind } from "./plan.ts";

/** One thing of the desired state with an address, as it is recorded. */
export interface DesiredResource {
  readonly address: string;
  readonly resource: ResourceKind;
  readonly name: string;
  /** Canonical JSON without origins and without paths of this machine, so that it compares on any. */
  readonly spec: string;
  readonly file: string;
}

export function resourcesOf(desired: DesiredState): DesiredResource[] {
  const list = (
    resource: ResourceKind,
    items: readonly { readonly name: string; readonly origin: Origin }[],
    without: Readonly<Record<string, undefined>> = {},
  ): DesiredResource[] =>
    items.map((item) => ({
      address: `${resource}.${item.name}`,
      resource,
      name: item.name,
      spec: canonicalJson({ ...item, name: undefined, origin: undefined, ...without }),
      file: item.origin.file,
    }));
  return [
    ...list(
      "destination",
      desired.destinations.filter((destination) => !destination.inline),
      { inline: undefined, encryption: undefined, otherKeys: undefined },
    ),
    ...list("notifier", desired.notifiers),
    ...list("policy", desired.policies),
    ...list("provider", desired.providers, { path: undefined, sockets: undefined, scratch: undefined }),
    ...list("schedule", desired.schedules),
  ];
}
