import type { EngineContext } from "../../engine/context.ts";
import { type Reconciled, reconcile } from "../../engine/reconcile.ts";
import { noteRefusal } from "../../engine/revisions.ts";
import type { Unseen } from "../../engine/unseen.ts";
import { parseDuration } from "../../model/duration.ts";
import { HypersdkError } from "../../model/errors.ts";
import type { Observed } from "../../model/observed.ts";
import { narrow } from "../../plan/narrow.ts";
import { type Change, isEmpty, type Plan, unexplainedProtections } from "../../plan/plan.ts";
import { type PlanFile, planDigest, whatMoved } from "../../plan/plan-file.ts";
import { unsafeReasons } from "../../plan/unsafe.ts";
import { isRepositoryPoint } from "../../repository/points.ts";
import type { RunRow } from "../../state/runs.ts";
import type { State } from "../../state/state.ts";
import { plural, renderPlan } from "../../ui/plan-view.ts";
import { printable } from "../../ui/style.ts";
import { formatTime } from "../../ui/times.ts";
import { loadDesired } from "../desired.ts";
import { exitCodes } from "../exit-codes.ts";
import type { Io } from "../io.ts";
import type { SourceOptions } from "../load.ts";
import { askForYes } from "../prompt.ts";
import { inSession, progressOn } from "../session.ts";
import { toolVersion } from "../tool-version.ts";
import { timezonesOf } from "../view.ts";
import { checkTargets, nothingOfTargets, refuseUnknownAddresses, tellGitHub } from "./plan.ts";
import { readPlanFile } from "./show.ts";

export interface ApplyOptions extends SourceOptions {
  readonly autoApprove?: "all" | "safe";
  readonly parallelism?: number;
  readonly lockTimeout?: string;
  readonly exports?: boolean;
  readonly adopt?: boolean;
  readonly target?: readonly string[];
  readonly exclude?: readonly string[];
}

export async function apply(planFile: string | undefined, options: ApplyOptions, io: Io): Promise<number> {
  checkTargets([...(options.target ?? []), ...(options.exclude ?? [])]);
  const lockTimeoutMs = durationOption("--lock-timeout", options.lockTimeout);
  const saved = planFile === undefined ? undefined : readSaved(planFile);
  const loaded = await loadDesired(options, io);
  return inSession(io, { ...loaded, adopt: options.adopt, progress: io.quiet ? undefined : progressOn(io) }, async ({ state, context, interrupts, settle }) => {
    if (saved instanceof HypersdkError) {
      await noteRefusal(saved, context);
      throw saved;
    }
    let gone: readonly Unseen[] = [];
    const approve = async (made: Plan, observed: Observed): Promise<Plan> => {
      const plan = narrow(saved ? bounded(saved, made) : made, options.target ?? [], options.exclude ?? []);
      refuseUnknownAddresses([...(options.target ?? []), ...(options.exclude ?? [])], made, loaded.desired);
      if (saved && options.exports !== false) gone = goneSince(narrow(saved.plan, options.target ?? [], options.exclude ?? []), observed);
      const zones = timezonesOf(loaded.desired, plan);
      tellGitHub(plan, zones, io);
      if (!io.json && !io.quiet) io.out(renderPlan(plan, { style: io.style, summary: false, timezoneOf: zones }));
      await askFor(plan, saved !== undefined, options, io);
      return plan;
    };
    const reconciled = await notingRefusals(context, () =>
      reconcile(loaded.desired, context, { lockTimeoutMs, parallelism: options.parallelism, exports: options.exports ?? true, approve }),
    );
    const { unseen } = reconciled;
    const alsoGone = gone.filter((each) => !unseen.some(({ schedule, vmPath }) => schedule === each.schedule && vmPath === each.vmPath));
    const result = { ...reconciled, unseen: [...unseen, ...alsoGone] };
    settle();
    const isNarrowed = (options.target ?? []).length + (options.exclude ?? []).length > 0;
    report(result, { state, isNarrowed, exports: options.exports ?? true, interruptedWith: interrupts.exitCode, zones: timezonesOf(loaded.desired) }, io);
    return result.failed.length + result.notRemoved + result.unseen.length > 0 ? exitCodes.partlyFailed : exitCodes.done;
  });
}

export function durationOption(flag: string, text: string | undefined): number {
  if (text === undefined || text === "0") return 0;
  const ms = parseDuration(text);
  if (ms === undefined) throw new HypersdkError("Usage", `${flag} ${JSON.stringify(text)} is no duration`, { hint: "such as 30s or 5m" });
  return ms;
}

