import type { DestinationSpec, Origin, ProviderSpec, RenameSpec } from "../model/desired.ts";
import { nearestName } from "../model/nearest.ts";
import type { Item } from "./read-file.ts";
import type { Report } from "./report.ts";

/*
 * What must hold between entries, wherever they stand: names that are there, no circles, one history for each VM, no exports among the
 * machines.
 */

/** Where a schedule is named, in what `origin` is the place of. */
export interface Reference {
  readonly schedule: string;
  readonly origin: Origin;
  readonly below: readonly (string | number)[];
}

export function checkReferences(references: readonly Reference[], names: ReadonlySet<string>, report: Report): void {
  for (const { schedule, origin, below } of references) {
    if (names.has(schedule)) continue;
    report.error("HSE013", origin, below, `unknown schedule "${schedule}"`, () => {
      const near = nearestName(schedule, names);
      return near ? `no schedule has this name; did you mean "${near}"?` : "no schedule has this name";
    });
  }
}

/** Of each circle of dependencies, from the first of its names on. */
export function checkCycles(items: readonly Item[], report: Report): void {
  const byName = new Map(items.map((item) => [String(item.value["name"]), item]));
  const needs = (name: string): string[] =>
    ((byName.get(name)?.value["dependsOn"] ?? []) as { readonly schedule: string }[]).map(({ schedule }) => schedule).filter((each) => byName.has(each));
  const done = new Set<string>();
  /** The way on which the search is: each name with those that are still to be looked at from there. */
  const way: { readonly name: string; readonly left: string[] }[] = [];
  const places = new Map<string, number>();
  const enter = (name: string): void => {
    places.set(name, way.length);
    way.push({ name, left: needs(name).reverse() });
  };
  for (const start of [...byName.keys()].filter((name) => needs(name).length > 0).sort()) {
    if (!done.has(start)) enter(start);
    for (let last = way.at(-1); last; last = way.at(-1)) {
      const next = last.left.pop();
      const place = next === undefined ? undefined : places.get(next);
      if (next === undefined) {
        way.pop();
        places.delete(last.name);
        done.add(last.name);
      } else if (place !== undefined) tell(way.slice(place).map(({ name }) => name));
      else if (!done.has(next)) enter(next);
    }
  }

  function tell(circle: readonly string[]): void {
    const first = [...circle].sort()[0] as string;
    const at = circle.indexOf(first);
    const shown = [...circle.slice(at), ...circle.slice(0, at), first];
    const names = shown.length > 12 ? [...shown.slice(0, 10), "…", first] : shown;
    report.error(
      "HSE020",
      (byName.get(first) as Item).origin,
      ["dependsOn"],
      `schedules wait for each other: ${names.join(" -> ")}`,
      "one of these dependencies must go",
    );
  }
}

/** Each path was left by one VM and taken by one: of two that claim one history, the other would be exported by nobody. */
export function checkRenames(renames: readonly RenameSpec[], report: Report): void {
  const seen = { vm: new Map<string, Origin>(), formerly: new Map<string, Origin>() };
  for (const { vm, formerly, origin } of renames) {
    if (vm === formerly) report.error("HSE030", origin, ["formerly"], `${vm} is renamed to itself`, "name the path that it had before");
    for (const [key, path] of [
      ["vm", vm],
      ["formerly", formerly],
    ] as const) {
      const first = seen[key].get(path);
      if (!first) seen[key].set(path, origin);
      else
        report.error(
          "HSE030",
          origin,
          [key],
          `${path} stands twice as ${key}`,
          key === "vm" ? "a VM had one path before" : "only one VM can have been there: the others are new",
          () => ({ file: first.file, line: report.lineOf(first), label: "the first one stands here" }),
        );
    }
  }
}

/** Exports below a local provider would be machines of its next inventory, and be exported in turn. */
export function checkPlaces(providers: readonly ProviderSpec[], destinations: readonly DestinationSpec[], report: Report): void {
  for (const destination of destinations) {
    const path = destination.url.startsWith("file://") ? destination.url.slice("file://".length) : undefined;
    const around =
      path === undefined
        ? undefined
        : providers.find((each) => (each.type === "local" || each.type === "qemu") && (path === each.path || path.startsWith(`${each.path}/`)));
    if (around)
      report.error(
        "HSE025",
        destination.origin,
        destination.inline ? [] : ["url"],
        `the destination lies inside the folder of provider ${around.name}`,
        "its exports would be taken for machines; name a folder outside",
      );
  }
}
