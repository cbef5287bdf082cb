import { createHash, randomBytes, scrypt } from "node:crypto";
import type { Encrypter } from "age-encryption";
import type { Destination, Key } from "../destinations/destination.ts";
import { againWhileGone } from "../destinations/gone.ts";
import { isAsWritten, withDigest } from "../model/digest.ts";
import { HypersdkError } from "../model/errors.ts";
import type { Instant } from "../model/instant.ts";
import { damaged, keysFolder } from "./layout.ts";
import { masterKeyBytes, open, seal } from "./sealing.ts";

/**
 * A way into a sealed repository: the master key, wrapped. Slots come and go as objects of their own; the master key never changes, so that
 * whoever had it once can read what they have a copy of.
 */
export type KeySlot = PassphraseSlot | AgeSlot;

interface SlotBase {
  readonly formatVersion: 1;
  readonly id: string;
  /** A slot of another repository opens nothing here. */
  readonly repository: string;
  readonly createdAt: Instant;
  readonly digest: string;
}

interface PassphraseSlot extends SlotBase {
  readonly kind: "passphrase";
  /** Of scrypt (RFC 7914); `salt` and `wrapped` in base64. */
  readonly N: number;
  readonly r: number;
  readonly p: number;
  readonly salt: string;
  readonly wrapped: string;
}

interface AgeSlot extends SlotBase {
  readonly kind: "age";
  readonly recipient: string;
  /** The master key in hex, encrypted by age (age-encryption.org/v1), armored. */
  readonly wrapped: string;
}

/** 32 MiB and about a quarter of a second: OWASP's second choice of 2023, for machines that must stay under 256 MiB. */
const cost = { N: 2 ** 15, r: 8, p: 3 };
/** What a slot may ask of whoever opens it: 128 MiB. */
const maxCost = { Nr: 2 ** 20, p: 4 };
const minPassphrase = 12;
const maxSlotBytes = 64 * 1024;
const maxSlots = 64;

/** @param unreadable called with the path of one that was cut or forged, which is passed over: another may open */
export async function listSlots(destination: Destination, repository: string, unreadable: (path: string) => void = () => {}): Promise<KeySlot[]> {
  // of two that make a repository at once, the second takes its slots away again
  const read = await againWhileGone(async () => {
    const read: { readonly path: string; readonly slot: KeySlot | undefined }[] = [];
    for (const { path, bytes, isPartial, isLink } of await destination.list(keysFolder)) {
      if (isPartial || isLink || !path.endsWith(".json")) continue;
      read.push({ path, slot: bytes > maxSlotBytes ? undefined : slotOf(await destination.get(path, maxSlotBytes)) });
    }
    return read;
  });
  const slots: KeySlot[] = [];
  for (const { path, slot } of read) {
    if (!slot || slotPath(slot.id) !== path) unreadable(path);
    else if (slot.repository === repository) slots.push(slot);
  }
  // whoever can write to the store could have us stretch a secret for ever
  if (slots.length > maxSlots) throw damaged(`${keysFolder} of ${destination.spec.name}`, `it holds ${slots.length} slots, more than ${maxSlots}`);
  return slots;
}

export function slotPath(id: string): string {
  return `${keysFolder}/${id}.json`;
}

/** A new master key, with the slots that a destination's encryption asks for. @returns it, and the paths of the slots */
export async function makeKey(destination: Destination, repository: string, at: Instant): Promise<{ readonly masterKey: Buffer; readonly paths: string[] }> {
  const masterKey = randomBytes(masterKeyBytes);
  const { secret, recipients } = await sealingOf(destination);
  const paths = [await addSlot(destination, repository, masterKey, secret, at)];
  for (const recipient of recipients) paths.push(await addSlot(destination, repository, masterKey, recipient, at));
  unwrapped.set(cacheKey(repository, secret), masterKey);
  return { masterKey, paths };
}

