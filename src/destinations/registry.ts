import type { DestinationAddress } from "../model/desired.ts";
import { HypersdkError } from "../model/errors.ts";
import type { Random } from "../model/ports.ts";
import type { EncryptionRef, SecretRef } from "../model/secret.ts";
import type { Destination, Key } from "./destination.ts";

/** One line for each kind of store, by the scheme of its URL. */
const kinds: Readonly<Record<string, (spec: DestinationAddress, random: Random) => Promise<Destination>>> = {
  file: async (spec, random) => (await import("./file/file-destination.ts")).fileDestination(spec, random),
};

/** @param readSecret called when a repository there turns out to need its key */
export async function openDestination(spec: DestinationAddress, random: Random, readSecret: (ref: SecretRef) => string): Promise<Destination> {
  const scheme = spec.url.slice(0, spec.url.indexOf(":"));
  const open = kinds[scheme];
  if (!open) throw new HypersdkError("NotAvailableYet", `a destination at ${scheme}:// is not available yet`);
  const destination = await open(spec, random);
  const { encryption, otherKeys = [] } = spec;
  if (!encryption && otherKeys.length === 0) return destination;
  const keyOf = ({ key, recipients }: EncryptionRef): Key => ({ secret: () => (key ? readSecret(key) : refuse(spec)), recipients });
  return { ...destination, encryption: { ...(encryption ? { sealing: keyOf(encryption) } : {}), others: otherKeys.map(keyOf) } };
}

function refuse({ name }: DestinationAddress): never {
  throw new HypersdkError("KeyRefused", `${name} has recipients, and no key`, {
    hint: "an export needs encryption.key: a passphrase, or an age identity",
  });
}
