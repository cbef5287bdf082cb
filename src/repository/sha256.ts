import { hash, webcrypto } from "node:crypto";
import { monotonicMs } from "../model/monotonic.ts";

/**
 * Of a chunk. With SHA instructions 128 KiB take 0.07 ms, and to have a thread of the pool do it costs as much again, here and there:
 * such a processor hashes on this thread. On others it takes four times as long, and several chunks are hashed at once.
 */
export async function sha256(data: Buffer): Promise<Buffer> {
  isFast ??= hashesFast();
  return isFast ? hash("sha256", data, "buffer") : Buffer.from(await webcrypto.subtle.digest("SHA-256", data as Uint8Array<ArrayBuffer>));
}

let isFast: boolean | undefined;

/** Whether a byte takes less than 1.2 ns: OpenSSL 3 needs 0.7 with SHA instructions and 2.2 without. */
function hashesFast(): boolean {
  const probe = Buffer.alloc(256 * 1024);
  const tries = Array.from({ length: 3 }, () => {
    const start = monotonicMs();
    hash("sha256", probe);
    return monotonicMs() - start;
  });
  return (Math.min(...tries) * 1e6) / probe.length < 1.2;
}