/** What a new repository is sealed with. @throws KeyRefused when it cannot be had, or could not be used */
export async function sealingOf(destination: Destination): Promise<{ readonly secret: string; readonly recipients: readonly string[] }> {
  const sealing = destination.encryption?.sealing;
  if (!sealing) throw noKey(destination);
  const secret = sealing.secret();
  if (isRecipient(secret))
    throw new HypersdkError("KeyRefused", "the key is a recipient of age, which opens nothing", {
      hint: "name the identity as the key, and recipients beside it",
    });
  if ((await recipientOf(secret)) === undefined) requireLength(secret);
  for (const recipient of sealing.recipients) await encrypterFor(recipient);
  return { secret, recipients: sealing.recipients };
}

/** @param secret a passphrase, an age identity, or the recipient of one. @returns the path of the slot */
export async function addSlot(destination: Destination, repository: string, masterKey: Buffer, secret: string, createdAt: Instant): Promise<string> {
  const base = { formatVersion: 1, id: randomBytes(16).toString("hex"), repository, createdAt } as const;
  const recipient = isRecipient(secret) ? secret : await recipientOf(secret);
  const slot = recipient === undefined ? await passphraseSlot(base, masterKey, secret) : await ageSlot(base, masterKey, recipient);
  await destination.put(slotPath(base.id), `${JSON.stringify(slot, null, 2)}\n`, { exclusive: true });
  return slotPath(base.id);
}

/** Gives every recipient that the files name a slot, where it is their key that opens: those of another key have no say. */
export async function addMissingRecipients(destination: Destination, repository: string, at: Instant): Promise<void> {
  const wanted = destination.encryption?.sealing?.recipients ?? [];
  if (wanted.length === 0) return;
  const { key, masterKey } = await keyThatOpens(destination, repository);
  if (key !== destination.encryption?.sealing) return;
  const there = new Set((await listSlots(destination, repository)).map((slot) => (slot.kind === "age" ? slot.recipient : "")));
  for (const recipient of wanted) if (!there.has(recipient)) await addSlot(destination, repository, masterKey, recipient, at);
}

/** Puts the slot of the key that has opened the repository back, where it is gone. */
export async function restoreSlot(destination: Destination, repository: string, at: Instant): Promise<void> {
  const { secret, masterKey } = await keyThatOpens(destination, repository);
  for (const slot of await listSlots(destination, repository)) if (await opens(slot, secret)) return;
  await addSlot(destination, repository, masterKey, secret, at);
}

/** Master keys that were unwrapped by this process, by repository and hash of the secret: a passphrase is meant to take its time. */
const unwrapped = new Map<string, Buffer>();

/** Slots, by their digests, that a secret was seen not to open: which takes as long. */
const refused = new Map<string, Set<string>>();

function cacheKey(repository: string, secret: string): string {
  return `${repository} ${createHash("sha256").update(secret).digest("hex")}`;
}

/** @throws KeyRefused when there is no key, or none opens a slot */
export async function unlock(destination: Destination, repository: string): Promise<Buffer> {
  return (await keyThatOpens(destination, repository)).masterKey;
}

/** A key with what it opens. */
export interface FittingKey {
  readonly key: Key;
  readonly secret: string;
  readonly masterKey: Buffer;
}

/** The first of the keys at hand that opens a repository. @throws KeyRefused when there is none, or none opens */
export async function keyThatOpens(destination: Destination, repository: string): Promise<FittingKey> {
  const { secrets, missing } = secretsOf(destination);
  let slots: KeySlot[] | undefined;
  for (const { key, secret } of secrets) {
    const which = cacheKey(repository, secret);
    const masterKey = unwrapped.get(which) ?? (await unwrap((slots ??= await slotsThere(destination, repository)), secret, which));
    if (!masterKey) continue;
    unwrapped.set(which, masterKey);
    return { key, secret, masterKey };
  }
  throw noneOpens(destination, slots ?? (await slotsThere(destination, repository)), secrets.length, missing);
}

