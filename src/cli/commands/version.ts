import type { Io } from "../io.ts";
import { toolVersion } from "../tool-version.ts";

export async function version(io: Io): Promise<number> {
  if (io.json) io.result("version", { version: toolVersion(), node: process.versions.node, platform: `${process.platform} ${process.arch}` });
  else io.out(`hypersdk ${toolVersion()} on Node ${process.versions.node}, ${process.platform} ${process.arch}\n`);
  return 0;
}
