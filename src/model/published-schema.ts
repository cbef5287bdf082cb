import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import type { Ajv2020, ErrorObject, ValidateFunction } from "ajv/dist/2020.js";
import { lazily } from "./lazily.ts";

export type { ErrorObject };

/** The schemas that are held against what is read, each with the others that it refers to. */
export const checkedSchemas = { infrastructure: [], vmbackup: [], manifest: [], "plan-file": ["plan"] } as const;
export type CheckedSchema = keyof typeof checkedSchemas;

const require = createRequire(import.meta.url);
const ajv2020 = lazily<typeof import("ajv/dist/2020.js")>("ajv/dist/2020.js");
const validators = new Map<CheckedSchema, ValidateFunction>();

/**
 * The check of a schema under `schemas/`: what is published is what is used. A build has it as code (`schemas/compile.ts`), as to
 * load Ajv and to compile a schema takes a tenth of a second; without one it is compiled when something is first checked.
 */
export function publishedSchema(name: CheckedSchema): ValidateFunction {
  let validate = validators.get(name);
  if (!validate) {
    const built = fileURLToPath(new URL(`../schemas/${name}.cjs`, import.meta.url));
    validate = existsSync(built) ? (require(built) as ValidateFunction) : compileSchema(name).validate;
    validators.set(name, validate);
  }
  return validate;
}

/** Compiles the check of a schema, and keeps its code where `source` asks for it. */
export function compileSchema(name: CheckedSchema, source = false): { readonly ajv: Ajv2020; readonly validate: ValidateFunction } {
  const ajv = new (ajv2020().Ajv2020)({
    // people write the first two, and want to know everything that is wrong at once
    allErrors: name === "infrastructure" || name === "vmbackup",
    verbose: true,
    allowUnionTypes: true,
    strictTypes: false,
    strictRequired: false,
    // a test holds the schemas against their meta-schema; at run time that is half of the time they take
    validateSchema: false,
    meta: false,
    code: { optimize: source, source },
  });
  for (const other of checkedSchemas[name]) ajv.addSchema(read(other));
  return { ajv, validate: ajv.compile(read(name)) };
}

function read(name: string): object {
  return JSON.parse(schemaText(name)) as object;
}

/** A schema as it is published. */
export function schemaText(name: string): string {
  return readFileSync(new URL(`../../schemas/${name}.schema.json`, import.meta.url), "utf8");
}
