import { spawnSync } from "node:child_process";
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

const top = join(import.meta.dirname, "..");

describe("the rooms of the source", () => {
  it.each([
    ["converters", "../plan/planner.ts"],
    ["plan", "../state/state.ts"],
    ["providers", "../destinations/destination.ts"],
    ["repository", "../exports/manifest.ts"],
    ["model", "../config/combine.ts"],
    ["engine", "../cli/compose.ts"],
  ])("a file in %s that imports %s is refused by the linter", (room, target) => {
    const path = join(top, "src", room, `forbidden-${process.pid}.ts`);
    writeFileSync(path, `export * from "${target}";\n`);
    try {
      const { status, stdout, stderr } = spawnSync(join(top, "node_modules/.bin/biome"), ["lint", "--vcs-enabled=false", path], { cwd: top, encoding: "utf8" });
      expect(status).not.toBe(0);
      expect(stdout + stderr).toContain("noRestrictedImports");
    } finally {
      rmSync(path);
    }
  });
});
