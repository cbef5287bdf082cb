import { setFlagsFromString } from "node:v8";

/** After so many calls V8 optimizes a function, in Node 22 to 26. */
const calls = { maglev: 400, turbofan: 3000, osr: 500 };

/**
 * For a command that looks at thousands of things once, in a fifth of a second: the 169 functions that V8 would optimize meanwhile, on
 * its threads, take a tenth of the CPU and never pay back. Its counts are raised tenfold until the process ends: code that is compiled
 * and kept holds for the flags that it was made under.
 */
export function optimizeLater(): void {
  // a V8 that has one of these no more would print an error on each start: they were seen up to this version
  if (Number(process.versions.node.split(".")[0]) > 26) return;
  const raise = (times: number): void => {
    for (const [tier, count] of Object.entries(calls)) setFlagsFromString(`--invocation-count-for-${tier}=${count * times}`);
  };
  raise(10);
  process.once("exit", () => raise(1));
}
