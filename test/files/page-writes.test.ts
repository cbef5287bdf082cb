import { constants, mkdtempSync, readFileSync, rmSync } from "node:fs";
import type { FileHandle } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, describe, expect, it, vi } from "vitest";

/** How a file system answers who wants to write past its cache; what it took that way. */
const pastCache = vi.hoisted(() => ({ answer: "as it is" as "as it is" | "EINVAL" | "EIO" | "a part", writtenBytes: 0 }));

vi.mock("node:fs/promises", async (load) => {
  const real = await load<typeof import("node:fs/promises")>();
  return {
    ...real,
    async open(path: string, flags: string | number, mode?: number) {
      if (typeof flags !== "number" || (flags & constants.O_DIRECT) === 0) return real.open(path, flags, mode);
      const { answer } = pastCache;
      if (answer === "EINVAL" || answer === "EIO") throw Object.assign(new Error(answer), { code: answer });
      // where the file system of this test knows no such writing, as it would be
      const handle = await real.open(path, flags).catch(() => real.open(path, flags & ~constants.O_DIRECT));
      return {
        writev: (parts: Uint8Array[], at: number) => written(handle, answer === "a part" ? [(parts[0] as Uint8Array).subarray(0, 3 * 4096)] : parts, at),
        close: () => handle.close(),
      };
    },
  };
});

async function written(handle: FileHandle, parts: Uint8Array[], at: number): Promise<{ bytesWritten: number }> {
  const result = await handle.writev(parts, at);
  pastCache.writtenBytes += result.bytesWritten;
  return result;
}

import { writeDurably } from "../../src/files/durable.ts";
import { pageMemory } from "../../src/model/page-memory.ts";
import { bytes, MiB } from "../support/disks.ts";

const folder = mkdtempSync(join(tmpdir(), "hypersdk-test-pages-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function inPages(content: Buffer): Buffer {
  const memory = pageMemory(content.length);
  content.copy(memory);
  return memory;
}

describe("a file that is written from pages of memory", () => {
  const pages = [1, 2, 3].map((seed) => inPages(bytes(MiB, seed)));
  const content = [...pages, inPages(bytes(5 * 4096 + 123, 4)), bytes(1000, 5), bytes(MiB, 6)];
  const whole = 3 * MiB + 5 * 4096;
  beforeEach(() => void (pastCache.writtenBytes = 0));

  it.each([
    ["as it is", whole],
    ["a part", 3 * 4096],
    ["EINVAL", 0],
    ["EIO", 0],
  ] as const)("holds what it was given where the file system takes it %s", async (answer, writtenBytes) => {
    pastCache.answer = answer;
    const path = join(folder, answer);
    await writeDurably(path, content, "token");
    expect(readFileSync(path).equals(Buffer.concat(content))).toBe(true);
    expect(pastCache.writtenBytes).toBe(writtenBytes);
  });

  it("goes through the cache where it is small, or lies elsewhere in memory", async () => {
    pastCache.answer = "as it is";
    for (const given of [[inPages(bytes(MiB - 4096, 1))], [bytes(2 * MiB, 1)], [inPages(bytes(2 * MiB, 1)).subarray(100)]]) {
      await writeDurably(join(folder, "small"), given, "token");
      expect(readFileSync(join(folder, "small")).equals(Buffer.concat(given))).toBe(true);
    }
    expect(pastCache.writtenBytes).toBe(0);
  });
});
