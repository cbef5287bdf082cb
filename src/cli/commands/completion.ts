import type { Command } from "commander";
import { observe } from "../../engine/observe.ts";
import { HypersdkError } from "../../model/errors.ts";
import type { RestorePoint } from "../../model/recorded.ts";
import { adapters } from "../compose.ts";
import type { Io } from "../io.ts";
import { load } from "../load.ts";
import { kinds } from "./get.ts";
import { recordedPoints } from "./points.ts";

/** A script that asks the program itself for the words that fit, so that schedules and VM paths complete too. */
export function completionScript(shell: string): string {
  switch (shell) {
    case "bash":
      return `_hypersdk() {
  local word=\${COMP_WORDS[COMP_CWORD]}
  word=\${word#\\"} word=\${word#\\'} word=\${word//\\\\/}
  mapfile -t COMPREPLY < <(hypersdk __complete "\${COMP_WORDS[@]:1:COMP_CWORD-1}" "$word" 2>/dev/null)
  # a path of a VM is quoted as a file's name would be
  if [[ \${#COMPREPLY[@]} -eq 0 ]]; then compopt -o default; elif [[ $word == /* ]]; then compopt -o filenames; fi
}
complete -F _hypersdk hypersdk
`;
    case "zsh":
      return `#compdef hypersdk
_hypersdk() {
  local -a words_found
  words_found=("\${(@f)$(hypersdk __complete "\${(@)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ -n "\${words_found[*]}" ]]; then compadd -- "\${words_found[@]}"; else _files; fi
}
compdef _hypersdk hypersdk
`;
    case "fish":
      return `complete -c hypersdk -a '(hypersdk __complete (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'
`;
    default:
      throw new HypersdkError("Usage", `there is no completion for ${JSON.stringify(shell)}`, { hint: "bash, zsh or fish" });
  }
}

/** The words that may stand where the cursor is. Never fails: completion that complains is worse than none. */
export async function complete(words: readonly string[], program: Command, io: Io): Promise<number> {
  const current = words.at(-1) ?? "";
  const before = words.slice(0, -1);
  let command = program;
  for (const word of before) command = command.commands.find((each) => each.name() === word) ?? command;
  const found = await candidates(command, before, current, io).catch(() => []);
  io.out(
    found
      .filter((word) => word.startsWith(current))
      .map((word) => `${word}\n`)
      .join(""),
  );
  return 0;
}

async function candidates(command: Command, before: readonly string[], current: string, io: Io): Promise<string[]> {
  const previous = before.at(-1) ?? "";
  if (["--vm", "--target", "--exclude"].includes(previous)) return vmPaths(io);
  if (previous === "--schedule") return schedules(io);
  const path = command.parent?.parent ? `${command.parent.name()} ${command.name()}` : command.name();
  if (previous === "--destination" || (path === "state rebuild" && previous === "--from")) return destinations(io);
  const option = command.options.find((each) => each.long === previous);
  if (option?.argChoices) return option.argChoices;
  if (option?.required) return [];
  if (current.startsWith("-")) return command.options.flatMap(({ long }) => long ?? []);
  if (command.commands.length > 0) return command.commands.filter((each) => !each.name().startsWith("__")).map((each) => each.name());
  if (["run", "suspend", "resume", "schedule preview"].includes(path)) return schedules(io);
  if (["restore", "mount", "verify", "hold"].includes(path)) return points(io);
  if (path === "unhold") return points(io, ({ held }) => held);
  if (path === "copy") return previous === "copy" ? [...(await destinations(io)), ...(await points(io))] : destinations(io);
  if (path === "get") return [...kinds];
  if (path === "state forget") return vmPaths(io);
  if (path === "completion") return ["bash", "zsh", "fish"];
  return [];
}

async function schedules(io: Io): Promise<string[]> {
  return ((await load({}, io.env, io.cwd)).desired?.schedules ?? []).map(({ name }) => name);
}

async function destinations(io: Io): Promise<string[]> {
  return ((await load({}, io.env, io.cwd)).desired?.destinations ?? []).map(({ name }) => name);
}

/** Restore points by the beginning of their ids. */
async function points(io: Io, isMeant: (point: RestorePoint) => boolean = () => true): Promise<string[]> {
  return (await recordedPoints({}, io)).points.filter(isMeant).map(({ id }) => id.slice(0, 8));
}

async function vmPaths(io: Io): Promise<string[]> {
  const { desired } = await load({}, io.env, io.cwd);
  return desired ? (await observe({ ...desired, destinations: [] }, adapters)).vms.map(({ path }) => path) : [];
}
