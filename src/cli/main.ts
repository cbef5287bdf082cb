import { existsSync, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Command, CommanderError } from "commander";
import { errnoOf, errnoText, HypersdkError } from "../model/errors.ts";
import { printable } from "../ui/style.ts";
import { exitCodeOf, exitCodes } from "./exit-codes.ts";
import { type GlobalOptions, type Io, makeIo } from "./io.ts";
import { makeProgram } from "./program.ts";

/** Flags whose value may be left out: what follows them is their value only when it can be one. */
const optionalValues: Readonly<Record<string, { readonly values: readonly string[]; readonly alone: string; readonly refusesOthers?: true }>> = {
  "apply --auto-approve": { values: ["all", "safe"], alone: "all" },
  "convert --compress": { values: ["zlib", "zstd"], alone: "zlib", refusesOthers: true },
};

const environmentArgs = "HYPERSDK_ARGS";

let outputError: string | undefined;
// a reader that has seen enough (`| head`), or a terminal that has gone, ends the output and not the program's work
process.stderr.on("error", () => {});
process.stdout.on("error", (error) => {
  if (["EPIPE", "EIO"].includes(errnoOf(error) ?? "") || outputError !== undefined) return;
  // an answer that nobody can have is no success
  outputError = errnoOf(error) ?? error.message;
  process.stderr.write(`error: the output cannot be written: ${errnoText(error)}\n`);
  process.exitCode = exitCodes.failed;
});
void main(process.argv.slice(2)).then((exitCode) => {
  process.exitCode = outputError === undefined || exitCode !== exitCodes.done ? exitCode : exitCodes.failed;
  // the process ends by itself (docs/decisions/014); but a helper of a git that was ended holds a pipe for as long as its server says nothing
  setTimeout(() => {
    if (process.stdout.writableLength === 0 && process.stderr.writableLength === 0) process.exit();
  }, 1000).unref();
});

async function main(argv: string[]): Promise<number> {
  const ran = { exitCode: 0 as number };
  let io: Io | undefined;
  const fromEnvironment = Object.keys(process.env).filter((name) => name.startsWith(environmentArgs));
  const words = [...argv, ...fromEnvironment.flatMap((name) => wordsOf(process.env[name]))];
  const program = makeProgram((options: GlobalOptions) => (io = makeIo(options)), ran, words);
  const args = withEnvironmentArgs(argv, process.env, program);
  try {
    if (args.length === 0) {
      program.outputHelp();
      return exitCodes.done;
    }
    if (args[0] === "__complete") return await (await import("./commands/completion.ts")).complete(args.slice(1), program, makeIo({}));
    if (args.length === 1 && args[0] === "--version") args[0] = "version";
    // for help of what is not there commander prints the help of everything
    if (args[0] === "help" && args[1] !== undefined && !program.commands.some((each) => each.name() === args[1])) args.shift();
    await program.parseAsync(args, { from: "user" });
    return ran.exitCode;
  } catch (caught) {
    const error = isOfSqlite(caught) ? (await import("../state/database.ts")).openedStateError(caught) : caught;
    const shown = io ?? makeIo({ json: args.includes("--json"), ...(args.includes("--no-color") ? { color: false } : {}) });
    if (error instanceof CommanderError) return usage(error, shown);
    if (error instanceof HypersdkError) return failure(error, shown, args);
    const errno = errnoOf(error);
    if (errno && /^E[A-Z0-9]+$/.test(errno)) return failure(new HypersdkError("Failed", (error as Error).message, { cause: error }), shown, args);
    const damage = await Promise.all([import("../state/database.ts"), import("./recorded-spec.ts")]).then(
      ([{ openedStateDamage }, { isRecordedSpec }]) => openedStateDamage(isRecordedSpec),
      () => undefined,
    );
    return damage ? failure(damage, shown, args) : bug(error, shown, args);
  }
}

/**
 * `HYPERSDK_ARGS` before every command's own arguments, `HYPERSDK_ARGS_plan` before those of plan. In `apply --auto-approve FILE`
 * the file is the plan, not the flag's value.
 */
