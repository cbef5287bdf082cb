import type { DestinationAddress } from "../model/desired.ts";
import { HypersdkError } from "../model/errors.ts";
import type { Random } from "../model/ports.ts";
import type { EncryptionRef, SecretRef } from "../model/secret.ts";
import type { Destination } from "./destination.ts";

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
  const [sealing, ...others] = spec.encryption ? [spec.encryption] : (spec.keysOfCopies ?? []);
  if (!sealing) return destination;
  const refuse = (): never => {
    throw new HypersdkError("KeyRefused", `${spec.name} has recipients, and no key`, {
      hint: "an export needs encryption.key: a passphrase, or an age identity",
    });
  };
  const keyOf =
    ({ key }: EncryptionRef) =>
    (): string =>
      key ? readSecret(key) : refuse();
  return { ...destination, encryption: { key: keyOf(sealing), others: others.map(keyOf), recipients: spec.encryption?.recipients ?? [] } };
}
