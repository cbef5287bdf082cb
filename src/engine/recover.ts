import type { Destination } from "../destinations/destination.ts";
import { emptied } from "../destinations/gone.ts";
import { readMarker } from "../exports/lineage.ts";
import { manifestName } from "../exports/manifest.ts";
import { readManifest } from "../exports/restore.ts";
import type { DesiredState } from "../model/desired.ts";
import { HypersdkError } from "../model/errors.ts";
import { isOfRepository } from "../repository/layout.ts";
import { lockPath } from "../repository/locks.ts";
import { isRepositoryPoint, pendingPath } from "../repository/points.ts";
import { exportScope, type Lease, manualScope } from "../state/leases.ts";
import type { RunRow } from "../state/runs.ts";
import type { EngineContext } from "./context.ts";
import { type RunName, runNameOf } from "./events.ts";
import { fail, isOfThePoint, proveAndComplete, recordPoint } from "./run-export.ts";

/**
 * Finds runs that a process left behind when it died. One whose manifest was published is proved and finished; of any other the leftovers
 * are removed and the run goes back into the queue. Runs of living processes are left alone, and what cannot be reached is left for the
 * next time.
 * @param isAsked of which runs; all otherwise
 * @returns the runs that have failed now
 */
export async function recover(desired: DesiredState, context: EngineContext, isAsked: (run: RunRow) => boolean = () => true): Promise<RunRow[]> {
  const { state, clock, random, emit } = context;
  const swept = new Set<string>();
  const failed: RunRow[] = [];
  for (const listed of state.runs.open()) {
    if ((listed.state === "queued" && listed.kind === "scheduled") || !isAsked(listed)) continue;
    let lease: Lease;
    try {
      lease = await state.take(listed.state === "queued" ? manualScope(listed) : exportScope(listed), `recovery of ${listed.vmPath}`, 0, clock, random);
    } catch (error) {
      if (error instanceof HypersdkError && error.code === "LockHeld") continue;
      throw error;
    }
    // its process may have begun it, ended it or put it back while those before it were cleared
    const run = state.runs.open().find(({ id }) => id === listed.id);
    if (!run || (run.state === "queued") !== (listed.state === "queued")) {
      state.release(lease);
      continue;
    }
    try {
      const name = runNameOf(run);
      const { outcome, failure } = await recoverRun(run, name, lease, desired, context);
      emit({ type: "run_recovered", run: name, outcome });
      if (failure) {
        emit({ type: "export_failed", run: name, code: failure.code, reason: failure.message, hint: failure.hint ?? null });
        failed.push(run);
      }
      // one that never began has left nothing
      if (outcome === "cancelled" || swept.has(run.destinationUrl)) continue;
      await sweep(await context.openDestination({ name: run.destination, url: run.destinationUrl }));
      swept.add(run.destinationUrl);
    } catch (error) {
      context.signal.throwIfAborted();
      if (!(error instanceof HypersdkError)) throw error;
      emit({ type: "warning", code: error.code, text: `the interrupted run of ${run.schedule} for ${run.vmPath} could not be cleared: ${error.message}` });
    } finally {
      state.release(lease);
    }
  }
  return failed;
}

interface Recovery {
  readonly outcome: "completed" | "queued" | "failed" | "cancelled";
  /** What its proof has found; undefined where nothing is known but that its process ended. */
  readonly failure?: HypersdkError;
}

async function recoverRun(run: RunRow, name: RunName, lease: Lease, desired: DesiredState, context: EngineContext): Promise<Recovery> {
  const { state, clock } = context;
  const schedule = desired.schedules.find((each) => each.name === run.schedule);
  const failFor = (why: HypersdkError, attempt: "interrupted" | "failed"): void => {
    state.write(lease, () => state.runs.endAttempt(run.id, clock.now(), attempt, why.message));
    fail({ run }, why, lease, context);
  };
  /** Made anew, unless it is a manual run, which belongs to who asked for it, or one of no schedule. */
  const mayStartAnew = run.kind === "scheduled" && schedule !== undefined;
  const putBack = (): Recovery => {
    if (mayStartAnew) state.write(lease, () => requeue(run, context));
    else failFor(new HypersdkError("Interrupted", "the process that ran it ended"), "interrupted");
    return { outcome: mayStartAnew ? "queued" : "failed" };
  };
  if (run.state === "queued") {
    state.write(lease, () => state.runs.end(run.id, "cancelled", clock.now(), { code: "NotStarted", message: "the process that would have run it ended" }));
    return { outcome: "cancelled" };
  }
  if (run.folder === undefined) return putBack();
  const spec = desired.destinations.find((each) => each.url === run.destinationUrl) ?? {
    name: run.destination,
    url: run.destinationUrl,
  };
  const destination = await context.openDestination(spec);
  // one that is not mounted looks as if nothing had ever been published
  if (!context.adopt && !(await readMarker(destination))) throw emptied(destination);
  const isChunked = isRepositoryPoint(run.folder);
  const manifestPath = isChunked ? run.folder : `${run.folder}/${manifestName}`;
  const leftovers = isChunked ? [pendingPath(manifestPath), lockPath(run.id)] : (await destination.list(run.folder)).map(({ path }) => path);
  if (!(await isThere(destination, manifestPath))) {
    for (const path of leftovers) await destination.remove(path);
    return putBack();
  }
  try {
    const manifest = await readManifest(destination, manifestPath);
    const exported = { manifest, manifestPath, storedBytes: manifest.actuals.storedBytes };
    recordPoint({ run }, exported, lease, context);
    if (isChunked) for (const path of leftovers) await destination.remove(path);
    await proveAndComplete({ run, verify: "stored", ...schedule }, destination, exported, name, lease, context);
    return { outcome: "completed" };
  } catch (error) {
    if (!isOfThePoint(error)) throw error;
    const isDamaged = error.code !== "NotBooted";
    if (isDamaged) state.write(lease, () => state.artifacts.setBadAt(run.destinationUrl, manifestPath));
    // what is damaged is made anew; what does not boot would not boot then
    if (isDamaged && mayStartAnew) return putBack();
    failFor(error, "failed");
    return { outcome: "failed", failure: error };
  }
}

/**
 * Removes what a dead process left of small objects. One that a living process is just writing may go too: it writes it again, as it does
 * when its folder goes; disks, which are long in the writing, are cleared with their run.
 */
async function sweep(destination: Destination): Promise<void> {
  for (const { path, isPartial } of await destination.list()) if (isPartial && (!path.includes("/") || isOfRepository(path))) await destination.remove(path);
}

async function isThere(destination: Destination, path: string): Promise<boolean> {
  return (await destination.list(path.slice(0, path.lastIndexOf("/")))).some((file) => file.path === path);
}

function requeue(run: RunRow, { state, clock }: EngineContext): void {
  state.runs.endAttempt(run.id, clock.now(), "interrupted", undefined);
  state.runs.setState(run.id, "queued");
}