async function slotsThere(destination: Destination, repository: string): Promise<KeySlot[]> {
  const slots = await listSlots(destination, repository);
  if (slots.length === 0) throw damaged(`${keysFolder} of ${destination.spec.name}`, "no slot of it holds the repository's key");
  return slots;
}

async function unwrap(slots: readonly KeySlot[], secret: string, which: string): Promise<Buffer | undefined> {
  const tried = refused.get(which) ?? new Set();
  refused.set(which, tried);
  for (const slot of slots) {
    if (tried.has(slot.digest)) continue;
    const masterKey = await unwrapSlot(slot, secret);
    if (masterKey) return masterKey;
    tried.add(slot.digest);
  }
  return undefined;
}

/** Those of the slots that a key at hand opens. */
export async function slotsOpened(destination: Destination, slots: readonly KeySlot[]): Promise<KeySlot[]> {
  const { secrets } = secretsOf(destination);
  const opened: KeySlot[] = [];
  for (const slot of slots) for (const { secret } of secrets) if (!opened.includes(slot) && (await opens(slot, secret))) opened.push(slot);
  return opened;
}

/** @throws KeyRefused where no key is named, or none of them can be had */
export function requireKey(destination: Destination): void {
  const { secrets, missing } = secretsOf(destination);
  if (secrets.length === 0) throw missing[0];
}

/** The keys at hand, and why others cannot be had: one of these is no reason not to try the rest. @throws KeyRefused when no key is named at all */
function secretsOf(destination: Destination): { readonly secrets: readonly Omit<FittingKey, "masterKey">[]; readonly missing: readonly HypersdkError[] } {
  const { sealing, others } = destination.encryption ?? { others: [] };
  const keys = [...(sealing ? [sealing] : []), ...others];
  if (keys.length === 0) throw noKey(destination);
  const secrets: Omit<FittingKey, "masterKey">[] = [];
  const missing: HypersdkError[] = [];
  for (const key of keys) {
    try {
      const secret = key.secret();
      if (!secrets.some((each) => each.secret === secret)) secrets.push({ key, secret });
    } catch (error) {
      if (!(error instanceof HypersdkError)) throw error;
      missing.push(error);
    }
  }
  return { secrets, missing };
}

function noneOpens({ spec }: Destination, slots: readonly KeySlot[], tried: number, missing: readonly HypersdkError[]): HypersdkError {
  const [first] = missing;
  if (first && tried === 0 && missing.length === 1) return first;
  const keys = tried === 1 ? "the key opens" : `${tried} keys open`;
  const what = tried > 0 ? `${keys} none of the ${slots.length} slots of ${spec.name}` : `no key of ${spec.name} can be had`;
  return new HypersdkError("KeyRefused", what, {
    hint: first
      ? `what could not be tried: ${missing.map(({ message }) => message).join("; ")}`
      : "is it the key of this repository? what it once opened may have been removed with hypersdk key remove",
  });
}

/** Whether a secret opens this slot. */
export async function opens(slot: KeySlot, secret: string): Promise<boolean> {
  return (await unwrapSlot(slot, secret)) !== undefined;
}

async function unwrapSlot(slot: KeySlot, secret: string): Promise<Buffer | undefined> {
  const identity = identityIn(secret);
  const isMasterKey = (key: Buffer | undefined): Buffer | undefined => (key?.length === masterKeyBytes ? key : undefined);
  if (slot.kind === "passphrase") {
    if (identity !== undefined) return undefined;
    return isMasterKey(await open(await stretched(secret, slot), "key", Buffer.from(slot.wrapped, "base64")));
  }
  if (identity === undefined) return undefined;
  const { Decrypter, armor } = await import("age-encryption");
  try {
    const decrypter = new Decrypter();
    decrypter.addIdentity(identity);
    return isMasterKey(Buffer.from(await decrypter.decrypt(armor.decode(slot.wrapped), "text"), "hex"));
  } catch {
    return undefined;
  }
}

