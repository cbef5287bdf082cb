import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished } from "vitest";

export const program: string = join(import.meta.dirname, "..", "..", "bin", "hypersdk.js");

export interface Ran {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A folder that goes with the test. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "hypersdk-test-"));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** The built program, in `cwd`, without the environment of whoever runs the tests. */
export function hypersdk(cwd: string, args: readonly string[], env: Record<string, string> = {}): Promise<Ran> {
  return start(cwd, args, env).done;
}

/** The same, where it has to end well. @returns what it printed */
export async function ok(folder: string, args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await hypersdk(folder, args);
  expect([args.join(" "), code, stderr]).toEqual([args.join(" "), 0, expect.any(String) as string]);
  return stdout;
}

export function start(
  cwd: string,
  args: readonly string[],
  env: Record<string, string> = {},
): { readonly pid: number; kill(signal: NodeJS.Signals): void; readonly done: Promise<Ran> } {
  const child = spawn(process.execPath, [program, ...args], {
    cwd,
    stdio: ["ignore", "pipe", "pipe"],
    env: {
      PATH: process.env["PATH"] ?? "",
      HOME: cwd,
      XDG_CACHE_HOME: join(cwd, ".cache"),
      XDG_STATE_HOME: join(cwd, ".state"),
      GIT_CONFIG_GLOBAL: "/dev/null",
      // compiled once for all tests, whose caches are their own
      NODE_COMPILE_CACHE: join(tmpdir(), `hypersdk-test-code-${process.getuid?.()}`),
      ...env,
    },
  });
  let [stdout, stderr] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const done = new Promise<Ran>((resolve, reject) => child.on("error", reject).on("close", (code) => resolve({ code, stdout, stderr })));
  return { pid: child.pid ?? 0, kill: (signal) => void child.kill(signal), done };
}

export function git(cwd: string, ...args: string[]): string {
  return execFileSync("git", ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "init.defaultBranch=main", ...args], {
    cwd,
    encoding: "utf8",
    env: { ...process.env, GIT_CONFIG_GLOBAL: "/dev/null" },
  });
}

/** A git work tree with one configuration file and everything else ignored. */
export function workTree(yaml: string): string {
  const folder = temporaryFolder();
  git(folder, "init", "--quiet");
  writeFileSync(join(folder, ".gitignore"), "*\n!*.yaml\n!.gitignore\n");
  writeFileSync(join(folder, "infrastructure.yaml"), yaml);
  commit(folder);
  return folder;
}

export function commit(folder: string): void {
  git(folder, "add", "--all");
  git(folder, "commit", "--quiet", "--allow-empty", "-m", "change");
}
