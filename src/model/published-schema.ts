import { readFileSync } from "node:fs";
import type { ErrorObject, ValidateFunction } from "ajv/dist/2020.js";
import { lazily } from "./lazily.ts";

export type { ErrorObject };

const ajv2020 = lazily<typeof import("ajv/dist/2020.js")>("ajv/dist/2020.js");
const validators = new Map<string, ValidateFunction>();

/**
 * The check of a schema under `schemas/`: what is published is what is used. Loading and compiling takes a tenth of a second, so
 * it happens when something is first checked, not when the program starts.
 */
export function publishedSchema(name: "infrastructure" | "vmbackup" | "manifest" | "plan-file", others: readonly string[] = []): ValidateFunction {
  let validate = validators.get(name);
  if (!validate) {
    const ajv = new (ajv2020().Ajv2020)({
      allErrors: name === "infrastructure" || name === "vmbackup",
      verbose: true,
      allowUnionTypes: true,
      strictTypes: false,
      strictRequired: false,
      // a test holds the schemas against their meta-schema; at run time that is half of the time they take
      validateSchema: false,
      meta: false,
      code: { optimize: false },
    });
    for (const other of others) ajv.addSchema(read(other));
    validate = ajv.compile(read(name));
    validators.set(name, validate);
  }
  return validate;
}

function read(name: string): object {
  return JSON.parse(readFileSync(new URL(`../../schemas/${name}.schema.json`, import.meta.url), "utf8")) as object;
}
