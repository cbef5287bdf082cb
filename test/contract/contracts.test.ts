import { randomUUID } from "node:crypto";
import { appendFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileDestination } from "../../src/destinations/file/file-destination.ts";
import type { DestinationSpec } from "../../src/model/desired.ts";
import { instantOf } from "../../src/model/instant.ts";
import type { VmPath } from "../../src/model/vm-path.ts";
import { localProvider } from "../../src/providers/local/local-provider.ts";
import { memoryDestination } from "../fakes/memory-destination.ts";
import { memoryProvider } from "../fakes/memory-provider.ts";
import { temporaryFolder } from "../support/cli.ts";
import { bytes } from "../support/disks.ts";
import { destinationContract } from "./destination.ts";
import { providerContract } from "./provider.ts";

const spec = (url: string): DestinationSpec => ({
  name: "d",
  url,
  layout: "image",
  expiryGraceMs: 0,
  inline: false,
  origin: { file: "", document: 0, pointer: [] },
});
const random = { uuid: randomUUID, fraction: Math.random };

destinationContract("in memory (a fake)", async () => {
  const files = new Map<string, Buffer>();
  return { destination: memoryDestination(spec("memory:"), files), again: async () => memoryDestination(spec("memory:"), files) };
});

destinationContract("in a folder", async () => {
  const url = `file://${temporaryFolder()}/exports`;
  return { destination: fileDestination(spec(url), random), again: async () => fileDestination(spec(url), random) };
});

providerContract("in memory (a fake)", async () => {
  const content = bytes(300_000, 5);
  const disk = Buffer.from(content);
  return {
    provider: memoryProvider(new Map([["web", disk]])),
    identity: "web",
    content,
    change: () => void disk.fill(7),
    unreachable: memoryProvider(undefined),
  };
});

providerContract("local", async () => {
  const folder = temporaryFolder();
  const content = bytes(300_032, 6);
  writeFileSync(join(folder, "web.raw"), content);
  const at = (path: string) =>
    localProvider(
      { name: "lab", type: "local", path, writtenPath: path, root: "/dc/vm" as VmPath, origin: { file: "", document: 0, pointer: [] } },
      { now: () => instantOf(0), sleep: async () => {} },
    );
  return {
    provider: at(folder),
    identity: "web.raw",
    content,
    change: () => appendFileSync(join(folder, "web.raw"), "x"),
    unreachable: at(join(folder, "none")),
  };
});
