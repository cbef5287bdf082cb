import { appendFileSync, existsSync, rmSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { observe, observeNothing } from "../../engine/observe.ts";
import type { DesiredState } from "../../model/desired.ts";
import { errnoText, HypersdkError } from "../../model/errors.ts";
import { epochMsOf } from "../../model/instant.ts";
import { nearestName } from "../../model/nearest.ts";
import { parsePattern, patternOf } from "../../model/pattern.ts";
import { failingOf } from "../../plan/failing.ts";
import { narrow } from "../../plan/narrow.ts";
import { hasDifference, isEmpty, type Plan, unexplainedProtections } from "../../plan/plan.ts";
import { encodePlanFile, planDigest, planFileBegins } from "../../plan/plan-file.ts";
import { plan as makePlan } from "../../plan/planner.ts";
import { resourcesOf } from "../../plan/resources.ts";
import { emptyRecorded, State } from "../../state/state.ts";
import { planMarkdown, planMarkdownBegins } from "../../ui/plan-markdown.ts";
import { driftSection, plural, renderPlan } from "../../ui/plan-view.ts";
import { printable } from "../../ui/style.ts";
import { adapters, clock } from "../compose.ts";
import { loadDesired } from "../desired.ts";
import { exitCodes } from "../exit-codes.ts";
import type { Io } from "../io.ts";
import type { Loaded, SourceOptions } from "../load.ts";
import { refuseForeign } from "../output-file.ts";
import { timeOption } from "../time-option.ts";
import { toolVersion } from "../tool-version.ts";
import { optimizeLater } from "../v8-flags.ts";
import { timezonesOf } from "../view.ts";

export interface PlanOptions extends SourceOptions {
  readonly out?: string;
  readonly detailedExitcode?: boolean;
  readonly target?: readonly string[];
  readonly exclude?: readonly string[];
  readonly at?: string;
  readonly offline?: boolean;
  readonly summary?: boolean;
  readonly markdown?: string;
}

export async function plan(options: PlanOptions, io: Io): Promise<number> {
  if (options.out !== undefined && options.at !== undefined)
    throw new HypersdkError("Usage", "a plan of another time cannot be carried out, and is not saved: --at without --out");
  if (options.out !== undefined && options.markdown !== undefined && resolve(io.cwd, options.out) === resolve(io.cwd, options.markdown))
    throw new HypersdkError("Usage", `--out and --markdown are both ${options.out}`);
  if (options.out !== undefined) refuseForeign(options.out, "--out", planFileBegins);
  if (options.markdown !== undefined) refuseForeign(options.markdown, "--markdown", planMarkdownBegins);
  const { made, loaded } = await makeFrom(options, io);
  const zones = timezonesOf(loaded.desired, made);
  if (options.out !== undefined) writeOut(options.out, encodePlanFile(made, toolVersion()));
  if (options.markdown !== undefined) writeOut(options.markdown, planMarkdown(made, zones));
  tellGitHub(made, zones, io);
  if (io.json) io.result("plan", { digest: planDigest(made), plan: made });
  else {
    io.out(renderPlan(made, { style: io.style, summary: options.summary ?? false, timezoneOf: zones }));
    if (!options.summary && loaded.ignoredDocuments > 0) io.out(io.style.dim(`${plural(loaded.ignoredDocuments, "other YAML document")} ignored\n`));
    if (!options.summary && !io.quiet) io.out(nextStep(made, options));
  }
  return options.detailedExitcode && hasDifference(made) ? exitCodes.difference : exitCodes.done;
}

/** The part of a plan that is about the world, not about the files. */
export async function drift(options: PlanOptions, io: Io): Promise<number> {
  const { made } = await makeFrom(options, io);
  if (io.json) io.result("drift", { drift: made.drift });
  else if (made.drift.length === 0) io.out("no drift: what is there is what was recorded\n");
  else io.out(`${driftSection(made, io.style).join("\n")}\n`);
  if (made.drift.some(({ kind }) => kind !== "unknown")) return exitCodes.difference;
  return made.drift.length > 0 ? exitCodes.sourceUnavailable : exitCodes.done;
}

async function makeFrom(options: PlanOptions, io: Io): Promise<{ made: Plan; loaded: Loaded }> {
  optimizeLater();
  const now = timeOption("--at", options.at) ?? clock.now();
  checkTargets([...(options.target ?? []), ...(options.exclude ?? [])]);
  const loaded = await loadDesired(options, io);
  const state = State.openForReading(loaded.statePath);
  try {
    const recorded = state?.recorded(now) ?? emptyRecorded;
    const observed = options.offline ? observeNothing(loaded.desired) : await observe(loaded.desired, adapters, recorded.protections);
    const made = makePlan({ desired: loaded.desired, recorded, observed, revision: loaded.revision, now });
    for (const destination of observed.destinations) {
      if (destination.lineage !== undefined && destination.lineage !== recorded.lineage && !io.json) {
        io.err(
          `${io.errStyle.yellow("warning")}: destination ${destination.name} belongs to state ${destination.lineage.slice(0, 8)}, not to this one; apply exits 6 (is the state lost? hypersdk state rebuild --from ${destination.name})\n`,
        );
      }
    }
    if (state && epochMsOf(now) < newestInstantMs(state) - 300_000 && options.at === undefined)
      io.err(`${io.errStyle.yellow("warning")}: the clock is behind what was recorded; nothing expires early, but check it\n`);
    const failing = failingOf(recorded);
    if (failing[0] && !io.json)
      io.err(
        `${io.errStyle.yellow("warning")}: the last export of ${failing.length === 1 ? printable(failing[0].vmPath) : `${plural(failing.length, "VM")}, such as ${printable(failing[0].vmPath)},`} failed: hypersdk status\n`,
      );
    const targets = [...(options.target ?? []), ...(options.exclude ?? [])];
    refuseUnknownAddresses(targets, made, loaded.desired);
    if (!options.offline && observed.unknownProviders.length === 0)
      refuseUnknownVms(targets, [...observed.vms.map(({ path }) => path), ...recorded.protections.map(({ vmPath }) => vmPath)]);
    return { made: narrow(made, options.target ?? [], options.exclude ?? []), loaded };
  } finally {
    state?.close();
  }
}

function newestInstantMs(state: State): number {
  const applied = state.configuration.meta("applied_revision");
  return applied ? Date.parse((JSON.parse(applied) as { at?: string }).at ?? "") || 0 : 0;
}

export function checkTargets(targets: readonly string[]): void {
  for (const target of targets) {
    const problem = target.startsWith("/")
      ? parsePattern(target)
      : /^(schedule|policy|destination|provider|notifier)\.[a-z0-9-]+$/.test(target)
        ? undefined
        : "it is neither an address nor a VM pattern";
    if (typeof problem === "string")
      throw new HypersdkError("Usage", `${JSON.stringify(target)} is no target: ${problem}`, { hint: "such as schedule.daily or /datacenter/vm/prod/*" });
  }
}

/** A target that names nothing would make an empty plan look like good news. */
export function refuseUnknownAddresses(targets: readonly string[], made: Plan, desired: DesiredState): void {
  if (!targets.some((target) => !target.startsWith("/"))) return;
  const known = new Set([...resourcesOf(desired).map(({ address }) => address), ...made.changes.map(({ address }) => address)]);
  for (const target of targets) {
    if (target.startsWith("/") || known.has(target)) continue;
    const near = nearestName(target, known);
    throw new HypersdkError("Usage", `there is no ${JSON.stringify(target)}`, near ? { hint: `did you mean ${near}?` } : {});
  }
}

function refuseUnknownVms(targets: readonly string[], paths: readonly string[]): void {
  for (const target of targets.filter((each) => each.startsWith("/"))) {
    const pattern = patternOf(target);
    if (paths.some((path) => pattern.matches(path))) continue;
    const near = nearestName(target, new Set(paths));
    throw new HypersdkError("Usage", `no VM matches ${JSON.stringify(target)}`, { hint: near ? `did you mean ${near}?` : "hypersdk get vms lists them" });
  }
}

/** What is left out may have plenty to do. */
export const nothingOfTargets = "Nothing to do of what --target and --exclude leave; the rest is left out.\n";

function nextStep(made: Plan, { out, at, target = [], exclude = [] }: PlanOptions): string {
  if (isEmpty(made) && target.length + exclude.length > 0) return nothingOfTargets;
  if (isEmpty(made))
    return made.drift.length > 0 ? "Nothing to carry out; what drifted needs a look.\n" : "Nothing to do: what is recorded is what the files say.\n";
  if (at !== undefined) return "This is a look at another time; apply always works at the present.\n";
  return out === undefined ? "To carry it out: hypersdk apply\n" : `Saved. To carry out exactly this: hypersdk apply ${out}\n`;
}

function writeOut(path: string, text: string): void {
  const isNew = !existsSync(path);
  try {
    writeFileSync(path, text, { mode: 0o600 });
  } catch (error) {
    // a part of a plan is of no use to anybody
    if (isNew) rmSync(path, { force: true });
    throw new HypersdkError("Failed", `cannot write ${path}: ${errnoText(error)}`, { cause: error });
  }
}

/** In GitHub Actions the plan goes to the job's summary, and its counts to the step's outputs. */
export function tellGitHub(made: Plan, zones: (schedule: string) => string, { env, err }: Io): void {
  if (env["GITHUB_ACTIONS"] !== "true") return;
  try {
    if (env["GITHUB_STEP_SUMMARY"]) appendFileSync(env["GITHUB_STEP_SUMMARY"], planMarkdown(made, zones));
    if (env["GITHUB_OUTPUT"])
      appendFileSync(
        env["GITHUB_OUTPUT"],
        `changes=${made.changes.length + unexplainedProtections(made).length}\nexports=${made.exports.length}\nexpiries=${made.expiry.mark.length + made.expiry.remove.length}\n`,
      );
  } catch (error) {
    err(`warning: the job summary could not be written: ${errnoText(error)}\n`);
  }
}
