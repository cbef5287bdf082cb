import { type Diagnostic, errorCount, sortDiagnostics } from "../config/diagnostic.ts";
import type { DesiredState, ScheduleSpec } from "../model/desired.ts";
import { HypersdkError } from "../model/errors.ts";
import { nearestName } from "../model/nearest.ts";
import { renderDiagnostics } from "../ui/diagnostics-view.ts";
import { plural } from "../ui/plan-view.ts";
import type { Io } from "./io.ts";
import { type Loaded, load, type SourceOptions } from "./load.ts";

/** An invalid configuration, with everything there is to say about it; printed where it is caught. */
export class ConfigInvalid extends HypersdkError {
  readonly diagnostics: readonly Diagnostic[];

  constructor(diagnostics: readonly Diagnostic[], message: string, hint?: string) {
    super("ConfigInvalid", message, hint === undefined ? {} : { hint });
    this.diagnostics = diagnostics;
  }
}

/** Loads what plan and apply work on: no errors, and nothing that this version would silently leave out. */
export async function loadDesired(options: SourceOptions, io: Io): Promise<Loaded & { readonly desired: DesiredState }> {
  const loaded = await load(options, io.env, io.cwd);
  const desired = carriedOut(loaded);
  const { diagnostics } = loaded;
  if (loaded.fileCount === 0 || desired.schedules.length + desired.policies.length + desired.destinations.length === 0) {
    io.err(
      `${io.errStyle.yellow("warning")}: no infrastructure documents were found${loaded.ignoredDocuments > 0 ? ` (${loaded.ignoredDocuments} other YAML documents ignored)` : ""}; \`hypersdk init\` writes a first one\n`,
    );
  }
  if (!io.quiet && !io.json && diagnostics.length > 0) io.err(`${renderDiagnostics(diagnostics, io.errStyle)}\n`);
  return { ...loaded, desired };
}

/** The desired state, if all of it can be carried out. @throws ConfigInvalid with every finding */
export function carriedOut(loaded: Loaded): DesiredState {
  const { desired, diagnostics } = loaded;
  const errors = diagnostics.filter(({ severity }) => severity === "error");
  if (!desired || errors.length > 0) throw new ConfigInvalid(diagnostics, `the configuration has ${plural(errorCount(errors), "error")}`);
  if (desired.notAvailable.length > 0) {
    const refused = desired.notAvailable.map(
      ({ what, origin }): Diagnostic => ({
        ...loaded
          .sourceOf(origin.file)
          .at(
            origin.pointer,
            origin.document,
            { severity: "error", code: "HSW010", message: `${what} is not available yet`, label: "remove it, or use a version that has it" },
            true,
          ),
      }),
    );
    throw new ConfigInvalid(
      sortDiagnostics(refused),
      `the configuration uses ${[...new Set(desired.notAvailable.map(({ what }) => what))].join(", ")}, which this version does not carry out`,
    );
  }
  return desired;
}

/** @throws NotFound, with the name that was probably meant */
export function scheduleNamed(name: string, { schedules }: DesiredState): ScheduleSpec {
  const schedule = schedules.find((each) => each.name === name);
  if (schedule) return schedule;
  const near = nearestName(
    name,
    schedules.map((each) => each.name),
  );
  throw new HypersdkError("NotFound", `no schedule is named "${name}"`, near ? { hint: `did you mean "${near}"?` } : {});
}
