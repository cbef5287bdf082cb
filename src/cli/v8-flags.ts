import { setFlagsFromString } from "node:v8";

/** How often a function is called until V8 optimizes it, as in Node 22 to 26. */
const usual = { "invocation-count-for-maglev": 400, "invocation-count-for-turbofan": 3000, "invocation-count-for-osr": 500 };
const tenfold = { "invocation-count-for-maglev": 4000, "invocation-count-for-turbofan": 30_000, "invocation-count-for-osr": 5000 };

/**
 * For a command that looks at thousands of things once, in a fifth of a second: the 169 functions that V8 would optimize meanwhile, on
 * its threads, take a tenth of the CPU and never pay back.
 */
export function optimizeLater(): void {
  // a V8 that has one of these no more would print an error on each start: they were seen up to this version
  if (Number(process.versions.node.split(".")[0]) > 26) return;
  set(tenfold);
  // code that is compiled and kept holds for the flags that it was made under
  process.once("exit", () => set(usual));
}

function set(flags: Readonly<Record<string, number>>): void {
  for (const [name, value] of Object.entries(flags)) setFlagsFromString(`--${name}=${value}`);
}
