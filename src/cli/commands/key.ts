import { resolve } from "node:path";
import type { Destination } from "../../destinations/destination.ts";
import { readSecret } from "../../files/read-secret.ts";
import { HypersdkError } from "../../model/errors.ts";
import { addSlot, isRecipient, type KeySlot, listSlots, opens, slotPath, slotsOpened, unlock } from "../../repository/keys.ts";
import { Repository } from "../../repository/repository.ts";
import { printable } from "../../ui/style.ts";
import { renderTable } from "../../ui/table.ts";
import { adapters, clock } from "../compose.ts";
import type { Io } from "../io.ts";
import { type RepositoryOptions, repositoryAddresses } from "./repository.ts";

interface AddOptions extends RepositoryOptions {
  readonly newKeyFile?: string;
  readonly recipient?: string;
}

/** The ways into an encrypted repository, which a key that opens none of them is no reason not to show. */
export async function keyList(options: RepositoryOptions, io: Io): Promise<number> {
  const { destination, repository, slots } = await sealedRepository(options, io);
  const opened = destination.encryption ? await slotsOpened(destination, slots) : [];
  const rows = slots.map((slot) => ({ ...shownOf(slot), isUsed: opened.includes(slot) }));
  const keyProblem = await whyNone(destination, repository);
  if (io.json) io.result("key-list", { destination: destination.spec.name, repository, slots: rows, keyProblem });
  else {
    io.out(
      renderTable(
        ["SLOT", "KIND", "RECIPIENT", "CREATED", ""],
        rows.map(({ id, kind, recipient, createdAt, isUsed }) => [id, kind, recipient ?? "", createdAt, isUsed ? "opened by the key at hand" : ""]),
      ),
    );
    if (keyProblem !== null) io.err(`${io.errStyle.yellow("warning")}: ${printable(keyProblem)}\n`);
  }
  return 0;
}

/** One more way in: a passphrase, an age identity, or the recipient of somebody else's. */
export async function keyAdd(options: AddOptions, io: Io): Promise<number> {
  const { newKeyFile, recipient } = options;
  if ((newKeyFile === undefined) === (recipient === undefined)) throw new HypersdkError("Usage", "which key? say --new-key-file FILE or --recipient age1…");
  if (recipient !== undefined && !isRecipient(recipient)) throw new HypersdkError("Usage", `${JSON.stringify(recipient)} is no recipient of age`);
  const { destination, repository, slots } = await sealedRepository(options, io);
  const { name } = destination.spec;
  const masterKey = await unlock(destination, repository);
  const secret = recipient ?? readSecret({ kind: "file", path: resolve(io.cwd, newKeyFile as string) }, io.env);
  for (const slot of slots) {
    if (recipient === undefined ? !(await opens(slot, secret)) : slot.kind !== "age" || slot.recipient !== recipient) continue;
    throw new HypersdkError("AlreadyExists", `it opens ${name} already, by slot ${slot.id}`);
  }
  const path = await addSlot(destination, repository, masterKey, secret, clock.now());
  const id = path.slice(path.lastIndexOf("/") + 1, -".json".length);
  if (io.json) io.result("key-add", { destination: name, slot: id });
  else io.out(`slot ${id} opens ${name} from now on\n`);
  return 0;
}

/** Takes one way in away. Who had the key before can still read copies of what was there then. */
export async function keyRemove(id: string, options: RepositoryOptions, io: Io): Promise<number> {
  const { destination, repository, slots } = await sealedRepository(options, io);
  const [chosen, ...more] = slots.filter((slot) => slot.id.startsWith(id));
  if (!chosen || more.length > 0)
    throw new HypersdkError("NotFound", chosen ? `${more.length + 1} slots begin with ${id}` : `no slot begins with ${JSON.stringify(id)}`, {
      hint: "hypersdk key list shows which there are",
    });
  await unlock(destination, repository);
  const others = slots.filter((slot) => slot !== chosen);
  if ((await slotsOpened(destination, others)).length === 0)
    throw new HypersdkError("Usage", "this is the only slot that the key at hand opens", {
      hint: "add the new key, and remove this one with that: --key-file",
    });
  await destination.remove(slotPath(chosen.id));
  if (io.json) io.result("key-remove", { destination: destination.spec.name, slot: chosen.id });
  else io.out(`slot ${chosen.id} of ${destination.spec.name} is removed\n`);
  return 0;
}

/** The one that was named, or the only one that there is. `repository` is its id. */
async function sealedRepository(
  options: RepositoryOptions,
  io: Io,
): Promise<{ readonly destination: Destination; readonly repository: string; readonly slots: readonly KeySlot[] }> {
  const found: { readonly destination: Destination; readonly repository: string }[] = [];
  const open: string[] = [];
  for (const address of await repositoryAddresses(options, io)) {
    const destination = await adapters.openDestination(address);
    const config = await Repository.configAt(destination);
    if (config?.encryption) found.push({ destination, repository: config.id });
    else if (config) open.push(address.name);
  }
  const [chosen, ...more] = found;
  if (more.length > 0) throw new HypersdkError("Usage", "the files have several encrypted repositories", { hint: "name one with --destination" });
  if (!chosen)
    throw open.length > 0
      ? new HypersdkError("Usage", `the repository at ${open.join(", ")} is not encrypted`)
      : new HypersdkError(
          "NotFound",
          options.destination === undefined ? "no destination of the files holds a repository" : `${options.destination} holds no repository`,
        );
  return { ...chosen, slots: await listSlots(chosen.destination, chosen.repository) };
}

/** Why no key opens a repository; null where one does. */
async function whyNone(destination: Destination, repository: string): Promise<string | null> {
  try {
    await unlock(destination, repository);
    return null;
  } catch (error) {
    if (!(error instanceof HypersdkError)) throw error;
    return error.hint === undefined ? error.message : `${error.message}: ${error.hint}`;
  }
}

function shownOf(slot: KeySlot): { readonly id: string; readonly kind: string; readonly createdAt: string; readonly recipient?: string } {
  const { id, kind, createdAt } = slot;
  return { id, kind, createdAt, ...(slot.kind === "age" ? { recipient: slot.recipient } : {}) };
}
