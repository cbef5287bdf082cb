import { createHash } from "node:crypto";

/** A JSON document that says what it should be: SHA-256 over the compact JSON of the rest, its members in the order of the file. */
export type WithDigest<T> = T & { readonly digest: string };

export function withDigest<T extends object>(value: T): WithDigest<T> {
  return { ...value, digest: digestOf(value) };
}

/** Whether a document that was read is what was written. */
export function isAsWritten(value: object): boolean {
  const { digest, ...rest } = value as { readonly digest?: unknown };
  return digest === digestOf(rest);
}

function digestOf(value: object): string {
  return createHash("sha256").update(JSON.stringify(value)).digest("hex");
}
