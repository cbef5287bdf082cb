import { canonicalJson } from "../model/canonical-json.ts";
import type { Recorded, RecordedResource } from "../model/recorded.ts";
import type { Change, Consequences, FieldChange, ResourceKind } from "./plan.ts";
import type { DesiredResource } from "./resources.ts";

const nothing: Consequences = { gained: [], lost: [], expirable: 0, keepsPoints: 0 };

/** Part 1 of a plan: desired against recorded resources by address. `consequencesOf` is asked for schedules only. */
export function changesOf(
  desired: readonly DesiredResource[],
  recorded: Recorded["resources"],
  consequencesOf: (schedule: string, before: string | undefined, after: string | undefined) => Consequences,
): Change[] {
  const before = new Map(recorded.map((resource) => [resource.address, resource]));
  const changes: Change[] = [];
  for (const { address, resource, name, spec, file } of desired) {
    const old = before.get(address);
    before.delete(address);
    if (old?.spec === spec) continue;
    const consequences = resource === "schedule" ? consequencesOf(name, old?.spec, spec) : nothing;
    changes.push(
      old
        ? {
            kind: "update",
            address,
            resource,
            reason: `${file} differs from what was applied`,
            file,
            before: old.spec,
            after: spec,
            fields: fieldChanges(old.spec, spec),
            consequences,
          }
        : { kind: "create", address, resource, reason: `${file} defines it`, file, after: spec, consequences },
    );
  }
  for (const old of before.values()) changes.push(deletion(old, consequencesOf));
  return changes.sort((a, b) => (a.address < b.address ? -1 : 1));
}

function deletion(old: RecordedResource, consequencesOf: (schedule: string, before: string | undefined, after: string | undefined) => Consequences): Change {
  const [resource, name] = splitAddress(old.address);
  return {
    kind: "delete",
    address: old.address,
    resource,
    reason: `it is no longer in ${old.file}`,
    file: old.file,
    before: old.spec,
    consequences: resource === "schedule" ? consequencesOf(name, old.spec, undefined) : nothing,
  };
}

function splitAddress(address: string): [ResourceKind, string] {
  const dot = address.indexOf(".");
  return [address.slice(0, dot) as ResourceKind, address.slice(dot + 1)];
}

/** The top-level fields that differ, by name. */
function fieldChanges(before: string, after: string): FieldChange[] {
  const old = JSON.parse(before) as Record<string, unknown>;
  const now = JSON.parse(after) as Record<string, unknown>;
  return [...new Set([...Object.keys(old), ...Object.keys(now)])]
    .sort()
    .filter((field) => canonicalJson(old[field]) !== canonicalJson(now[field]))
    .map((field) => ({ field, before: old[field] ?? null, after: now[field] ?? null }));
}
