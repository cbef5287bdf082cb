import { type SimpleGit, simpleGit } from "simple-git";
import { HypersdkError } from "../model/errors.ts";

/**
 * The operator's own settings that reach git. simple-git keeps everything else of `GIT_*` away from it; nothing of this comes
 * from a repository or a configuration file.
 */
const passed = ["GIT_SSH_COMMAND", "GIT_SSH", "GIT_ASKPASS", "SSH_ASKPASS", "GIT_SSL_CAINFO", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM"];
const set = { GIT_TERMINAL_PROMPT: "0", GIT_ALLOW_PROTOCOL: "file:ssh:https", GIT_OPTIONAL_LOCKS: "0", LC_ALL: "C" };

/**
 * Links become plain files with their target as text, so that no path of a checkout leads out of it. A transfer that stands still
 * ends by itself, also one whose git is gone.
 */
const config = ["core.symlinks=false", "core.fsmonitor=false", "core.hooksPath=/dev/null", "http.lowSpeedLimit=1", "http.lowSpeedTime=60"];

export interface GitOptions {
  /** Ends git when it is aborted. */
  readonly signal?: AbortSignal;
  /** Settings for this call, each `name=value`. */
  readonly config?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

/** What git may say of one call: the list of a million files, and an error that somebody reads. Servers have a say in both. */
const maxOutputBytes = 128 * 2 ** 20;
const maxErrorBytes = 2 ** 20;

/** git, in `folder`. A git that says nothing for five minutes, or too much, is ended. */
export function gitIn(folder: string, env: NodeJS.ProcessEnv, { signal, config: more = [], env: extra = {} }: GitOptions = {}): SimpleGit {
  const own = Object.fromEntries(
    Object.entries(env).filter(([name]) => !/^GIT_|^(EDITOR|PAGER|VISUAL|PREFIX|SSH_ASKPASS|GIT)$/.test(name) || passed.includes(name)),
  );
  const overflow = new AbortController();
  return simpleGit({
    baseDir: folder,
    config: [...config, ...more],
    abort: signal ? AbortSignal.any([signal, overflow.signal]) : overflow.signal,
    // an exit code counts also where git says nothing, as verify-commit does of a commit without a signature
    errors: (error, { exitCode, stdErr }) =>
      error ?? (exitCode === 0 ? undefined : stdErr.length > 0 ? Buffer.concat(stdErr) : new Error(`git ended with ${exitCode}`)),
    timeout: { block: 300_000 },
    allowEnvironment: [...passed, ...Object.keys(set), ...Object.keys(extra)],
    unsafe: {
      allowUnsafeGpgProgram: true,
      allowUnsafeSshCommand: true,
      allowUnsafeAskPass: true,
      allowUnsafeConfigPaths: true,
      allowUnsafeFsMonitor: true,
      allowUnsafeHooksPath: true,
    },
  })
    .env({ ...own, ...set, ...extra })
    .outputHandler((_, stdout, stderr) => {
      for (const [stream, most] of [
        [stdout, maxOutputBytes],
        [stderr, maxErrorBytes],
      ] as const) {
        let bytes = 0;
        stream.on("data", (data: Buffer) => {
          bytes += data.length;
          if (bytes > most) overflow.abort();
        });
      }
    });
}

/** What git said on its error stream, without credentials, as one error. */
export function gitError(what: string, error: unknown, hint?: string): HypersdkError {
  const said = String((error as Error).message ?? error)
    .slice(0, 65_536)
    .replace(/\/\/[^/@\s]*@/g, "//…@");
  const line =
    said
      .split("\n")
      .map((each) => each.replace(/^(fatal|error|remote): /, "").trim())
      .find((each) => each !== "" && !/^(Cloning|warning|hint)/i.test(each)) ?? "git failed";
  const why = line === "Abort signal received" ? "git was ended: it was told to stop, or it said too much" : line.slice(0, 500);
  return new HypersdkError("SourceUnavailable", `${what}: ${why}`, { cause: error, ...(hint === undefined ? {} : { hint }) });
}
