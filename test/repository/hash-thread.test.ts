import { hash, randomFillSync } from "node:crypto";
import { describe, expect, it } from "vitest";
import { hashedAside } from "../../src/repository/hash-thread.ts";

const MiB = 2 ** 20;

describe("the thread that hashes", () => {
  it("gives what this one would, for runs of every length, asked for at once and later", { timeout: 60_000 }, async () => {
    const run = Buffer.alloc(MiB);
    // before so much is hashed there is none
    for (let i = 0; i < 64; i++) hashedAside(run, 128 * 1024);
    const counts = { aside: 0, here: 0 };
    const waiting: Promise<void>[] = [];
    const until = Date.now() + 20_000;
    for (let i = 0; counts.aside < 3000 && Date.now() < until; i++) {
      const length = i % 3 === 0 ? MiB : 1 + ((i * 7919) % MiB);
      const pieceBytes = (i % 2 === 0 ? 128 : 64) * 1024;
      randomFillSync(run, 0, Math.min(length, 64));
      const data = run.subarray(0, length);
      const job = hashedAside(data, pieceBytes);
      if (job) {
        counts.aside++;
        const wanted = inline(data, pieceBytes);
        waiting.push(job.hashes().then((hashes) => expect(hashes?.toString("hex")).toBe(wanted)));
      } else counts.here++;
      if (i % 2 === 0) await waiting.shift();
      if (!job) await new Promise((resolve) => setImmediate(resolve));
    }
    await Promise.all(waiting);
    expect(counts.aside).toBe(3000);
  });
});

function inline(data: Buffer, pieceBytes: number): string {
  let hashes = "";
  for (let at = 0; at < data.length; at += pieceBytes) hashes += hash("sha256", data.subarray(at, at + pieceBytes));
  return hashes;
}
