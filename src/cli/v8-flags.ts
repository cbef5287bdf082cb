import { setFlagsFromString } from "node:v8";

/** Flags as V8 has them in Node 22 to 26. */
const usual = {
  "invocation-count-for-maglev": 400,
  "invocation-count-for-turbofan": 3000,
  "invocation-count-for-osr": 500,
  "semi-space-growth-factor": 2,
} as const;

type Flags = Readonly<Partial<Record<keyof typeof usual, number>>>;

/**
 * For a command that looks at thousands of things once, in a fifth of a second: the 169 functions that V8 would optimize meanwhile, on
 * its threads, take a tenth of the CPU and never pay back. Its counts are raised tenfold.
 */
export function optimizeLater(): void {
  setUntilExit({ "invocation-count-for-maglev": 4000, "invocation-count-for-turbofan": 30_000, "invocation-count-for-osr": 5000 });
}

/**
 * For a command that exports: the space for new objects begins with 1 MiB and is doubled, and each time that it is emptied V8 lowers the limit at
 * which it walks over the whole heap. A small export came to that twice, a twentieth of its CPU, which it does not where the space is soon
 * as large as it may become.
 */
export function growSooner(): void {
  setUntilExit({ "semi-space-growth-factor": 8 });
}

/** Code that is compiled and kept holds for the flags that it was made under: at the end they are as they were. */
function setUntilExit(flags: Flags): void {
  // a V8 that has one of these no more would print an error on each start: they were seen up to this version
  if (Number(process.versions.node.split(".")[0]) > 26) return;
  set(flags);
  process.once("exit", () => set(usual));
}

function set(flags: Flags): void {
  for (const [name, value] of Object.entries(flags)) setFlagsFromString(`--${name}=${value}`);
}
