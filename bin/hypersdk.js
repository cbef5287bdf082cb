#!/usr/bin/env node
// Node 20 would fail somewhere deep inside; say what is needed instead. CommonJS, as the program itself: docs/decisions/014 says why.
const { existsSync, lstatSync, mkdirSync, statSync } = require("node:fs");
const { join } = require("node:path");

const [major, minor] = process.versions.node.split(".").map(Number);
const inThisPackage = (path) => join(__dirname, "..", path);
const program = inThisPackage("dist/cli/main.cjs");
if (major < 22 || (major === 22 && minor < 22)) {
  const hint = existsSync(inThisPackage("tsconfig.json")) ? '; "npm run" in its folder uses the right one' : "";
  process.stderr.write(`hypersdk needs Node 22.22 or newer, this is ${process.versions.node}${hint}\n`);
  process.exitCode = 1;
} else if (!existsSync(program)) {
  process.stderr.write("hypersdk is not built: `npm ci && npm run build` in its folder\n");
  process.exitCode = 1;
} else {
  // where NODE_COMPILE_CACHE says a place, Node keeps it there
  const cache = process.env.NODE_COMPILE_CACHE ? undefined : codeCache(process.env);
  // before the first module of ours is compiled
  if (cache) process.getBuiltinModule("node:module").enableCompileCache(cache);
  require(program);
}

/** Where compiled code is kept: a folder that is this user's alone, since what lies in it is run. */
function codeCache({ HYPERSDK_NO_CACHE, XDG_CACHE_HOME, HOME }) {
  const home = XDG_CACHE_HOME?.startsWith("/") ? XDG_CACHE_HOME : HOME && `${HOME}/.cache`;
  if (!home || !["", "0", undefined].includes(HYPERSDK_NO_CACHE)) return undefined;
  const folders = [home, `${home}/hypersdk`, `${home}/hypersdk/code`];
  try {
    for (const folder of folders) if (!existsSync(folder)) mkdirSync(folder, { mode: 0o700 });
    const isOwn = ({ uid, mode }) => uid === process.getuid?.() && (mode & 0o022) === 0;
    // a link may lead to the first; a link's own mode lets everybody write
    return isOwn(statSync(home)) && folders.slice(1).every((folder) => isOwn(lstatSync(folder))) ? folders[2] : undefined;
  } catch {
    return undefined;
  }
}
