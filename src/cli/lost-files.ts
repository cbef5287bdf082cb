import type { ConfigFile } from "../config/combine.ts";
import type { Diagnostic } from "../config/diagnostic.ts";
import type { SourceFile } from "../config/source-file.ts";
import { HypersdkError } from "../model/errors.ts";
import { State } from "../state/state.ts";

/**
 * Errors for files out of which something was applied and that are empty now, or no YAML: cut off while they were saved, most likely, and no
 * reason to end what they said. One that is gone, or that holds something else, is meant.
 */
export function lostFiles(files: readonly ConfigFile[], sourceOf: (file: string) => SourceFile, statePath: string): Diagnostic[] {
  const strange = files.map(({ file }) => file).filter((_, i) => isStrange(files[i] as ConfigFile));
  if (strange.length === 0) return [];
  const applied = appliedFrom(statePath);
  return strange.flatMap((file): Diagnostic[] => {
    const addresses = applied.get(file) ?? [];
    const first = addresses.find((address) => address.startsWith("schedule.")) ?? addresses[0];
    if (first === undefined || !isBlank(sourceOf(file))) return [];
    const rest = addresses.length > 1 ? ` and ${addresses.length - 1} more` : "";
    return [
      {
        severity: "error",
        code: "HSE029",
        message: `${first}${rest} stood in this file, and it is empty or no YAML now`,
        file,
        line: 1,
        column: 1,
        length: 1,
        source: sourceOf(file).text.split("\n")[0] ?? "",
        label: 'delete the file, or leave "version: v2" in it, to end what it said',
      },
    ];
  });
}

/** Nothing in it is a document of ours, not even a wrong one. */
function isStrange({ fragment }: ConfigFile): boolean {
  const { items, defaults, later, broken, diagnostics } = fragment;
  return [items, defaults, later, broken, diagnostics].every((each) => each.length === 0);
}

function isBlank(source: SourceFile): boolean {
  try {
    return source.documents().every(({ contents }) => contents === null) || source.documents().some(({ errors }) => errors.length > 0);
  } catch (error) {
    if (error instanceof RangeError) return true;
    throw error;
  }
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
