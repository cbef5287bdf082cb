import { spawnSync } from "node:child_process";
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";

export interface Measured {
  /** User and system CPU of the process and its children, in seconds. */
  readonly cpuS: number;
  readonly wallS: number;
  readonly peakMiB: number;
}

/** Runs a command under GNU time, which knows the peak, and the shell's, which counts milliseconds where that one cuts off at ten. @throws when it fails */
export function measure(command: readonly string[], cwd: string, env: Record<string, string> = {}, okCodes: readonly number[] = [0]): Measured {
  const { status, stderr } = spawnSync("bash", ["-c", 'time "$@"', "bash", "/usr/bin/time", "-f", "\n@@ %M", ...command], {
    cwd,
    encoding: "utf8",
    env: { ...process.env, ...env, TIMEFORMAT: "@@ %3U %3S %3R" },
    maxBuffer: 2 ** 28,
  });
  const found = /@@ (\d+)\n@@ ([\d.]+) ([\d.]+) ([\d.]+)/.exec(stderr);
  if (!found || !okCodes.includes(status ?? -1)) throw new Error(`${command.join(" ")} ended with ${status}: ${stderr.slice(-500)}`);
  const [kilobytes = 0, user = 0, system = 0, wall = 0] = found.slice(1).map(Number);
  return { cpuS: user + system, wallS: wall, peakMiB: kilobytes / 1024 };
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length / 2;
  return sorted.length % 2 === 1 ? (sorted[Math.floor(middle)] as number) : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
}

export function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

/** Bytes of the files below a folder, which need not be there. */
export function sizeOf(folder: string): number {
  try {
    return readdirSync(folder, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .reduce((sum, entry) => sum + statSync(join(entry.parentPath, entry.name)).size, 0);
  } catch {
    return 0;
  }
}
