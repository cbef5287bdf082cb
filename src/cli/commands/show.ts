import { readFileSync, statSync } from "node:fs";
import { errnoOf, errnoText, HypersdkError } from "../../model/errors.ts";
import { decodePlanFile, type PlanFile } from "../../plan/plan-file.ts";
import { renderPlan } from "../../ui/plan-view.ts";
import type { Io } from "../io.ts";
import { toolVersion } from "../tool-version.ts";
import { timezonesOf } from "../view.ts";

/** Prints a saved plan; says when another version made it, and never refuses for that. */
export async function show(file: string, _options: object, io: Io): Promise<number> {
  const saved = readPlanFile(file);
  if (saved.tool !== toolVersion())
    io.err(`${io.errStyle.yellow("warning")}: version ${saved.tool} made this plan, this is ${toolVersion()}: apply would refuse it\n`);
  if (io.json) io.result("plan", { digest: saved.digest, plan: saved.plan });
  else io.out(`plan of ${saved.plan.at}\n${renderPlan(saved.plan, { style: io.style, summary: false, timezoneOf: timezonesOf(undefined, saved.plan) })}`);
  return 0;
}

export function readPlanFile(path: string): PlanFile {
  try {
    if (statSync(path).isFile() === false) throw new HypersdkError("PlanInvalid", `${path} is no file`);
    return decodePlanFile(path, readFileSync(path));
  } catch (error) {
    const errno = errnoOf(error);
    throw errno && !(error instanceof HypersdkError) ? new HypersdkError("NotFound", `cannot read ${path}: ${errnoText(error)}`, { cause: error }) : error;
  }
}
