import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Ajv2020, type ValidateFunction } from "ajv/dist/2020.js";
import { expect } from "vitest";

const folder = join(import.meta.dirname, "..", "..", "schemas");
const read = (name: string): object => JSON.parse(readFileSync(join(folder, `${name}.schema.json`), "utf8")) as object;
const ajv = new Ajv2020({ allowUnionTypes: true, strictTypes: false, strictRequired: false, allErrors: true });
ajv.addSchema(read("plan"));
const validators = new Map<string, ValidateFunction>();

/** Fails unless `value` is what the published schema says. @returns the value, for looking into */
export function conforms<T>(name: "results" | "events" | "manifest" | "plan-file", value: unknown): T {
  let validate = validators.get(name);
  if (!validate) validators.set(name, (validate = ajv.compile(read(name))));
  const type = (value as { type?: string }).type;
  const relevant = validate(value) ? [] : (validate.errors ?? []).filter((error) => error.keyword !== "const" && error.keyword !== "oneOf");
  expect(validate(value), `${type}: ${JSON.stringify(relevant.slice(0, 5))} ${JSON.stringify(value).slice(0, 400)}`).toBe(true);
  return value as T;
}

/** The one JSON document on stdout, checked against the published schema of results. */
export function result<T>(stdout: string): T {
  return conforms<T>("results", JSON.parse(stdout));
}
