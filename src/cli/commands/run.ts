import { observe } from "../../engine/observe.ts";
import { runQueue } from "../../engine/queue.ts";
import { refuseForeign } from "../../engine/reconcile.ts";
import { recover } from "../../engine/recover.ts";
import { type RunWork, runExport } from "../../engine/run-export.ts";
import { unseenOf } from "../../engine/unseen.ts";
import type { DestinationSpec, ProviderSpec, ScheduleSpec } from "../../model/desired.ts";
import { HypersdkError } from "../../model/errors.ts";
import { epochMsOf } from "../../model/instant.ts";
import { parsePattern } from "../../model/pattern.ts";
import { unknownsOf } from "../../plan/drift.ts";
import { membership } from "../../plan/membership.ts";
import { withRenames } from "../../plan/shown.ts";
import { manualScope } from "../../state/leases.ts";
import { plural } from "../../ui/plan-view.ts";
import { printable } from "../../ui/style.ts";
import { clock, random } from "../compose.ts";
import { loadDesired, scheduleNamed } from "../desired.ts";
import { exitCodes } from "../exit-codes.ts";
import type { Io } from "../io.ts";
import type { SourceOptions } from "../load.ts";
import { inSession, progressOn } from "../session.ts";
import { tellUnseen } from "./apply.ts";

export interface RunOptions extends SourceOptions {
  readonly vm?: readonly string[];
  readonly full?: boolean;
  readonly parallelism?: number;
  readonly adopt?: boolean;
}