/** A saved plan is an upper bound: what is due or expires now and was not in it is left for the next plan. */
function bounded(saved: PlanFile, current: Plan): Plan {
  const moved = whatMoved(saved, current, toolVersion());
  if (moved.length > 0) throw new HypersdkError("PlanStale", `the plan is stale: ${moved.join("; ")}`, { hint: "make a new plan and look at it" });
  const due = new Set([...saved.plan.exports, ...saved.plan.deferred].map(({ schedule, identity, provider }) => `${schedule}\n${provider}\n${identity}`));
  const points = new Set([...saved.plan.expiry.mark, ...saved.plan.expiry.remove].map(({ point }) => point));
  const addresses = new Set(saved.plan.changes.map(({ address }) => address));
  const protections = new Set(saved.plan.protections.map(({ kind, schedule, provider, identity }) => `${kind}\n${schedule}\n${provider}\n${identity}`));
  const withdrawn = new Set(saved.plan.expiry.withdraw.map(({ point }) => point));
  const kept = current.protections.filter(({ kind, schedule, provider, identity }) => protections.has(`${kind}\n${schedule}\n${provider}\n${identity}`));
  const begins = new Set(kept.flatMap(({ kind, schedule, vmPath }) => (kind === "begin" ? [`schedule.${schedule}\n${vmPath}`] : [])));
  const boundedChange = (change: Change): Change => {
    const { consequences } = change;
    return { ...change, consequences: { ...consequences, gained: consequences.gained.filter((path) => begins.has(`${change.address}\n${path}`)) } };
  };
  return {
    ...current,
    changes: current.changes.filter(({ address }) => addresses.has(address)).map(boundedChange),
    protections: kept,
    exports: current.exports.filter((each) => due.has(`${each.schedule}\n${each.provider}\n${each.identity}`)),
    expiry: {
      ...current.expiry,
      withdraw: current.expiry.withdraw.filter(({ point }) => withdrawn.has(point)),
      mark: current.expiry.mark.filter(({ point }) => points.has(point)),
      remove: current.expiry.remove.filter(({ point }) => points.has(point)),
    },
  };
}

/** Exports that a saved plan promised, of VMs that nobody sees now. */
function goneSince({ exports }: Plan, { vms, unknownVms, unknownProviders }: Observed): Unseen[] {
  const there = new Set(vms.map(({ provider, identity, sourceIdentity }) => `${provider}\n${sourceIdentity ?? identity}`));
  return exports
    .filter(({ provider, sourceIdentity }) => !there.has(`${provider}\n${sourceIdentity}`))
    .map(({ schedule, vmPath, provider, sourceIdentity }) => {
      const unknown =
        unknownVms.find((each) => each.provider === provider && each.identity === sourceIdentity) ?? unknownProviders.find(({ name }) => name === provider);
      return { schedule, vmPath, reason: unknown?.reason ?? "the plan had it, and its provider does not show it now" };
    });
}

/** A saved plan, or what is wrong with it: who brings a forged one is to be found in the history. */
function readSaved(path: string): PlanFile | HypersdkError {
  try {
    return readPlanFile(path);
  } catch (error) {
    if (error instanceof HypersdkError && error.code === "PlanInvalid") return error;
    throw error;
  }
}

async function notingRefusals<Result>(context: EngineContext, work: () => Promise<Result>): Promise<Result> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof HypersdkError && ["Declined", "PlanStale"].includes(error.code)) await noteRefusal(error, context);
    throw error;
  }
}

async function askFor(plan: Plan, isSaved: boolean, { autoApprove }: ApplyOptions, io: Io): Promise<void> {
  if (isEmpty(plan) || autoApprove === "all" || isSaved) return;
  if (autoApprove === "safe") {
    const reasons = unsafeReasons(plan);
    if (reasons.length === 0) return;
    throw new HypersdkError(
      "Declined",
      `the plan is not safe to apply unseen: ${reasons.slice(0, 5).join("; ")}${reasons.length > 5 ? `; and ${reasons.length - 5} more` : ""}`,
      { hint: "look at it and say --auto-approve, or apply a saved plan" },
    );
  }
  if (!io.isInteractive)
    throw new HypersdkError("Declined", "nobody can answer whether this plan may be applied", {
      hint: "say --auto-approve, --auto-approve=safe, or apply a saved plan",
    });
  await askForYes("\nApply this plan?", "nothing was changed");
}

interface ReportContext {
  readonly state: State;
  /** Whether --target or --exclude left something out. */
  readonly isNarrowed: boolean;
  /** Whether what is due was to be exported. */
  readonly exports: boolean;
  readonly interruptedWith: number | undefined;
  readonly zones: (schedule: string) => string;
}

