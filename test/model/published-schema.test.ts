import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { Ajv2020, type ValidateFunction } from "ajv/dist/2020.js";
import { describe, expect, it } from "vitest";
import { parse } from "yaml";
import { type CheckedSchema, checkedSchemas, compileSchema } from "../../src/model/published-schema.ts";

const root = join(import.meta.dirname, "../..");
const text = (path: string): string => readFileSync(join(root, path), "utf8");
const good: Readonly<Record<CheckedSchema, unknown>> = {
  infrastructure: parse(text("examples/whole/infrastructure.yaml")),
  vmbackup: parse(text("examples/vmbackup/web.yaml")),
  manifest: JSON.parse(text("test/fixtures/repository-v1/points/675b128bc4d0906444afd7b85eaa3ba5/20261121T101438Z-dad196cf.json")),
  "plan-file": { formatVersion: 1, type: "plan-file", tool: "0", digest: "0".repeat(64), plan: { formatVersion: 1 } },
};

describe.each(Object.keys(checkedSchemas) as CheckedSchema[])("the check of %s that a build brings", (name) => {
  const { validate } = compileSchema(name);

  it("finds what is compiled from the schema finds, in a good document and in every way to spoil one place of it", () => {
    const path = join(root, `dist/schemas/${name}.cjs`);
    expect(existsSync(path), "npm run build").toBe(true);
    const built = createRequire(import.meta.url)(path) as ValidateFunction;
    let refused = 0;
    for (const document of [good[name], ...spoiled(good[name]), null, [], "x"]) {
      const isGood = validate(document);
      expect(built(document)).toBe(isGood);
      expect(built.errors).toEqual(validate.errors);
      refused += isGood ? 0 : 1;
    }
    expect(refused).toBeGreaterThan(5);
  });

  it("comes from a schema that is one", () => {
    const ajv = new Ajv2020({ strict: false });
    expect(ajv.validateSchema(JSON.parse(text(`schemas/${name}.schema.json`))), ajv.errorsText()).toBe(true);
  });
});

/** The document with each of its values in turn replaced, left out or joined by an unknown neighbour. */
function* spoiled(value: unknown): Generator<unknown> {
  yield* [null, 0, "", {}, [0]];
  if (Array.isArray(value)) for (const [i, item] of value.entries()) for (const other of spoiled(item)) yield value.with(i, other);
  else if (typeof value === "object" && value !== null) {
    yield { ...value, unknown: 1 };
    for (const [key, item] of Object.entries(value)) {
      yield Object.fromEntries(Object.entries(value).filter(([other]) => other !== key));
      for (const other of spoiled(item)) yield { ...value, [key]: other };
    }
  }
}
