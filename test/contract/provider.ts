import { describe, expect, it } from "vitest";
import { piecesOf } from "../../src/converters/block-source.ts";
import type { Provider } from "../../src/providers/provider.ts";

export interface ProviderUnderTest {
  readonly provider: Provider;
  /** The identity of a VM that is there, and the whole content of its first disk. */
  readonly identity: string;
  readonly content: Buffer;
  /** Writes to that VM's first disk, as a guest would. */
  change(): void;
  /** The same kind of provider, unable to be reached. */
  readonly unreachable: Provider;
}

/** What must hold of every provider. */
export function providerContract(name: string, make: () => Promise<ProviderUnderTest>): void {
  describe(`the provider ${name}`, () => {
    it("gives the same inventory twice, sorted by path, and changes nothing by it", async () => {
      const { provider, identity } = await make();
      const first = await provider.inventory();
      expect(await provider.inventory()).toEqual(first);
      expect(first.vms.map(({ path }) => path)).toEqual(first.vms.map(({ path }) => path).sort());
      expect(first.vms.map((vm) => vm.identity)).toContain(identity);
      for (const vm of first.vms) expect(vm.provider).toBe(provider.name);
    });

    it("reads a disk through extents, in pieces and anywhere, and releases twice", async () => {
      const { provider, identity, content } = await make();
      const snapshot = await provider.snapshot(identity);
      const { source } = snapshot.disks[0] as (typeof snapshot.disks)[number];
      expect(source.sizeBytes).toBe(content.length);
      let end = 0;
      for await (const { offset, length } of source.extents()) {
        expect(offset).toBe(end);
        end += length;
      }
      expect(end).toBe(content.length);
      const joined = Buffer.alloc(content.length);
      for await (const { offset, data } of piecesOf(source)) data.copy(joined, offset);
      expect(joined.equals(content)).toBe(true);
      const middle = Buffer.alloc(1000);
      await source.read(content.length - 1500, middle);
      expect(middle.equals(content.subarray(-1500, -500))).toBe(true);
      await snapshot.confirm();
      await snapshot.release();
      await snapshot.release();
    });

    it("never confirms disks that are not one instant", async () => {
      const { provider, identity, content, change } = await make();
      const snapshot = await provider.snapshot(identity);
      change();
      const read = Buffer.alloc(content.length);
      await snapshot.disks[0]?.source.read(0, read);
      const confirmed = await snapshot.confirm().then(
        () => true,
        (error: { code: string }) => error.code === "SourceChanged" && false,
      );
      // either the snapshot kept its instant, or it says that it did not
      if (confirmed) expect(read.equals(content)).toBe(true);
      await snapshot.release();
    });

    it("says by code what is not there and what cannot be reached", async () => {
      const { provider, unreachable } = await make();
      await expect(provider.snapshot("no such vm")).rejects.toMatchObject({ code: "NotFound" });
      await expect(unreachable.inventory()).rejects.toMatchObject({ code: "ProviderUnreachable", isTransient: true });
    });
  });
}
