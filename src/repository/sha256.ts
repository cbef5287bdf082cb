import { webcrypto } from "node:crypto";

/** On a thread of the pool, so that several are computed at once. */
export async function sha256(data: Buffer): Promise<Buffer> {
  return Buffer.from(await webcrypto.subtle.digest("SHA-256", data as Uint8Array<ArrayBuffer>));
}
