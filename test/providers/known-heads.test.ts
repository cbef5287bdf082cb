import { utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { ProviderSpec } from "../../src/model/desired.ts";
import { instantOf } from "../../src/model/instant.ts";
import type { Cache } from "../../src/model/ports.ts";
import type { VmPath } from "../../src/model/vm-path.ts";
import { localProvider } from "../../src/providers/local/local-provider.ts";
import { temporaryFolder } from "../support/cli.ts";

/** A VDI header says 0xbeda107f at byte 64, and its virtual size at 368. */
function vdi(virtualBytes: number): Buffer {
  const head = Buffer.alloc(4096);
  head.writeUInt32LE(0xbeda107f, 64);
  head.writeBigUInt64LE(BigInt(virtualBytes), 368);
  return head;
}

function memory(): Cache & { readonly texts: Map<string, string> } {
  const texts = new Map<string, string>();
  return { texts, get: (key) => texts.get(key), put: (key, text) => void texts.set(key, text) };
}

/** The one disk of the inventory of `path`, at a time of day that is `laterMs` from now. */
async function diskIn(path: string, cache: Cache, laterMs = 10_000): Promise<unknown> {
  const spec: ProviderSpec = { name: "lab", type: "local", path, writtenPath: path, root: "/dc/vm" as VmPath, origin: { file: "", document: 0, pointer: [] } };
  const provider = localProvider(spec, { now: () => instantOf(Date.now() + laterMs), sleep: async () => {} }, cache);
  const { vms, unknown } = await provider.inventory();
  return vms[0]?.disks[0] ?? unknown?.[0];
}

describe("the heads of images", () => {
  it("are read once, as long as their files stay what they are", async () => {
    const top = temporaryFolder();
    const cache = memory();
    writeFileSync(join(top, "disk.img"), vdi(7 * 512));
    const first = { name: "disk.img", format: "vdi", virtualBytes: 7 * 512, dataBytes: 4096 };
    expect(await diskIn(top, cache)).toEqual(first);
    // what is remembered is what is told: nothing was read again
    cache.texts.set(top, (cache.texts.get(top) as string).replace(String(7 * 512), "1024"));
    expect(await diskIn(top, cache)).toEqual({ ...first, virtualBytes: 1024 });
  });

  it("are read again when the file is another, even with the same size and time", async () => {
    const top = temporaryFolder();
    const path = join(top, "disk.img");
    const cache = memory();
    writeFileSync(path, vdi(512));
    utimesSync(path, 1000, 1000);
    expect(await diskIn(top, cache)).toMatchObject({ virtualBytes: 512 });
    await new Promise((resolve) => setTimeout(resolve, 20));
    writeFileSync(path, vdi(1024));
    utimesSync(path, 1000, 1000);
    expect(await diskIn(top, cache)).toMatchObject({ virtualBytes: 1024 });
  });

  it("are not remembered of a file that has just changed, and may change again within the same tick", async () => {
    const top = temporaryFolder();
    const cache = memory();
    writeFileSync(join(top, "disk.img"), vdi(512));
    await diskIn(top, cache, 0);
    expect(cache.texts.size).toBe(0);
  });

  it("nor of a descriptor, whose extents have a say", async () => {
    const top = temporaryFolder();
    const cache = memory();
    writeFileSync(
      join(top, "disk.vmdk"),
      '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 8 FLAT "disk-flat.vmdk" 0\n',
    );
    writeFileSync(join(top, "disk-flat.vmdk"), Buffer.alloc(4096, 1));
    expect(await diskIn(top, cache)).toMatchObject({ format: "vmdk", dataBytes: 4096 });
    expect(cache.texts.size).toBe(0);
  });

  it("nor of a file that cannot be read; and whatever stands in the cache does no harm", async () => {
    const top = temporaryFolder();
    const cache = memory();
    writeFileSync(join(top, "disk.qcow2"), Buffer.alloc(4096));
    expect(await diskIn(top, cache)).toMatchObject({ reason: expect.stringContaining("header is missing") });
    expect(cache.texts.size).toBe(0);
    writeFileSync(join(top, "disk.qcow2"), vdi(512));
    for (const text of ["", "{", "5", "null", "[5]", '[["x",null]]', `[[${JSON.stringify(join(top, "disk.qcow2"))},[1,2,3]]]`]) {
      cache.texts.set(top, text);
      expect(await diskIn(top, cache)).toMatchObject({ format: "vdi" });
    }
  });
});
