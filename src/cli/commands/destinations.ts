import { resolve } from "node:path";
import { parseDestinationUrl } from "../../config/destination-url.ts";
import type { DesiredState, DestinationAddress } from "../../model/desired.ts";
import { HypersdkError } from "../../model/errors.ts";
import { nearestName } from "../../model/nearest.ts";

/** Where the key of an encrypted repository is, for those who have no files that say so. */
export interface KeyOptions {
  readonly keyFile?: string;
}

/** An address with the key that was named on the command line, where one was. */
export function withKey<T extends DestinationAddress>(address: T, { keyFile }: KeyOptions, cwd: string): T {
  if (keyFile === undefined) return address;
  return { ...address, encryption: { recipients: address.encryption?.recipients ?? [], key: { kind: "file", path: resolve(cwd, keyFile) } } };
}

/**
 * A destination that no schedule writes to holds copies, and those are sealed with the key of what was copied: where the files know one key alone,
 * it is that. For those who open what is there; whoever makes a repository does not take a key that nobody named.
 */
export function withKeyOfCopies<T extends DestinationAddress>(address: T, desired: DesiredState | undefined): T {
  if (address.encryption || !desired) return address;
  const written = new Set(desired.schedules.map(({ destination }) => destination));
  if (desired.destinations.some(({ name, url }) => url === address.url && written.has(name))) return address;
  const keys = new Map(desired.destinations.flatMap(({ encryption }) => (encryption ? [[JSON.stringify(encryption), encryption] as const] : [])));
  const [encryption] = keys.values();
  return encryption && keys.size === 1 ? { ...address, encryption } : address;
}

/** A destination that a person named: by its name in the files, or by its URL, which needs no files. */
export function destinationNamed(text: string, desired: DesiredState | undefined, options: KeyOptions, cwd: string): DestinationAddress {
  return withKey(addressOf(text, desired, cwd), options, cwd);
}

function addressOf(text: string, desired: DesiredState | undefined, cwd: string): DestinationAddress {
  const all = desired?.destinations ?? [];
  const named = all.find(({ name }) => name === text);
  if (named) return named;
  if (text.includes(":")) {
    const url = parseDestinationUrl(text, cwd);
    if (!url.ok) throw new HypersdkError("Usage", `${JSON.stringify(text)} is no destination: ${url.message}`, { hint: url.label });
    return all.find((each) => each.url === url.url) ?? { name: text, url: url.url };
  }
  const near = nearestName(text, new Set(all.map(({ name }) => name)));
  throw new HypersdkError("NotFound", `no destination is named "${text}"`, { hint: near ? `did you mean ${near}?` : "hypersdk get destinations lists them" });
}