function withEnvironmentArgs(argv: readonly string[], env: NodeJS.ProcessEnv, program: Command): string[] {
  const at = argv.findIndex((word) => !word.startsWith("-"));
  const command = argv[at];
  if (command === undefined || command === "__complete") return [...argv];
  // of a group such as `state` the command is the word behind it
  const isGroup = program.commands.some((each) => each.name() === command && each.commands.length > 0);
  const last = isGroup ? at + 1 : at;
  const args = [...argv.slice(0, last + 1), ...wordsOf(env[environmentArgs]), ...wordsOf(env[`${environmentArgs}_${command}`]), ...argv.slice(last + 1)];
  return args.map((word, i) => {
    const flag = optionalValues[`${command} ${word}`];
    const next = args[i + 1] ?? "";
    // a word without a dot or a slash is meant as a value, and refused by name when it is none
    const isValue = flag?.values.includes(next) || (flag?.refusesOthers && /^[a-z0-9]+$/.test(next) && !existsSync(next));
    return flag && !isValue ? `${word}=${flag.alone}` : word;
  });
}

function wordsOf(text: string | undefined): string[] {
  return [...(text ?? "").matchAll(/"([^"]*)"|'([^']*)'|(\S+)/g)].map((match) => match[1] ?? match[2] ?? match[3] ?? "");
}

function isOfSqlite(error: unknown): boolean {
  return error instanceof Error && error.name === "SqliteError";
}

function usage(error: CommanderError, io: Io): number {
  // help and version were asked for
  if (error.exitCode === 0) return exitCodes.done;
  // a group without its command: its help has been printed
  if (error.code === "commander.help") return exitCodes.usage;
  if (io.json) io.result("error", { code: "Usage", message: error.message.replace(/^error: /, ""), hint: null, diagnostics: [] });
  io.err(`${io.errStyle.red("error")}: ${error.message.replace(/^error: /, "")}\n`);
  io.err("       hypersdk --help, or hypersdk COMMAND --help, says what there is\n");
  return exitCodes.usage;
}

async function failure(error: HypersdkError, io: Io, args: readonly string[]): Promise<number> {
  const diagnostics = error.code === "ConfigInvalid" && "diagnostics" in error ? (error.diagnostics as import("../config/diagnostic.ts").Diagnostic[]) : [];
  if (io.json) io.result("error", { code: error.code, message: error.message, hint: error.hint ?? null, diagnostics });
  if (diagnostics.length > 0 && !io.json) io.err(`${(await import("../ui/diagnostics-view.ts")).renderDiagnostics(diagnostics, io.errStyle)}\n`);
  const isDeclined = error.code === "Declined" && !error.hint;
  io.err(isDeclined ? `${printable(error.message)}\n` : `${io.errStyle.red("error")}: ${printable(error.message)}\n`);
  if (error.hint) io.err(`       ${printable(error.hint)}\n`);
  if (isDebug(args)) io.err(`${error.stack}\n${error.cause instanceof Error ? `cause: ${error.cause.stack}\n` : ""}`);
  return exitCodeOf(error.code);
}

/** What nobody expected: says so, and where the report is. */
function bug(error: unknown, io: Io, args: readonly string[]): number {
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
  let where = "";
  try {
    where = join(mkdtempSync(join(tmpdir(), "hypersdk-")), "bug-report.txt");
    writeFileSync(
      where,
      `hypersdk on Node ${process.versions.node}, ${process.platform} ${process.arch}\ncommand: ${args.find((word) => !word.startsWith("-")) ?? ""}\n\n${text}\n`,
      { mode: 0o600 },
    );
  } catch {
    where = "";
  }
  if (io.json) io.result("error", { code: "Bug", message: error instanceof Error ? error.message : String(error), hint: where || null, diagnostics: [] });
  io.err(
    `${io.errStyle.red("this is a bug in hypersdk")}: ${error instanceof Error ? error.message : String(error)}\n${where ? `       a report was written to ${where}\n` : ""}`,
  );
  if (isDebug(args)) io.err(`${text}\n`);
  return exitCodes.bug;
}

function isDebug(args: readonly string[]): boolean {
  return args.some((word, i) => word === "--log-level=debug" || (word === "--log-level" && args[i + 1] === "debug")) || process.env["HYPERSDK_LOG"] === "debug";
}
