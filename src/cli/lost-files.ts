import type { ConfigFile } from "../config/combine.ts";
import type { Diagnostic } from "../config/diagnostic.ts";
import type { DesiredState } from "../model/desired.ts";
import { HypersdkError } from "../model/errors.ts";
import { State } from "../state/state.ts";

/**
 * Errors for files out of which something was applied and that hold nothing of ours now: cut off or damaged while they were saved, or turned
 * into a link, most likely, and no reason to end what they said. Deleting one says that it is meant.
 */
export function lostFiles(files: readonly ConfigFile[], desired: DesiredState | undefined, statePath: string): Diagnostic[] {
  const strange = files.filter(({ fragment }) => !fragment.isOurs);
  if (strange.length === 0) return [];
  const applied = appliedFrom(statePath);
  // what has moved into another file is not lost
  const there = new Set(desired && sectionsOf(desired).flatMap(([kind, entries]) => entries.map(({ name }) => `${kind}.${name}`)));
  return strange.flatMap(({ file }): Diagnostic[] => {
    const addresses = (applied.get(file) ?? []).filter((address) => !there.has(address));
    const first = addresses.find((address) => address.startsWith("schedule.")) ?? addresses[0];
    if (first === undefined) return [];
    const rest = addresses.length > 1 ? ` and ${addresses.length - 1} more` : "";
    return [
      {
        severity: "error",
        code: "HSE029",
        message: `${first}${rest} stood in this file, and it is no document of hypersdk now`,
        file,
        line: 1,
        column: 1,
        length: 1,
        source: "",
        label: 'delete the file, or leave "version: v2" in it, to end what it said; what is of another program needs another name',
      },
    ];
  });
}

function sectionsOf({
  schedules,
  policies,
  destinations,
  providers,
  notifiers,
}: DesiredState): [kind: string, entries: readonly { readonly name: string }[]][] {
  return [
    ["schedule", schedules],
    ["policy", policies],
    ["destination", destinations],
    ["provider", providers],
    ["notifier", notifiers],
  ];
}

/** What the state has of each file. A state that cannot be read says so to those who need it. */
function appliedFrom(statePath: string): ReadonlyMap<string, readonly string[]> {
  const addresses = new Map<string, string[]>();
  try {
    const state = State.openForReading(statePath);
    try {
      for (const { file, address } of state?.configuration.resources() ?? []) addresses.set(file, [...(addresses.get(file) ?? []), address]);
    } finally {
      state?.close();
    }
  } catch (error) {
    if (!(error instanceof HypersdkError)) throw error;
  }
  return addresses;
}
