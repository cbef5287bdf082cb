import { spawnSync } from "node:child_process";
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";

export interface Measured {
  /** User and system CPU of the process and its children, in seconds. */
  readonly cpuS: number;
  readonly wallS: number;
  readonly peakMiB: number;
}

/** Runs a command under GNU time. @throws when it fails */
export function measure(command: readonly string[], cwd: string, env: Record<string, string> = {}, okCodes: readonly number[] = [0]): Measured {
  const { status, stderr } = spawnSync("/usr/bin/time", ["-f", "\n@@ %U %S %e %M", ...command], {
    cwd,
    encoding: "utf8",
    env: { ...process.env, ...env },
    maxBuffer: 2 ** 28,
  });
  const found = /@@ ([\d.]+) ([\d.]+) ([\d.]+) (\d+)/.exec(stderr);
  if (!found || !okCodes.includes(status ?? -1)) throw new Error(`${command.join(" ")} ended with ${status}: ${stderr.slice(-500)}`);
  const [user = 0, system = 0, wall = 0, kilobytes = 0] = found.slice(1).map(Number);
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
