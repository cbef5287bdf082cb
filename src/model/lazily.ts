import { createRequire } from "node:module";

const require = createRequire(import.meta.url);

/** A package that is loaded when it is first used: most commands use few of them, and short ones wait for nothing else. */
export function lazily<Package>(name: string): () => Package {
  let loaded: Package | undefined;
  return () => (loaded ??= require(name) as Package);
}
