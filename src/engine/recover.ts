import type { Destination } from "../destinations/destination.ts";
import { manifestName } from "../exports/manifest.ts";
import { readManifest } from "../exports/restore.ts";
import type { DesiredState } from "../model/desired.ts";
import { HypersdkError } from "../model/errors.ts";
import { isOfRepository } from "../repository/layout.ts";
import { lockPath } from "../repository/locks.ts";
import { isRepositoryPoint, pendingPath } from "../repository/points.ts";
import type { Lease } from "../state/leases.ts";
import type { RunRow } from "../state/runs.ts";
import type { EngineContext } from "./context.ts";
import type { RunName } from "./events.ts";
import { exportScope, proveAndComplete, recordPoint } from "./run-export.ts";

/**
 * Finds runs that a process left behind when it died. One whose manifest was published is finished; of any other the leftovers
 * are removed and the run goes back into the queue. Runs of living processes are left alone.
 */
export async function recover(desired: DesiredState, context: EngineContext): Promise<void> {
  const { state, clock, random, emit } = context;
  const swept = new Set<string>();
  for (const run of state.runs.open()) {
    if (run.state === "queued") continue;
    let lease: Lease;
    try {
      lease = await state.take(exportScope(run), `recovery of ${run.vmPath}`, 0, clock, random);
    } catch (error) {
      if (error instanceof HypersdkError && error.code === "LockHeld") continue;
      throw error;
    }
    try {
      const name: RunName = { id: run.id, schedule: run.schedule, vmPath: run.vmPath, fireTime: run.fireTime };
      emit({ type: "run_recovered", run: name, outcome: await recoverRun(run, name, lease, desired, context) });
      if (!swept.has(run.destinationUrl)) await sweep(await context.openDestination({ name: run.destination, url: run.destinationUrl }));
      swept.add(run.destinationUrl);
    } catch (error) {
      if (context.signal.aborted) return;
      // an unreachable destination leaves the run as it is, for the next time
      if (!(error instanceof HypersdkError)) throw error;
      emit({ type: "warning", code: error.code, text: `the interrupted run of ${run.schedule} for ${run.vmPath} could not be cleared: ${error.message}` });
    } finally {
      state.writeUnlocked(() => state.leases.release(lease));
    }
  }
}

async function recoverRun(run: RunRow, name: RunName, lease: Lease, desired: DesiredState, context: EngineContext): Promise<"completed" | "queued" | "failed"> {
  const { state, clock } = context;
  const schedule = desired.schedules.find((each) => each.name === run.schedule);
  if (run.folder !== undefined) {
    const spec = desired.destinations.find((each) => each.url === run.destinationUrl) ?? {
      name: run.destination,
      url: run.destinationUrl,
    };
    const destination = await context.openDestination(spec);
    const isChunked = isRepositoryPoint(run.folder);
    const manifestPath = isChunked ? run.folder : `${run.folder}/${manifestName}`;
    const leftovers = isChunked ? [pendingPath(manifestPath), lockPath(run.id)] : (await destination.list(run.folder)).map(({ path }) => path);
    if (await isThere(destination, manifestPath)) {
      const manifest = await readManifest(destination, manifestPath);
      const exported = { manifest, manifestPath, storedBytes: manifest.actuals.storedBytes };
      recordPoint({ run }, exported, lease, context);
      if (isChunked) for (const path of leftovers) await destination.remove(path);
      try {
        await proveAndComplete({ run, verify: "stored", ...schedule }, destination, exported, name, lease, context);
        return "completed";
      } catch (error) {
        if (!(error instanceof HypersdkError && error.code === "ArtifactDamaged")) throw error;
        // kept as bad; the run is made anew
        state.write(lease, () => requeue(run, context));
        return "queued";
      }
    }
    for (const path of leftovers) await destination.remove(path);
  }
  if (run.kind === "manual" || !schedule) {
    state.write(lease, () => {
      state.runs.endAttempt(run.id, clock.now(), "interrupted", undefined);
      state.runs.end(run.id, "failed", clock.now(), { code: "Interrupted", message: "the process that ran it ended" });
    });
    return "failed";
  }
  state.write(lease, () => requeue(run, context));
  return "queued";
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
