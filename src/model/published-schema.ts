import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import type { Ajv2020, ErrorObject, ValidateFunction } from "ajv/dist/2020.js";

export type { ErrorObject };

const validators = new Map<string, ValidateFunction>();

/**
 * The check of a schema under `schemas/`: what is published is what is used. Loading and compiling takes a tenth of a second, so
 * it happens when something is first checked, not when the program starts.
 */
export function publishedSchema(name: "infrastructure" | "vmbackup" | "manifest" | "plan-file", others: readonly string[] = []): ValidateFunction {
  let validate = validators.get(name);
  if (!validate) {
    const { Ajv2020: Ajv } = createRequire(import.meta.url)("ajv/dist/2020.js") as { Ajv2020: typeof Ajv2020 };
    const ajv = new Ajv({
      allErrors: name === "infrastructure" || name === "vmbackup",
      verbose: true,
      allowUnionTypes: true,
      strictTypes: false,
      strictRequired: false,
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
