import { execFileSync } from "node:child_process";
import { accessSync, constants, existsSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { loadHoleFinder } from "../../converters/raw/hole-finder.ts";
import { HypersdkError } from "../../model/errors.ts";
import { State } from "../../state/state.ts";
import { plural } from "../../ui/plan-view.ts";
import { exitCodes } from "../exit-codes.ts";
import type { Io } from "../io.ts";
import { type Loaded, load, type SourceOptions } from "../load.ts";
import { toolVersion } from "../tool-version.ts";

interface Finding {
  readonly what: string;
  readonly ok: boolean;
  readonly text: string;
}

/** Looks at everything a run needs and says what is amiss, in words that can be sent to somebody else. */
export async function doctor(options: SourceOptions, io: Io): Promise<number> {
  const findings: Finding[] = [];
  const add = (what: string, ok: boolean, text: string): void => void findings.push({ what, ok, text });
  add("hypersdk", true, `${toolVersion()} on Node ${process.versions.node}, ${process.platform} ${process.arch}`);
  try {
    add("git", true, execFileSync("git", ["--version"], { encoding: "utf8" }).trim());
  } catch {
    add("git", false, "git is not installed: only files named with -f can be read");
  }
  add("holes", true, (await loadHoleFinder()) ? "sparse files are read by their holes" : "koffi is not there: sparse files are read whole, which is slower");
  add("locks", true, existsSync("/proc/locks") ? "/proc/locks shows which images are in use" : "no /proc/locks here: a running VM's image is not noticed");
  let loaded: Loaded | undefined;
  try {
    loaded = await load(options, io.env, io.cwd);
    const errors = loaded.diagnostics.filter(({ severity }) => severity === "error").length;
    add("files", errors === 0, errors === 0 ? `${plural(loaded.fileCount, "file")}, valid` : `${errors} errors: hypersdk validate shows them`);
  } catch (error) {
    if (!(error instanceof HypersdkError)) throw error;
    add("files", false, error.message);
  }
  if (loaded) checkState(loaded.statePath, add);
  for (const { name, path, type } of loaded?.desired?.providers ?? [])
    if (type === "local") add(`provider.${name}`, existsSync(path), existsSync(path) ? path : `${path} is not there`);
  for (const { name, url } of loaded?.desired?.destinations ?? [])
    if (url.startsWith("file://")) checkFolder(`destination.${name}`, url.slice("file://".length), add);
  const isWell = findings.every(({ ok }) => ok);
  if (io.json) io.result("doctor", { ok: isWell, findings });
  else for (const { what, ok, text } of findings) io.out(`${ok ? io.style.green("✓") : io.style.red("✗")} ${what.padEnd(24)} ${text}\n`);
  return isWell ? exitCodes.done : exitCodes.failed;
}

function checkState(path: string, add: (what: string, ok: boolean, text: string) => void): void {
  try {
    const state = State.openForReading(path);
    if (!state) {
      add("state", true, `${path}: not made yet`);
      return;
    }
    const chain = state.audit.verify();
    add(
      "state",
      chain.brokenAt === undefined,
      chain.brokenAt === undefined
        ? `${path}: serial ${state.serial}, audit chain of ${chain.rows} rows holds`
        : `${path}: the audit chain is broken at row ${chain.brokenAt}`,
    );
    const mode = statSync(path).mode & 0o777;
    if (mode & 0o077) add("state", false, `${path} can be read by others (mode ${mode.toString(8)})`);
    state.close();
  } catch (error) {
    if (!(error instanceof HypersdkError)) throw error;
    add("state", false, error.message);
  }
}

function checkFolder(what: string, path: string, add: (what: string, ok: boolean, text: string) => void): void {
  let existing = path;
  while (!existsSync(existing)) existing = dirname(existing);
  try {
    accessSync(existing, constants.W_OK);
    add(what, true, existing === path ? path : `${path}: not made yet`);
  } catch {
    add(what, false, `${existing} cannot be written`);
  }
}
