import { errorCount } from "../../config/diagnostic.ts";
import { renderDiagnostics } from "../../ui/diagnostics-view.ts";
import { plural } from "../../ui/plan-view.ts";
import { exitCodes } from "../exit-codes.ts";
import type { Io } from "../io.ts";
import { load, type SourceOptions } from "../load.ts";

/** Every finding of the files, in file order. Reaches no provider and no destination. */
export async function validate(options: SourceOptions, io: Io): Promise<number> {
  const { diagnostics, desired, fileCount, ignoredDocuments } = await load(options, io.env, io.cwd);
  const errors = errorCount(diagnostics);
  const warnings = diagnostics.filter(({ severity }) => severity === "warning").length;
  if (io.json) io.result("validate", { valid: errors === 0, files: fileCount, ignoredDocuments, diagnostics });
  else {
    if (diagnostics.length > 0) io.out(`${renderDiagnostics(diagnostics, io.style)}\n`);
    const what = desired
      ? `${plural(desired.schedules.length, "schedule")}, ${desired.policies.length} ${desired.policies.length === 1 ? "policy" : "policies"}, ${plural(desired.destinations.length, "destination")}`
      : "not usable";
    const ignored = ignoredDocuments > 0 ? ` ${plural(ignoredDocuments, "other YAML document")} ignored.` : "";
    io.out(
      `${errors === 0 ? io.style.green("valid") : io.style.red("invalid")}: ${plural(fileCount, "file")}, ${what}. ${plural(errors, "error")}, ${plural(warnings, "warning")}.${ignored}\n`,
    );
  }
  return errors === 0 ? exitCodes.done : exitCodes.configInvalid;
}
