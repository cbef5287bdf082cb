/**
 * JSON with sorted keys and no spaces, so that equal values have equal bytes: what hashes and comparisons stand on.
 * `undefined` members are left out, as JSON.stringify does. What is in order already, as decoded specs are, is not copied.
 */
export function canonicalJson(value: unknown): string {
  return JSON.stringify(isOrdered(value) ? value : ordered(value)) ?? "null";
}

function isOrdered(value: unknown): boolean {
  if (value === null || typeof value !== "object") return true;
  if (Array.isArray(value)) {
    for (const item of value) if (!isOrdered(item)) return false;
    return true;
  }
  let previous = "";
  for (const key in value) {
    if (key < previous || !isOrdered((value as Record<string, unknown>)[key])) return false;
    previous = key;
  }
  return true;
}

function ordered(value: unknown): unknown {
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map(ordered);
  const object = value as Record<string, unknown>;
  return Object.fromEntries(
    Object.keys(object)
      .sort()
      .map((key) => [key, ordered(object[key])]),
  );
}
