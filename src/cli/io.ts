import { HypersdkError } from "../model/errors.ts";
import { type Style, styleOf, wantsColour } from "../ui/style.ts";

/** What every command shares: where text goes, how it looks, what the person asked for globally. */
export interface Io {
  readonly env: NodeJS.ProcessEnv;
  readonly cwd: string;
  readonly json: boolean;
  readonly quiet: boolean;
  readonly style: Style;
  /** For what goes to stderr. */
  readonly errStyle: Style;
  readonly isInteractive: boolean;
  readonly eventsTarget: string | undefined;
  /** Diagnostics on stderr, from this level on. */
  readonly logLevel: string | undefined;
  /** The answer, and nothing else. */
  out(text: string): void;
  /** Everything else. */
  err(text: string): void;
  /** One JSON document on stdout. */
  result(type: string, value: object): void;
}

export interface GlobalOptions {
  readonly json?: boolean;
  readonly quiet?: boolean;
  readonly color?: boolean;
  readonly events?: string;
  readonly logLevel?: string;
}

function currentFolder(): string {
  try {
    return process.cwd();
  } catch (cause) {
    throw new HypersdkError("Failed", "the current folder is not there any more", { cause, hint: "change to another, or to the same one anew" });
  }
}

export function makeIo(options: GlobalOptions): Io {
  const { env, stdout, stderr, stdin } = process;
  const out = (text: string): void => void stdout.write(text);
  return {
    env,
    // asked for by who needs it: an error must find a way out where there is none
    get cwd() {
      return currentFolder();
    },
    json: options.json ?? false,
    quiet: options.quiet ?? false,
    eventsTarget: options.events,
    logLevel: options.logLevel ?? (env["HYPERSDK_LOG"] || undefined),
    style: styleOf(!options.json && wantsColour(stdout, env, options.color)),
    errStyle: styleOf(wantsColour(stderr, env, options.color)),
    isInteractive: stdin.isTTY === true && stdout.isTTY === true && env["HYPERSDK_INPUT"] !== "0" && !options.json,
    out,
    err: (text) => void stderr.write(text),
    result: (type, value) => out(`${JSON.stringify({ formatVersion: 1, type, ...value }, null, 2)}\n`),
  };
}
