/**
 * Writes the checks of the schemas as code beside a build, `dist/schemas/*.cjs`: part of `npm run build`. They do what Ajv would
 * do at run time, without the tenth of a second that it takes to load it and to compile a schema.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import standalone from "ajv/dist/standalone/index.js";
import { type CheckedSchema, checkedSchemas, compileSchema } from "../src/model/published-schema.ts";

const folder = join(import.meta.dirname, "../dist/schemas");
mkdirSync(folder, { recursive: true });
for (const name of Object.keys(checkedSchemas) as CheckedSchema[]) {
  const { ajv, validate } = compileSchema(name, true);
  writeFileSync(join(folder, `${name}.cjs`), standalone.default(ajv, validate));
}
