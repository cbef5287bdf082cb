/**
 * Mutates valid images and reads them: `npm run fuzz -- [CASES] [SEED]`, a million otherwise. Fails on anything but a clean read or an
 * error with a code, on a case over 2 s, and on more than 256 MiB of memory beside the images that it mutates. Prints the seed, so that a failure can be made again.
 */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { fuzz } from "./mutate.ts";

const cases = Number(process.argv[2] ?? 1_000_000);
const seed = Number(process.argv[3] ?? Date.now() % 2 ** 32);
const peakMiB = (): number => Math.round(process.resourceUsage().maxRSS / 1024);
// what a reader needs, not what the collector has not come to yet, is the question
setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;
process.stdout.write(`seed ${seed}, ${cases} cases\n`);
const { refused, read, slowestMs, heldMiB } = await fuzz(cases, seed, 2000, (done, count) => {
  collect();
  if (done % 20_000 === 0) process.stdout.write(`${done} cases, ${count} refused, peak ${peakMiB()} MiB\n`);
});
process.stdout.write(
  `${cases} cases, ${refused} refused, ${read} read, slowest ${slowestMs.toFixed(0)} ms, peak ${peakMiB()} MiB, of which ${heldMiB} are the images\n`,
);
if (peakMiB() - heldMiB > 256) throw new Error(`peak memory ${peakMiB()} MiB`);