/** Exports a schedule's VMs now, whatever its fire time, windows or suspension say; handles no fire time. */
export async function run(name: string, options: RunOptions, io: Io): Promise<number> {
  const { desired, revision, statePath } = await loadDesired(options, io);
  const schedule = scheduleNamed(name, desired);
  const patterns = (options.vm ?? []).map((text) => {
    const pattern = parsePattern(text);
    if (typeof pattern === "string") throw new HypersdkError("Usage", `--vm ${JSON.stringify(text)}: ${pattern}`);
    return pattern;
  });
  const progress = io.quiet || io.json ? undefined : progressOn(io);
  return inSession(io, { statePath, revision, adopt: options.adopt, progress }, async ({ state, context, settle }) => {
    if (!state.configuration.resources().some(({ address }) => address === `schedule.${name}`)) {
      throw new HypersdkError("Failed", `schedule "${name}" is in the files, but was never applied`, { hint: "hypersdk apply comes first" });
    }
    const observed = await observe(desired, context, state.configuration.protections());
    const unknown = observed.unknownProviders[0];
    if (unknown && observed.vms.length === 0) throw new HypersdkError("ProviderUnreachable", `provider ${unknown.name}: ${unknown.reason}`);
    refuseForeign(observed.destinations, state.lineage, options.adopt ?? false);
    const isAsked = (path: string): boolean => patterns.length === 0 || patterns.some((pattern) => pattern.matches(path));
    // who makes all exports by hand would see what was killed run for ever
    await recover(desired, context, ({ schedule, vmPath }) => schedule === name && isAsked(vmPath));
    const at = clock.now();
    const vms = withRenames(desired, observed.vms, state.configuration.protections());
    const members = [...membership(desired, vms, []).members.values()].filter((member) => member.schedule.name === name && member.vm && isAsked(member.vmPath));
    const unseen = unseenOf(unknownsOf(observed), (other) => other === name, state).filter(({ vmPath }) => isAsked(vmPath));
    const missing = state.configuration
      .protections()
      .filter((each) => each.schedule === name && isAsked(each.vmPath))
      .filter(({ provider, identity }) => !vms.some((vm) => vm.provider === provider && vm.identity === identity))
      .filter(({ provider, vmPath }) => !observed.unknownProviders.some((each) => each.name === provider) && !unseen.some((each) => each.vmPath === vmPath))
      .map(({ provider, vmPath }) => `${printable(vmPath)} is protected and missing: provider ${provider} does not show it`);
    if (!io.json) {
      tellUnseen(unseen, io);
      for (const what of members.length > 0 ? missing : []) io.err(`${io.errStyle.yellow("warning")}: ${what}, and nothing is exported of it\n`);
      if (schedule.suspend || state.configuration.suspensions().includes(name))
        io.err(`${io.errStyle.yellow("warning")}: schedule "${name}" is suspended; this run was asked for, and goes on\n`);
    }
    if (members.length === 0 && unseen[0]) throw new HypersdkError("SourceUnavailable", `no VM of schedule "${name}" can be looked at: ${unseen[0].reason}`);
    if (members.length === 0 && missing[0])
      throw new HypersdkError("NotFound", missing[0], { hint: "is the folder of its images mounted? hypersdk get vms lists what the providers show" });
    if (members.length === 0)
      throw new HypersdkError("NotFound", `schedule "${name}" has no VM${patterns.length > 0 ? " that matches --vm" : ""}`, {
        hint: "hypersdk get vms lists what the providers show",
      });
    const lease = await state.take(manualScope({ schedule: name, fireTime: at }), `run ${name}`, 5000, clock, random);
    const destination = desired.destinations.find((each) => each.name === schedule.destination) as DestinationSpec;
    const work = members.map(
      (member): RunWork => ({
        schedule,
        turn: { priority: member.priority, waitingSinceMs: epochMsOf(at), tie: member.vmPath },
        sourceIdentity: member.vm?.sourceIdentity ?? member.identity,
        destination,
        ...modeOfRun(schedule, options.full ?? false),
        provider: desired.providers.find((each) => each.name === member.provider) as ProviderSpec,
        run: state.writeUnlocked(() =>
          state.runs.enqueue(
            {
              id: random.uuid(),
              schedule: name,
              provider: member.provider,
              identity: member.identity,
              vmPath: member.vmPath,
              kind: "manual",
              fireTime: at,
              destination: destination.name,
              destinationUrl: destination.url,
            },
            at,
          ),
        ),
        expected: { readBytes: member.vm?.disks.reduce((sum, disk) => sum + disk.dataBytes, 0) ?? 0, storedBytes: null, durationMs: null },
      }),
    );
    const result = await runQueue(work, options.parallelism ?? desired.concurrency, context.signal, (item, place) => runExport(item, place, context));
    for (const { run: left } of result.notStarted)
      state.writeUnlocked(() => state.runs.end(left.id, "cancelled", clock.now(), { code: "NotStarted", message: "not started" }));
    state.release(lease);
    settle();
    const names = (works: readonly RunWork[]): object[] => works.map((each) => ({ schedule: each.run.schedule, vmPath: each.run.vmPath, run: each.run.id }));
    if (io.json)
      io.result("run", {
        completed: result.completed,
        failed: names(result.failed),
        interrupted: names(result.interrupted),
        notStarted: names(result.notStarted),
        unseen,
      });
    else io.out(`${io.style.bold(`${plural(result.completed, "export")} completed, ${result.failed.length} failed.`)}\n`);
    const left = result.notStarted.length + result.interrupted.length;
    const elsewhere = work.length - result.completed - result.failed.length - left;
    if (!io.json && elsewhere > 0) io.out(`${plural(elsewhere, "export")} made by another process that was asked at the same time\n`);
    if (!io.json && left > 0 && context.signal.aborted) io.out(`${plural(left, "export")} not made: hypersdk run ${name} begins them anew\n`);
    if (result.failed.length + unseen.length > 0) return exitCodes.partlyFailed;
    return result.notStarted.length > 0 ? exitCodes.locked : exitCodes.done;
  });
}

/** What the state remembers is no ground for reading everything: a run that was killed may have stored more than it could record. */
function modeOfRun({ incremental }: ScheduleSpec, isFull: boolean): Pick<RunWork, "mode" | "modeReason"> {
  if (isFull) return { mode: "full", modeReason: "a full export was asked for" };
  return incremental ? { mode: "incremental", modeReason: "the export decides" } : { mode: "full", modeReason: "the schedule is not incremental" };
}
