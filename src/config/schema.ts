import { nearestName } from "../model/nearest.ts";
import { type ErrorObject, publishedSchema } from "../model/published-schema.ts";
import { redactedUrls } from "./redact.ts";
import type { Pointer } from "./source-file.ts";

/** What the schema has against a value, in the words of this program. */
export interface ShapeProblem {
  readonly code: string;
  readonly pointer: Pointer;
  /** True where the key, not the value, is what is wrong. */
  readonly atKey: boolean;
  readonly message: string;
  readonly label: string;
}

/** Checks a document against one of the published schemas: `infrastructure` or `vmbackup`. */
export function shapeProblems(schema: "infrastructure" | "vmbackup", value: unknown): ShapeProblem[] {
  const validate = publishedSchema(schema);
  if (validate(value)) return [];
  const problems = new Map<string, ShapeProblem>();
  for (const error of validate.errors ?? []) {
    const problem = explain(error);
    const key = JSON.stringify(problem.pointer);
    const known = problems.get(key);
    // of several complaints about one value the type is the one that explains the others
    if (!known || (known.code !== "HSE008" && problem.code === "HSE008")) problems.set(key, problem);
  }
  return [...problems.values()];
}

function explain(error: ErrorObject): ShapeProblem {
  const pointer = error.instancePath
    .split("/")
    .slice(1)
    .map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"))
    .map((part) => (/^\d+$/.test(part) ? Number(part) : part));
  const name = fieldName(pointer);
  const shown = show(error.data);
  switch (error.keyword) {
    case "additionalProperties": {
      const key = String(error.params["additionalProperty"]);
      const known = Object.keys((error.parentSchema?.["properties"] as object | undefined) ?? {});
      const near = nearestName(key, known);
      return {
        code: "HSE006",
        pointer: [...pointer, key],
        atKey: true,
        message: `unknown key "${key}"`,
        label: near ? `did you mean "${near}"?` : `known here: ${known.slice(0, 12).join(", ")}${known.length > 12 ? ", …" : ""}`,
      };
    }
    case "required": {
      const key = String(error.params["missingProperty"]);
      return { code: "HSE007", pointer, atKey: false, message: `"${key}" is missing`, label: `${name === "" ? "the document" : name} needs "${key}"` };
    }
    case "type": {
      const wanted = ([] as string[])
        .concat(error.params["type"] as string | string[])
        .map(typeWord)
        .join(" or ");
      return { code: "HSE008", pointer, atKey: false, message: `${name} is ${typeWord(typeOf(error.data))}`, label: `must be ${wanted}` };
    }
    case "enum":
    case "const": {
      const allowed = ([] as unknown[]).concat(error.params["allowedValues"] ?? error.params["allowedValue"]).map(String);
      const near = typeof error.data === "string" ? nearestName(error.data, allowed) : undefined;
      return {
        code: "HSE009",
        pointer,
        atKey: false,
        message: `${name} cannot be ${shown}`,
        label: near ? `did you mean "${near}"?` : `one of: ${allowed.join(", ")}`,
      };
    }
    case "pattern":
      return grammar(error, pointer, name, shown);
    default:
      return { code: "HSE009", pointer, atKey: false, message: `${name} cannot be ${shown}`, label: String(error.message) };
  }
}

/** Which value grammar was broken shows in the schema's definition or its pattern. */
function grammar(error: ErrorObject, pointer: Pointer, name: string, shown: string): ShapeProblem {
  const definition = /#\/\$defs\/(\w+)\//.exec(error.schemaPath)?.[1];
  const value = String(error.data);
  if (definition === "secret") {
    return {
      code: "HSE019",
      pointer,
      atKey: false,
      message: `${name} holds a secret in plain text`,
      label: "write ${env:NAME} or ${file:PATH}; the file in git must not hold it",
    };
  }
  if (pointer.includes("retention")) {
    const label = /^\d+m$/.test(value)
      ? `months are counted, not measured: retention: {monthly: ${value.slice(0, -1)}}`
      : "a duration of h, d, w or y, such as 30d";
    return { code: "HSE018", pointer, atKey: false, message: `${name} cannot be ${shown}`, label };
  }
  const hint: Readonly<Record<string, string>> = {
    name: "lower-case letters, digits and hyphens, at most 63, such as daily-backup",
    duration: "an integer and s, m, h, d, w or y, such as 90s, 1h30m or 7d",
    timeOfDay: 'a time of day from "00:00" to "23:59"',
    priority: "0 to 100, or low, normal, high, critical",
    vmPath: "a VM path begins with /, such as /datacenter/vm/db-01",
    pattern: "a pattern begins with /, such as /datacenter/vm/prod/*",
  };
  return {
    code: definition === "duration" ? "HSE018" : "HSE009",
    pointer,
    atKey: false,
    message: `${name} cannot be ${shown}`,
    label: hint[definition ?? ""] ?? `must match ${String(error.params["pattern"])}`,
  };
}

function fieldName(pointer: Pointer): string {
  const keys = pointer.filter((step) => typeof step === "string");
  return keys.length === 0 ? "" : `"${keys.slice(-2).join(".")}"`;
}

function show(value: unknown): string {
  if (typeof value === "object" && value !== null) return typeWord(typeOf(value));
  if (typeof value === "string" && value.length > 500) return `a text of ${value.length} characters`;
  const text = JSON.stringify(typeof value === "string" ? redactedUrls(value) : value) ?? "nothing";
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
}

function typeOf(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "array";
  return Number.isInteger(value) ? "integer" : typeof value;
}

function typeWord(type: string): string {
  const words: Readonly<Record<string, string>> = {
    object: "a mapping",
    array: "a list",
    string: "text",
    integer: "a whole number",
    number: "a number",
    boolean: "true or false",
    null: "empty",
  };
  return words[type] ?? type;
}
