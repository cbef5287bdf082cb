import { createHash } from "node:crypto";
import { canonicalJson } from "../model/canonical-json.ts";
import { HypersdkError } from "../model/errors.ts";
import { publishedSchema } from "../model/published-schema.ts";
import type { Plan } from "./plan.ts";

/** A saved plan: what was approved, to be held against what is true when it is applied. */
export interface PlanFile {
  readonly formatVersion: 1;
  readonly type: "plan-file";
  readonly tool: string;
  readonly digest: string;
  readonly plan: Plan;
}

export function planDigest(plan: Plan): string {
  return createHash("sha256").update(canonicalJson(plan)).digest("hex");
}

/** What {@link encodePlanFile} begins with. */
export const planFileBegins: string = '{\n  "formatVersion": 1,\n  "type": "plan-file"';

export function encodePlanFile(plan: Plan, tool: string): string {
  const file: PlanFile = { formatVersion: 1, type: "plan-file", tool, digest: planDigest(plan), plan };
  return `${JSON.stringify(file, null, 2)}\n`;
}

/** Reads a plan file as hostile input: shape by schema, content by its digest. @throws PlanInvalid */
export function decodePlanFile(name: string, bytes: Buffer): PlanFile {
  const invalid = (why: string): HypersdkError =>
    new HypersdkError("PlanInvalid", `${name} is no plan file: ${why}`, { hint: "make a new one with `hypersdk plan --out FILE`" });
  if (bytes.length > 256 * 2 ** 20) throw invalid("it is larger than 256 MiB");
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString("utf8"));
  } catch {
    throw invalid("it is no JSON");
  }
  const validate = publishedSchema("plan-file");
  if (!validate(value)) throw invalid(`${validate.errors?.[0]?.instancePath || "/"} ${validate.errors?.[0]?.message}`);
  const file = value as PlanFile;
  if (planDigest(file.plan) !== file.digest) throw invalid("it was changed after it was written");
  return file;
}

/**
 * What moved between a saved plan and the same plan made now, in words; empty when it may be applied. Its exports and expiries
 * are an upper bound and are derived again, so they are not compared.
 */
export function whatMoved(saved: PlanFile, current: Plan, tool: string): string[] {
  const { plan } = saved;
  const moved: string[] = [];
  const isFresh = plan.lineage === "new" && current.serial === 0;
  if (plan.lineage !== current.lineage && !isFresh) moved.push("the plan was made for another state");
  else if (plan.serial !== current.serial) moved.push(`the state moved from serial ${plan.serial} to ${current.serial}`);
  if (plan.desiredDigest !== current.desiredDigest) moved.push("the files say something else now");
  if (saved.tool !== tool) moved.push(`the plan was made by version ${saved.tool}, this is ${tool}`);
  return moved;
}
