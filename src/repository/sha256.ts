import { hash, webcrypto } from "node:crypto";
import { hashedAside } from "./hash-thread.ts";

/**
 * Of a chunk. With SHA instructions 128 KiB take 0.07 ms, and to have a thread of the pool do it costs as much again, here and there:
 * such a processor hashes on this thread. On others it takes four times as long, and several chunks are hashed at once.
 */
export async function sha256(data: Buffer): Promise<Buffer> {
  isFast ??= hashesFast();
  return isFast ? hash("sha256", data, "buffer") : Buffer.from(await webcrypto.subtle.digest("SHA-256", data as Uint8Array<ArrayBuffer>));
}

/**
 * Of each piece of a run, all `pieceBytes` long but the last.
 * @returns of the piece at `i`; asked for in order, and while the data stays as it is
 */
export function sha256Each(data: Buffer, pieceBytes: number): (i: number) => Promise<Buffer> {
  isFast ??= hashesFast();
  const piece = (i: number): Buffer => data.subarray(i * pieceBytes, (i + 1) * pieceBytes);
  const aside = isFast ? hashedAside(data, pieceBytes) : undefined;
  if (aside) return async (i) => (await aside.hashes())?.subarray(i * 32, (i + 1) * 32) ?? sha256(piece(i));
  const hashes = Array.from({ length: Math.ceil(data.length / pieceBytes) }, (_, i) => sha256(piece(i)));
  for (const hash of hashes) hash.catch(() => {});
  return (i) => hashes[i] as Promise<Buffer>;
}

let isFast: boolean | undefined;

/** Whether a byte takes less than 1.2 ns: OpenSSL 3 needs 0.7 with SHA instructions and 2.2 without. */
function hashesFast(): boolean {
  const probe = Buffer.alloc(256 * 1024);
  const tries = Array.from({ length: 3 }, () => {
    const start = performance.now();
    hash("sha256", probe);
    return performance.now() - start;
  });
  return (Math.min(...tries) * 1e6) / probe.length < 1.2;
}
