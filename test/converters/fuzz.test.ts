import { describe, expect, it } from "vitest";
import { fuzz } from "../fuzz/mutate.ts";
import { has } from "../support/qemu.ts";

describe.skipIf(!has("qemu-img"))("20,000 mutated images", () => {
  it("are read or refused with a code; none crashes or hangs", { timeout: 300_000 }, async () => {
    const { refused, read } = await fuzz(20_000, 20_261_121, 10_000);
    expect(refused + read).toBe(20_000);
    // a fuzzer that only makes garbage tests the first line of each reader
    expect(read).toBeGreaterThan(4000);
    expect(refused).toBeGreaterThan(4000);
  });
});
