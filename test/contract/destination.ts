import { describe, expect, it } from "vitest";
import type { Destination } from "../../src/destinations/destination.ts";
import { TreeHash } from "../../src/model/tree-hash.ts";

/** What must hold of every destination. `make` gives an empty one; `again` opens the same one anew. */
export function destinationContract(
  name: string,
  make: () => Promise<{ readonly destination: Destination; readonly again: () => Promise<Destination> }>,
): void {
  describe(`the destination ${name}`, () => {
    const content = Buffer.from("0123456789".repeat(1000));

    it("shows an upload only when it is finished, with its size and hash", async () => {
      const { destination, again } = await make();
      const upload = await destination.create("a/b/disk.raw");
      const fillHead = upload.reserve(10);
      await upload.append(content.subarray(10));
      await upload.skip(70_000);
      expect((await destination.list()).filter(({ isPartial }) => !isPartial)).toEqual([]);
      await expect(destination.get("a/b/disk.raw", 1e6)).rejects.toMatchObject({ code: "NotFound" });
      await fillHead(content.subarray(0, 10));
      const stored = await upload.finish();
      const hash = new TreeHash(8 * 2 ** 20);
      hash.update(Buffer.concat([content, Buffer.alloc(70_000)]));
      expect(stored).toEqual({ bytes: 80_000, hash: hash.digest() });
      const file = await (await again()).open("a/b/disk.raw");
      const read = Buffer.alloc(80_000);
      await file.read(0, read);
      await file.close();
      expect(read.equals(Buffer.concat([content, Buffer.alloc(70_000)]))).toBe(true);
    });

    it("fills gaps later, wherever they are and in any order", async () => {
      const { destination } = await make();
      const pattern = (length: number, seed: number): Buffer => Buffer.from(Uint8Array.from({ length }, (_, i) => (i * 31 + seed) % 251));
      // the second gap lies across the border of a piece, the third follows it at once, the last ends the file
      const layout = [
        ["data", 1000],
        ["gap", 512],
        ["data", 8 * 2 ** 20 - 2000],
        ["gap", 5000],
        ["gap", 7],
        ["data", 9 * 2 ** 20],
        ["skip", 100_000],
        ["gap", 512],
      ] as const;
      const upload = await destination.create("gaps");
      const fills: (() => Promise<void>)[] = [];
      const expected: Buffer[] = [];
      for (const [i, [kind, length]] of layout.entries()) {
        const data = kind === "skip" ? Buffer.alloc(length) : pattern(length, i);
        expected.push(data);
        if (kind === "data") await upload.append(data);
        else if (kind === "skip") await upload.skip(length);
        else {
          const fill = upload.reserve(length);
          fills.push(() => fill(data));
        }
      }
      for (const fill of fills.reverse()) await fill();
      const whole = Buffer.concat(expected);
      const hash = new TreeHash(8 * 2 ** 20);
      hash.update(whole);
      expect(await upload.finish()).toEqual({ bytes: whole.length, hash: hash.digest() });
      const read = Buffer.alloc(whole.length);
      const file = await destination.open("gaps");
      await file.read(0, read);
      await file.close();
      expect(read.equals(whole)).toBe(true);
    });

    it("leaves nothing of an aborted upload", async () => {
      const { destination } = await make();
      const upload = await destination.create("x/disk.raw");
      await upload.append(content);
      await upload.abort();
      expect(await destination.list()).toEqual([]);
    });

    it("puts a small file whole, and exclusively only once", async () => {
      const { destination } = await make();
      await destination.put("m.json", "one", { exclusive: true });
      await expect(destination.put("m.json", "two", { exclusive: true })).rejects.toMatchObject({ code: "AlreadyExists" });
      expect((await destination.get("m.json", 100)).toString()).toBe("one");
      await destination.put("m.json", "three");
      expect((await destination.get("m.json", 100)).toString()).toBe("three");
      await expect(destination.get("m.json", 2)).rejects.toMatchObject({ code: "ArtifactDamaged" });
    });

    it("puts several buffers as one file", async () => {
      const { destination } = await make();
      const parts = Array.from({ length: 3000 }, (_, i) => Buffer.alloc(i % 700, i));
      for (const exclusive of [true, false]) await destination.put(`parts-${exclusive}`, parts, { exclusive });
      await destination.put("none", []);
      for (const exclusive of [true, false]) expect(await destination.get(`parts-${exclusive}`, 1e7)).toEqual(Buffer.concat(parts));
      expect(await destination.get("none", 1)).toHaveLength(0);
    });

    it("lists by prefix, sorted, and removes what is there and what is not", async () => {
      const { destination } = await make();
      for (const path of ["b/2", "a/1", "b/1/x"]) await destination.put(path, path);
      expect((await destination.list()).map(({ path }) => path)).toEqual(["a/1", "b/1/x", "b/2"]);
      expect((await destination.list("b")).map(({ path, bytes }) => [path, bytes])).toEqual([
        ["b/1/x", 5],
        ["b/2", 3],
      ]);
      const named = async (prefix: string): Promise<unknown> => (await destination.names(prefix)).sort((a, b) => (a.path < b.path ? -1 : 1));
      expect(await named("b")).toEqual(["b/1/x", "b/2"].map((path) => ({ path, isPartial: false })));
      expect(await named("none")).toEqual([]);
      await destination.remove("b/1/x");
      await destination.remove("b/1/x");
      expect((await destination.list()).map(({ path }) => path)).toEqual(["a/1", "b/2"]);
    });

    it("names keep their odd characters, and none leads out", async () => {
      const { destination } = await make();
      const odd = "a b/%2F/'quoted' \"x\"/größe 🦊";
      await destination.put(odd, "x");
      expect((await destination.list()).map(({ path }) => path)).toEqual([odd]);
      for (const path of ["../x", "/x", "a/../x", "a//x", ""]) await expect(destination.put(path, "x")).rejects.toThrowError();
    });
  });
}