function report(result: Reconciled, { state, isNarrowed, exports, interruptedWith, zones }: ReportContext, io: Io): void {
  const { plan, completed, failed, interrupted, notStarted, removed, unseen } = result;
  const names = (works: Reconciled["failed"]): { schedule: string; vmPath: string; run: string }[] =>
    works.map(({ run }) => ({ schedule: run.schedule, vmPath: run.vmPath, run: run.id }));
  if (io.json) {
    io.result("apply", {
      digest: planDigest(plan),
      serial: state.serial,
      changes: plan.changes.length,
      completed,
      removed,
      failed: names(failed),
      interrupted: names(interrupted),
      notStarted: names(notStarted),
      unseen,
    });
    return;
  }
  tellUnseen(unseen, io);
  if (isEmpty(plan)) {
    if (isNarrowed) io.out(nothingOfTargets);
    else io.out(plan.drift.length > 0 ? "Nothing to carry out; what drifted needs a look.\n" : "Nothing to do: what is recorded is what the files say.\n");
    return;
  }
  const { style } = io;
  io.out(
    `\n${style.bold(`Applied: ${plural(plan.changes.length + unexplainedProtections(plan).length, "change")}. ${plural(completed, "export")} completed, ${failed.length} failed. ${plural(plan.expiry.mark.length, "restore point")} marked to expire, ${removed} removed.`)}\n`,
  );
  if (interruptedWith !== undefined) io.out(`${plural(notStarted.length, "export")} not started, ${interrupted.length} can be resumed: hypersdk apply\n`);
  for (const { run } of failed) io.out(`  ${style.red("✗")} ${run.schedule}  ${run.vmPath}: ${wayOn(run, state)}\n`);
  const nothingRan = completed + failed.length === 0 && interruptedWith === undefined;
  const [waiting] = plan.deferred;
  const [first] = plan.changes
    .filter((change) => change.kind === "create" && change.resource === "schedule" && change.consequences.nextRunAfter)
    .sort((a, b) => ((a.consequences.nextRunAfter as string) < (b.consequences.nextRunAfter as string) ? -1 : 1));
  if (!exports && plan.exports.length > 0)
    io.out(
      `${plural(plan.exports.length, "export")} ${plan.exports.length === 1 ? "is" : "are"} due: the next apply without --no-exports, or watch, starts ${plan.exports.length === 1 ? "it" : "them"}\n`,
    );
  else if (waiting && nothingRan)
    io.out(
      `${waiting.vmPath} ${waiting.reason}${plan.deferred.length > 1 ? `, and ${plan.deferred.length - 1} more wait` : ""}: the next apply, or watch, starts what can start\n`,
    );
  else if (first?.consequences.nextRunAfter && nothingRan) {
    const name = first.address.slice("schedule.".length);
    io.out(`The first export comes ${formatTime(first.consequences.nextRunAfter, zones(name), plan.at)}; \`hypersdk run ${name}\` exports now\n`);
  }
  if (completed > 0 && failed.length === 0 && interruptedWith === undefined)
    io.out(`To see what there is: hypersdk get artifacts. To restore: hypersdk restore --vm PATH --to FILE\n`);
}

const mostUnseenTold = 10;

/** VMs that are protected, and of which nothing was exported because they could not be looked at. */
export function tellUnseen(unseen: readonly Unseen[], { err, errStyle: style }: Io): void {
  for (const { schedule, vmPath, reason } of unseen.slice(0, mostUnseenTold))
    err(`${style.red("✗")} ${schedule}  ${printable(vmPath)} could not be looked at, and is not exported: ${reason}\n`);
  if (unseen.length > mostUnseenTold) err(`  and ${plural(unseen.length - mostUnseenTold, "more VM")}\n`);
}

/** What helps after a failure: what is damaged at a repository is found there again by whatever is exported next. */
function wayOn({ id, schedule, vmPath, destination, folder }: RunRow, state: State): string {
  const isDamaged = state.runs.get(id)?.errorCode === "ArtifactDamaged" && folder !== undefined && isRepositoryPoint(folder);
  return isDamaged
    ? `\`hypersdk check --read-data --destination ${quoted(destination)}\` says what is damaged, \`hypersdk repair\` drops it`
    : `try again with \`hypersdk run ${schedule} --vm ${quoted(vmPath)}\``;
}

export function quoted(text: string): string {
  return /^[A-Za-z0-9_/.:@%+=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
