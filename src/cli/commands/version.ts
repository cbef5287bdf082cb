import { toolVersion } from "../compose.ts";
import type { Io } from "../io.ts";

export async function version(io: Io): Promise<number> {
  if (io.json) io.result("version", { version: toolVersion(), node: process.versions.node, platform: `${process.platform} ${process.arch}` });
  else io.out(`hypersdk ${toolVersion()}\n`);
  return 0;
}
