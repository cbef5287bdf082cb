import { createHash, createHmac, randomBytes, webcrypto } from "node:crypto";
import { damaged } from "./layout.ts";

/** What is sealed. An object that is put in the place of one of another kind does not open. */
export type Purpose = "chunk" | "directory" | "index" | "segment" | "point";

/**
 * What stands between an object and the store. In a sealed repository:
 *
 *     sealed    0 salt (32, random) · 32 AES-256-GCM of the content · 16 bytes of tag at the end
 *     its key   HMAC-SHA-256(master key, "hypersdk " + purpose, a zero byte, salt): no two objects share one, so that the nonce is zero
 *
 * A chunk is sealed by itself and can be moved from pack to pack without its key.
 */
export interface Sealing {
  /** By how much an object grows. */
  readonly overheadBytes: number;
  seal(purpose: Purpose, content: Uint8Array): Promise<Buffer>;
  /** @throws ArtifactDamaged when it was not sealed with this key for this purpose, or has changed since */
  open(purpose: Purpose, path: string, sealed: Uint8Array): Promise<Buffer>;
  /** 32 hex digits that stand for a name and tell nothing of it to those without the key. */
  nameFor(name: string): string;
}

export const masterKeyBytes = 32;
const saltBytes = 32;
const tagBytes = 16;
/** How much longer a sealed object is than its content. */
const sealBytes: number = saltBytes + tagBytes;

/** Of a repository that is not encrypted: everything is as it is. */
export const unsealed: Sealing = {
  overheadBytes: 0,
  seal: async (_, content) => viewOf(content),
  open: async (_, __, content) => viewOf(content),
  nameFor: (name) => createHash("sha256").update(name).digest("hex").slice(0, 32),
};

export function sealedWith(masterKey: Buffer): Sealing {
  const nameKey = createHmac("sha256", masterKey).update("hypersdk names").digest();
  return {
    overheadBytes: sealBytes,
    seal: (purpose, content) => seal(masterKey, purpose, content),
    async open(purpose, path, sealed) {
      const content = await open(masterKey, purpose, sealed);
      if (!content) throw damaged(path, "it was not sealed with this repository's key, or has changed since");
      return content;
    },
    nameFor: (name) => createHmac("sha256", nameKey).update(name).digest("hex").slice(0, 32),
  };
}

/** Seals with a key of 32 bytes. */
export async function seal(key: Buffer, purpose: Purpose | "key", content: Uint8Array): Promise<Buffer> {
  const salt = randomBytes(saltBytes);
  // on a thread of the pool
  const sealed = await webcrypto.subtle.encrypt(noNonce, await objectKey(key, purpose, salt, "encrypt"), content as Uint8Array<ArrayBuffer>);
  return Buffer.concat([salt, new Uint8Array(sealed)]);
}

/** @returns undefined for what does not open with this key */
export async function open(key: Buffer, purpose: Purpose | "key", sealed: Uint8Array): Promise<Buffer | undefined> {
  if (sealed.length < sealBytes) return undefined;
  const objects = await objectKey(key, purpose, sealed.subarray(0, saltBytes), "decrypt");
  try {
    return Buffer.from(await webcrypto.subtle.decrypt(noNonce, objects, sealed.subarray(saltBytes) as Uint8Array<ArrayBuffer>));
  } catch {
    return undefined;
  }
}

const noNonce = { name: "AES-GCM", iv: new Uint8Array(12), tagLength: tagBytes * 8 };

function objectKey(key: Buffer, purpose: Purpose | "key", salt: Uint8Array, use: "encrypt" | "decrypt"): Promise<webcrypto.CryptoKey> {
  const bytes = createHmac("sha256", key).update(`hypersdk ${purpose}\0`).update(salt).digest();
  return webcrypto.subtle.importKey("raw", bytes as Uint8Array<ArrayBuffer>, "AES-GCM", false, [use]);
}

function viewOf(content: Uint8Array): Buffer {
  return Buffer.isBuffer(content) ? content : Buffer.from(content.buffer, content.byteOffset, content.byteLength);
}
