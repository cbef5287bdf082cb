import { randomUUID } from "node:crypto";
import { fileDestination } from "../../src/destinations/file/file-destination.ts";
import type { DestinationSpec } from "../../src/model/desired.ts";
import { memoryDestination } from "../fakes/memory-destination.ts";
import { temporaryFolder } from "../support/cli.ts";
import { destinationContract } from "./destination.ts";

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
