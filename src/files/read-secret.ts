import { readFileSync, statSync } from "node:fs";
import { errnoText, HypersdkError } from "../model/errors.ts";
import type { SecretRef } from "../model/secret.ts";

const maxSecretBytes = 64 * 1024;

/** The secret that a reference names, without the line ends around it. @throws KeyRefused when it is not there or empty; never with the secret in it */
export function readSecret(ref: SecretRef, env: Readonly<Record<string, string | undefined>>): string {
  const secret = (ref.kind === "env" ? env[ref.name] : contentOf(ref.path))?.trim();
  if (!secret) throw new HypersdkError("KeyRefused", ref.kind === "env" ? `the environment variable ${ref.name} is not set` : `${ref.path} is empty`);
  return secret;
}

function contentOf(path: string): string {
  try {
    if (statSync(path).size > maxSecretBytes) throw new HypersdkError("KeyRefused", `${path} is too large for a key`);
    return readFileSync(path, "utf8");
  } catch (error) {
    if (error instanceof HypersdkError) throw error;
    throw new HypersdkError("KeyRefused", `the key cannot be read: ${path}: ${errnoText(error)}`, { cause: error });
  }
}
