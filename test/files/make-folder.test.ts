import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it, vi } from "vitest";

/** How often another process makes the folder just before, and removes it just behind. */
const rival = vi.hoisted(() => ({ times: 0 }));

vi.mock("node:fs/promises", async (load) => {
  const real = await load<typeof import("node:fs/promises")>();
  return {
    ...real,
    async mkdir(path: string) {
      if (rival.times-- > 0) throw Object.assign(new Error(`EEXIST: file already exists, mkdir '${path}'`), { code: "EEXIST" });
      return real.mkdir(path);
    },
  };
});

import { makeFolder } from "../../src/files/durable.ts";

const top = mkdtempSync(join(tmpdir(), "hypersdk-test-folder-"));
afterAll(() => rmSync(top, { recursive: true, force: true }));

describe("a folder that others make and remove", () => {
  it("is made once they have removed it", async () => {
    rival.times = 7;
    await makeFolder(join(top, "locks/deeper"));
    expect(existsSync(join(top, "locks/deeper"))).toBe(true);
  });

  it("is not made in the place of a file", async () => {
    rival.times = 0;
    writeFileSync(join(top, "file"), "");
    await expect(makeFolder(join(top, "file"))).rejects.toMatchObject({ code: "AlreadyExists" });
  });
});
