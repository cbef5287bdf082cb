import { resolve } from "node:path";
import { readSecret } from "../../files/read-secret.ts";
import { HypersdkError } from "../../model/errors.ts";
import { addSlot, isRecipient, type KeySlot, listSlots, opens, slotPath, unlock } from "../../repository/keys.ts";
import type { Repository } from "../../repository/repository.ts";
import { renderTable } from "../../ui/table.ts";
import { clock } from "../compose.ts";
import type { Io } from "../io.ts";
import { type RepositoryOptions, repositories } from "./repository.ts";

interface AddOptions extends RepositoryOptions {
  readonly newKeyFile?: string;
  readonly recipient?: string;
}

/** The ways into an encrypted repository. */
export async function keyList(options: RepositoryOptions, io: Io): Promise<number> {
  const { repository, slots, secret } = await sealedRepository(options, io);
  const rows = await Promise.all(slots.map(async (slot) => ({ ...shownOf(slot), isUsed: await opens(slot, secret) })));
  if (io.json) io.result("key-list", { destination: repository.destination.spec.name, repository: repository.config.id, slots: rows });
  else
    io.out(
      renderTable(
        ["SLOT", "KIND", "RECIPIENT", "CREATED", ""],
        rows.map(({ id, kind, recipient, createdAt, isUsed }) => [id, kind, recipient ?? "", createdAt, isUsed ? "opened by the key at hand" : ""]),
      ),
    );
  return 0;
}

/** One more way in: a passphrase, an age identity, or the recipient of somebody else's. */
export async function keyAdd(options: AddOptions, io: Io): Promise<number> {
  const { newKeyFile, recipient } = options;
  if ((newKeyFile === undefined) === (recipient === undefined)) throw new HypersdkError("Usage", "which key? say --new-key-file FILE or --recipient age1…");
  if (recipient !== undefined && !isRecipient(recipient)) throw new HypersdkError("Usage", `${JSON.stringify(recipient)} is no recipient of age`);
  const { repository } = await sealedRepository(options, io);
  const { destination, config } = repository;
  const secret = recipient ?? readSecret({ kind: "file", path: resolve(io.cwd, newKeyFile as string) }, io.env);
  const path = await addSlot(destination, config.id, await unlock(destination, config.id), secret, clock.now());
  const id = path.slice(path.lastIndexOf("/") + 1, -".json".length);
  if (io.json) io.result("key-add", { destination: destination.spec.name, slot: id });
  else io.out(`slot ${id} opens ${destination.spec.name} from now on\n`);
  return 0;
}

/** Takes one way in away. Who had the key before can still read copies of what was there then. */
export async function keyRemove(id: string, options: RepositoryOptions, io: Io): Promise<number> {
  const { repository, slots, secret } = await sealedRepository(options, io);
  const { destination } = repository;
  const [chosen, ...more] = slots.filter((slot) => slot.id.startsWith(id));
  if (!chosen || more.length > 0)
    throw new HypersdkError("NotFound", chosen ? `${more.length + 1} slots begin with ${id}` : `no slot begins with ${JSON.stringify(id)}`, {
      hint: "hypersdk key list shows which there are",
    });
  const others = await Promise.all(slots.filter((slot) => slot !== chosen).map((slot) => opens(slot, secret)));
  if (!others.includes(true))
    throw new HypersdkError("Usage", "this is the only slot that the key at hand opens", {
      hint: "add the new key, and remove this one with that: --key-file",
    });
  await destination.remove(slotPath(chosen.id));
  if (io.json) io.result("key-remove", { destination: destination.spec.name, slot: chosen.id });
  else io.out(`slot ${chosen.id} of ${destination.spec.name} is removed\n`);
  return 0;
}

async function sealedRepository(
  options: RepositoryOptions,
  io: Io,
): Promise<{ readonly repository: Repository; readonly slots: readonly KeySlot[]; readonly secret: string }> {
  const [repository, ...more] = await repositories(options, io);
  if (!repository || more.length > 0) throw new HypersdkError("Usage", "the files have several repositories", { hint: "name one with --destination" });
  const { destination, config } = repository;
  if (!config.encryption || !destination.encryption) throw new HypersdkError("Usage", `the repository at ${destination.spec.name} is not encrypted`);
  return { repository, slots: await listSlots(destination, config.id), secret: destination.encryption.key() };
}

function shownOf(slot: KeySlot): { readonly id: string; readonly kind: string; readonly createdAt: string; readonly recipient?: string } {
  const { id, kind, createdAt } = slot;
  return { id, kind, createdAt, ...(slot.kind === "age" ? { recipient: slot.recipient } : {}) };
}
