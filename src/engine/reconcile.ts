import { claim } from "../exports/lineage.ts";
import type { DesiredState, DestinationSpec, ProviderSpec, ScheduleSpec } from "../model/desired.ts";
import { HypersdkError } from "../model/errors.ts";
import type { Observed, ObservedDestination } from "../model/observed.ts";
import { movedPoints, movesOf } from "../plan/moved.ts";
import { type DueExport, type Plan, turnOf } from "../plan/plan.ts";
import { plan as makePlan } from "../plan/planner.ts";
import type { Lease } from "../state/leases.ts";
import type { RunRow } from "../state/runs.ts";
import { commitPlan } from "./commit-plan.ts";
import type { EngineContext } from "./context.ts";
import { removePoints } from "./expire.ts";
import { observe } from "./observe.ts";
import { runQueue } from "./queue.ts";
import { recover } from "./recover.ts";
import { type RunWork, runExport } from "./run-export.ts";
import { type Unseen, unseenOf } from "./unseen.ts";

export interface ReconcileOptions {
  readonly lockTimeoutMs: number;
  readonly parallelism: number | undefined;
  readonly exports: boolean;
  /** Narrows or refuses the plan; asked while the lock is held, so that what was approved is what is applied. */
  readonly approve: (plan: Plan, observed: Observed) => Promise<Plan>;
}

export interface Reconciled {
  readonly plan: Plan;
  readonly completed: number;
  /** With those that were cut off earlier and turned out to have failed. */
  readonly failed: readonly { readonly run: RunRow }[];
  readonly interrupted: readonly RunWork[];
  readonly notStarted: readonly RunWork[];
  readonly removed: number;
  readonly notRemoved: number;
  readonly unseen: readonly Unseen[];
}

/** One pass: recover, observe, plan, approve, commit, expire, export; again while an export has unblocked another. */
export async function reconcile(desired: DesiredState, context: EngineContext, options: ReconcileOptions): Promise<Reconciled> {
  let { plan, removed, notRemoved, failed: recovered } = await applyConfiguration(desired, context, options);
  const first = plan;
  let completed = 0;
  const failed: { run: RunRow }[] = recovered.map((run) => ({ run }));
  const interrupted: RunWork[] = [];
  const notStarted: RunWork[] = [];
  while (options.exports && plan.exports.length > 0) {
    const work = workOf(plan.exports, desired, context);
    const result = await runQueue(work, options.parallelism ?? desired.concurrency, context.signal, (item, place) => runExport(item, place, context));
    completed += result.completed;
    failed.push(...result.failed);
    interrupted.push(...result.interrupted);
    notStarted.push(...result.notStarted);
    const mayUnblock = plan.deferred.some(({ waitsFor }) => waitsFor === "dependency");
    if (!mayUnblock || context.signal.aborted || result.completed + result.failed.length === 0) break;
    const allowed = new Set(first.deferred.map(nameOf));
    const again = await applyConfiguration(desired, context, {
      ...options,
      approve: async (next) => ({ ...next, exports: next.exports.filter((due) => allowed.has(nameOf(due))) }),
    });
    plan = again.plan;
    removed += again.removed;
    notRemoved += again.notRemoved;
  }
  const suspended = new Set([...first.suspended, ...desired.schedules.filter(({ suspend }) => suspend).map(({ name }) => name)]);
  const unseen = unseenOf(
    first.drift.filter((each) => each.kind === "unknown"),
    (schedule) => !suspended.has(schedule),
    context.state,
  );
  return { plan: first, completed, failed, interrupted, notStarted, removed, notRemoved, unseen };
}

function nameOf({ schedule, provider, identity }: { readonly schedule: string; readonly provider: string; readonly identity: string }): string {
  return `${schedule}\n${provider}\n${identity}`;
}

/** Recovers, observes, plans, and commits everything of the plan that needs no export; one process at a time. */
export async function applyConfiguration(
  desired: DesiredState,
  context: EngineContext,
  options: Pick<ReconcileOptions, "lockTimeoutMs" | "approve">,
): Promise<{ readonly plan: Plan; readonly removed: number; readonly notRemoved: number; readonly failed: readonly RunRow[] }> {
  const { state, clock, random, revision } = context;
  const lease: Lease = await state.take("reconcile", "apply", options.lockTimeoutMs, clock, random, context.signal);
  try {
    const failed = await recover(desired, context);
    const observed = await observe(desired, context, state.configuration.protections());
    refuseForeign(observed.destinations, state.lineage, context.adopt);
    await adopt(desired, observed.destinations, lease, context);
    noteMoves(desired, observed.destinations, lease, context);
    const now = clock.now();
    const made = makePlan({ desired, recorded: state.recorded(now), observed, revision, now });
    const approved = await options.approve(made, observed);
    // without exports they are journaled all the same: the next apply starts them
    const plan = approved;
    commitPlan(plan, desired, lease, context);
    const byId = new Map(state.artifacts.list().map((point) => [point.id, point]));
    const points = plan.expiry.remove.flatMap(({ point }) => byId.get(point) ?? []);
    const removal = await removePoints(points, desired.destinations, true, lease, context);
    return { plan, removed: removal.removed, notRemoved: removal.failed.length, failed };
  } finally {
    state.release(lease);
  }
}

