import { resolve } from "node:path";
import { parseDestinationUrl } from "../../config/destination-url.ts";
import { otherKeys } from "../../config/encryption.ts";
import type { DesiredState, DestinationAddress } from "../../model/desired.ts";
import { HypersdkError } from "../../model/errors.ts";
import { nearestName } from "../../model/nearest.ts";
import type { SecretRef } from "../../model/secret.ts";

/** Where the key of an encrypted repository is, for those who have no files that say so. */
export interface KeyOptions {
  /** In place of the keys of the files. */
  readonly keyFile?: string;
  /** Beside them. */
  readonly furtherKeyFile?: string;
}

/** An address with the key that was named on the command line, where one was. */
export function withKey<T extends DestinationAddress>(address: T, { keyFile, furtherKeyFile }: KeyOptions, cwd: string): T {
  const { encryption, otherKeys = [] } = address;
  const keyIn = (path: string): SecretRef => ({ kind: "file", path: resolve(cwd, path) });
  if (furtherKeyFile !== undefined) return { ...address, otherKeys: [...otherKeys, { key: keyIn(furtherKeyFile), recipients: [] }] };
  if (keyFile === undefined) return address;
  return { ...address, otherKeys: [], encryption: { key: keyIn(keyFile), recipients: encryption?.recipients ?? [] } };
}

/** A destination that a person named: by its name in the files, or by its URL, which needs no files. */
export function destinationNamed(text: string, desired: DesiredState | undefined, options: KeyOptions, cwd: string): DestinationAddress {
  return withKey(addressOf(text, desired, cwd), options, cwd);
}

/** A place that the files do not name: what lies there, if it is encrypted, has a key of what was copied. */
export function elsewhere(address: Pick<DestinationAddress, "name" | "url">, desired: DesiredState | undefined): DestinationAddress {
  return { ...address, ...otherKeys((desired?.destinations ?? []).map(({ encryption }) => encryption)) };
}

function addressOf(text: string, desired: DesiredState | undefined, cwd: string): DestinationAddress {
  const all = desired?.destinations ?? [];
  const named = all.find(({ name }) => name === text);
  if (named) return named;
  if (text.includes(":")) {
    const url = parseDestinationUrl(text, cwd);
    if (!url.ok) throw new HypersdkError("Usage", `${JSON.stringify(text)} is no destination: ${url.message}`, { hint: url.label });
    return all.find((each) => each.url === url.url) ?? elsewhere({ name: text, url: url.url }, desired);
  }
  const near = nearestName(text, new Set(all.map(({ name }) => name)));
  throw new HypersdkError("NotFound", `no destination is named "${text}"`, { hint: near ? `did you mean ${near}?` : "hypersdk get destinations lists them" });
}