async function passphraseSlot(base: Omit<SlotBase, "digest">, masterKey: Buffer, secret: string): Promise<PassphraseSlot> {
  requireLength(secret);
  const salt = randomBytes(16).toString("base64");
  const wrapped = (await seal(await stretched(secret, { ...cost, salt }), "key", masterKey)).toString("base64");
  return withDigest({ ...base, kind: "passphrase" as const, ...cost, salt, wrapped });
}

function requireLength(passphrase: string): void {
  if (passphrase.length < minPassphrase)
    throw new HypersdkError("KeyRefused", `the key has fewer than ${minPassphrase} characters`, { hint: "openssl rand -base64 32 makes one" });
}

async function ageSlot(base: Omit<SlotBase, "digest">, masterKey: Buffer, recipient: string): Promise<AgeSlot> {
  const { armor } = await import("age-encryption");
  const encrypter = await encrypterFor(recipient);
  return withDigest({ ...base, kind: "age" as const, recipient, wrapped: armor.encode(await encrypter.encrypt(masterKey.toString("hex"))) });
}

async function encrypterFor(recipient: string): Promise<Encrypter> {
  const { Encrypter } = await import("age-encryption");
  const encrypter = new Encrypter();
  try {
    encrypter.addRecipient(recipient);
    return encrypter;
  } catch (error) {
    throw new HypersdkError("KeyRefused", `${JSON.stringify(recipient)} is no recipient of age`, { cause: error });
  }
}

function stretched(secret: string, { N, r, p, salt }: Pick<PassphraseSlot, "N" | "r" | "p" | "salt">): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    scrypt(secret.normalize("NFC"), Buffer.from(salt, "base64"), 32, { N, r, p, maxmem: 256 * N * r }, (error, key) => (error ? reject(error) : resolve(key)));
  });
}

function noKey({ spec }: Destination): HypersdkError {
  return new HypersdkError("KeyRefused", `the repository at ${spec.name} is encrypted, and no key is given`, {
    hint: "name it with encryption.key in a schedule of the files; commands that only look take --key-file",
  });
}

export function isRecipient(text: string): boolean {
  return text.startsWith("age1");
}

/** The identity in a secret, which may be a whole file of age-keygen; undefined for a passphrase. */
function identityIn(secret: string): string | undefined {
  return /^AGE-SECRET-KEY-\S+$/m.exec(secret)?.[0];
}

async function recipientOf(secret: string): Promise<string | undefined> {
  const identity = identityIn(secret);
  if (identity === undefined) return undefined;
  const { identityToRecipient } = await import("age-encryption");
  try {
    return await identityToRecipient(identity);
  } catch (error) {
    // its words may hold the identity
    throw new HypersdkError("KeyRefused", "the age identity cannot be read", { hint: "age-keygen makes one", cause: error instanceof Error ? error.name : "" });
  }
}

function slotOf(bytes: Buffer): KeySlot | undefined {
  let slot: Partial<KeySlot>;
  try {
    slot = JSON.parse(bytes.toString("utf8")) as Partial<KeySlot>;
  } catch {
    return undefined;
  }
  if (typeof slot !== "object" || slot === null || slot.formatVersion !== 1 || !isAsWritten(slot)) return undefined;
  if (typeof slot.id !== "string" || typeof slot.repository !== "string" || typeof slot.wrapped !== "string") return undefined;
  if (slot.kind === "age") return typeof slot.recipient === "string" ? (slot as AgeSlot) : undefined;
  const { kind, N = 0, r = 0, p = 0, salt } = slot as Partial<PassphraseSlot>;
  const isBounded =
    [N, r, p].every(Number.isInteger) && N > 1 && N < 2 ** (16 * r) && (N & (N - 1)) === 0 && r > 0 && p > 0 && N * r <= maxCost.Nr && p <= maxCost.p;
  return kind === "passphrase" && isBounded && typeof salt === "string" ? (slot as PassphraseSlot) : undefined;
}
