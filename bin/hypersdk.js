#!/usr/bin/env node
// Node 20 would fail somewhere deep inside; say what is needed instead.
const [major, minor] = process.versions.node.split(".").map(Number);
if (major < 22 || (major === 22 && minor < 22)) {
  process.stderr.write(`hypersdk needs Node 22.22 or newer, this is ${process.versions.node}; "npm run" in its folder uses the right one\n`);
  process.exitCode = 1;
} else {
  // before the first module of ours is compiled
  process.getBuiltinModule("node:module").enableCompileCache();
  await import("../dist/cli/main.cjs");
}