/** @throws DestinationForeign before anything is changed, so that a CI job without its state does not begin a second history */
export function refuseForeign(destinations: readonly { readonly name: string; readonly lineage?: string }[], lineage: string, adopt: boolean): void {
  if (adopt) return;
  for (const destination of destinations) {
    if (destination.lineage === undefined || destination.lineage === lineage) continue;
    throw new HypersdkError(
      "DestinationForeign",
      `destination ${destination.name} belongs to state ${destination.lineage.slice(0, 8)}, not to this one (${lineage.slice(0, 8)})`,
      {
        hint: "use the state file that belongs to it; where that is lost, `hypersdk state rebuild --from` the destination; --adopt begins a second history",
      },
    );
  }
}

/** Takes foreign destinations over, before anything else; what the other state stored there stays unknown to this one. */
async function adopt(desired: DesiredState, destinations: readonly ObservedDestination[], lease: Lease, context: EngineContext): Promise<void> {
  for (const { name, lineage, points } of destinations) {
    const spec = desired.destinations.find((each) => each.name === name);
    if (!spec || lineage === undefined || lineage === context.state.lineage) continue;
    await claim(await context.openDestination(spec), context.state.lineage, context.clock.now(), { adopt: true });
    const paths = points.map(({ manifestPath }) => manifestPath);
    context.state.write(lease, () => context.state.configuration.setUnmanaged(spec.url, paths));
    context.emit({
      type: "warning",
      code: "Adopted",
      text: `destination ${name} belongs to this state now; ${points.length} restore points of the other one stay there and are not managed`,
    });
  }
}

/** Destinations that moved with what is in them, or have another name: their restore points are recorded where they are now. */
function noteMoves(desired: DesiredState, destinations: readonly ObservedDestination[], lease: Lease, context: EngineContext): void {
  const { state, clock, emit, revision } = context;
  const at = clock.now();
  const names = new Map(desired.destinations.map(({ url, name }) => [url, name]));
  const renamed = new Map(
    state.artifacts.list().flatMap(({ destination, destinationUrl: url }) => {
      const name = names.get(url);
      return name === undefined || name === destination ? [] : [[url, name] as const];
    }),
  );
  if (renamed.size > 0)
    state.write(lease, () => {
      for (const [url, name] of renamed) state.artifacts.rename(url, name);
    });
  const moved = movedPoints(desired, state.recorded(at), destinations);
  if (moved.length === 0) return;
  state.write(lease, () => {
    for (const { point, url } of moved) state.artifacts.move(point.id, url);
    for (const { destination, url, points } of movesOf(moved))
      state.audit.append({
        at,
        type: "destination.moved",
        subject: destination,
        detail: { url, points },
        commit: revision?.commit ?? null,
        author: revision?.author ?? null,
      });
  });
  for (const { destination, url, points } of movesOf(moved))
    emit({ type: "warning", code: "Moved", text: `destination ${destination} has moved: ${points} restore points are at ${url} now` });
}

/** The journaled run of each due export, with what it needs. */
export function workOf(exports: readonly DueExport[], desired: DesiredState, { state }: EngineContext): RunWork[] {
  const schedules = new Map(desired.schedules.map((schedule) => [schedule.name, schedule]));
  const providers = new Map(desired.providers.map((provider) => [provider.name, provider]));
  const destinations = new Map(desired.destinations.map((destination) => [destination.name, destination]));
  const runs = new Map(state.runs.open().map((run) => [`${nameOf(run)}\n${run.kind}\n${run.fireTime}`, run]));
  return exports.flatMap((due): RunWork[] => {
    const run = runs.get(`${nameOf(due)}\nscheduled\n${due.fireTime}`);
    if (!run) return [];
    return [
      {
        run,
        sourceIdentity: due.sourceIdentity,
        schedule: schedules.get(due.schedule) as ScheduleSpec,
        turn: turnOf(due),
        provider: providers.get(due.provider) as ProviderSpec,
        destination: destinations.get(due.destination) as DestinationSpec,
        mode: due.mode,
        modeReason: due.modeReason,
        expected: { readBytes: due.dataBytes, storedBytes: due.estimatedStoredBytes, durationMs: due.estimatedDurationMs },
      },
    ];
  });
}
