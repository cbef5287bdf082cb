/**
 * Mutates valid images and reads them: `npm run fuzz -- [CASES] [SEED]`, a million otherwise, in processes of 20,000 cases. Fails on
 * anything but a clean read or an error with a code, on a case over 2 s of CPU, and on more than 256 MiB of memory over what the process began
 * with. Prints the seed of each process, so that a failure can be made again: `node test/fuzz/fuzz-images.ts one 20000 SEED`.
 */
import { spawnSync } from "node:child_process";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { type FuzzResult, fuzz } from "./mutate.ts";

const batch = 20_000;

if (process.argv[2] === "one") {
  // what a reader needs, not what the collector has not come to yet, is the question
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const result = await fuzz(Number(process.argv[3]), Number(process.argv[4]), 2000, collect);
  process.stdout.write(`${JSON.stringify({ ...result, peakMiB: Math.round(process.resourceUsage().maxRSS / 1024) })}\n`);
} else {
  const cases = Number(process.argv[2] ?? 1_000_000);
  const first = Number(process.argv[3] ?? Date.now() % 2 ** 31);
  process.stdout.write(`seed ${first}, ${cases} cases\n`);
  let [done, refused, slowest, peak] = [0, 0, 0, 0];
  for (let seed = first; done < cases; seed++) {
    const count = Math.min(batch, cases - done);
    const child = spawnSync(process.execPath, [import.meta.filename, "one", String(count), String(seed)], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "inherit"],
    });
    if (child.status !== 0) throw new Error(`seed ${seed} failed`);
    const result = JSON.parse(child.stdout) as FuzzResult & { readonly peakMiB: number };
    done += count;
    refused += result.refused;
    slowest = Math.max(slowest, result.slowestMs);
    peak = Math.max(peak, result.peakMiB - result.beforeMiB);
    process.stdout.write(`${done} cases, ${refused} refused, slowest ${Math.round(slowest)} ms, peak ${peak} MiB over what the process began with\n`);
    if (peak > 256) throw new Error(`peak memory ${peak} MiB with seed ${seed}`);
  }
}
