import type { Destination } from "../destinations/destination.ts";
import { damagedPacksOf } from "../exports/damaged-packs.ts";
import { type Exported, exportVm } from "../exports/export-vm.ts";
import { claim, stillClaimed } from "../exports/lineage.ts";
import { isChunked, type Manifest } from "../exports/manifest.ts";
import { keepImage } from "../exports/stored-point.ts";
import { verifyPoint } from "../exports/verify.ts";
import type { DestinationSpec, ProviderSpec, ScheduleSpec } from "../model/desired.ts";
import { errnoOf, HypersdkError } from "../model/errors.ts";
import { epochMsOf } from "../model/instant.ts";
import type { RecordedDisk } from "../model/recorded.ts";
import { isRepositoryPoint } from "../repository/points.ts";
import { retryDelayMs } from "../schedule/backoff.ts";
import type { Turn } from "../schedule/run-queue.ts";
import { isOpen } from "../schedule/windows.ts";
import { exportScope, type Lease } from "../state/leases.ts";
import type { RunRow } from "../state/runs.ts";
import type { EngineContext } from "./context.ts";
import { type RunName, runNameOf } from "./events.ts";
import { progressNotes } from "./progress-notes.ts";
import type { Place } from "./queue.ts";

/** Everything one run needs of the desired state. */
export interface RunWork {
  readonly run: RunRow;
  readonly schedule: ScheduleSpec;
  readonly provider: ProviderSpec;
  /** What the provider calls the VM. */
  readonly sourceIdentity: string;
  readonly destination: DestinationSpec;
  /** Its place among those that wait. */
  readonly turn: Turn;
  /** How much is read, and why. */
  readonly mode: "full" | "incremental";
  readonly modeReason: string;
  readonly expected: { readonly readBytes: number; readonly storedBytes: number | null; readonly durationMs: number | null };
}

export type RunOutcome = "completed" | "failed" | "interrupted" | "not started" | "done elsewhere";

/**
 * One run: attempts with backoff, the export, its verification, each step journaled before it is taken. A failure is recorded
 * and returned, never thrown; what is thrown is a bug or a lost lock.
 */
export async function runExport(work: RunWork, place: Place, context: EngineContext): Promise<RunOutcome> {
  const { state, clock, random, emit } = context;
  const { run } = work;
  const name = runNameOf(run);
  // it may have waited for a place for long; the next pass looks when a window opens again
  const held = heldBack(work, context);
  if (held !== undefined) {
    emit({ type: "export_not_started", run: name, reason: held });
    return "not started";
  }
  let lease: Lease;
  try {
    lease = await state.take(exportScope(run), `export of ${run.vmPath} by ${run.schedule}`, 0, clock, random);
  } catch (error) {
    if (!(error instanceof HypersdkError && error.code === "LockHeld")) throw error;
    emit({ type: "export_not_started", run: name, reason: error.message });
    return "not started";
  }
  try {
    // between the plan and this lease another process may have run it
    const journaled = state.runs.get(run.id);
    if (journaled?.state !== "queued") return "done elsewhere";
    return await attempts({ ...work, run: journaledAt(work.destination, journaled, lease, context) }, name, place, lease, context);
  } finally {
    state.release(lease);
  }
}

/** A run as it is about to begin: it may have waited while its schedule was given another destination, and what it writes is looked for where its row says. */
function journaledAt({ name, url }: DestinationSpec, run: RunRow, lease: Lease, { state }: EngineContext): RunRow {
  if (run.destination === name && run.destinationUrl === url) return run;
  state.write(lease, () => state.runs.setDestination(run.id, name, url));
  return { ...run, destination: name, destinationUrl: url };
}

/** Why no attempt may begin now; what goes on is not cut. A manual run has neither windows nor suspensions. */
function heldBack({ run, schedule }: RunWork, { state, clock }: EngineContext): string | undefined {
  if (run.kind === "manual") return undefined;
  if (state.configuration.suspensions().includes(schedule.name)) return "its schedule was suspended while it waited";
  return isOpen(schedule.windows, epochMsOf(clock.now())) ? undefined : "its window closed while it waited";
}

async function attempts(work: RunWork, name: RunName, place: Place, lease: Lease, context: EngineContext): Promise<RunOutcome> {
  const { state, clock, random, emit, signal } = context;
  const { run, schedule } = work;
  // once it is published, what is left to do is to prove it
  let exported: Exported | undefined;
  for (let attempt = 1; ; attempt++) {
    state.write(lease, () => {
      state.runs.beginAttempt(run.id, clock.now());
      if (exported) state.runs.setState(run.id, "verifying");
    });
    try {
      const destination = await context.openDestination(work.destination);
      exported ??= await exportOnce(work, destination, name, attempt, lease, context);
      await proveAndComplete({ run, ...schedule }, destination, exported, name, lease, context);
      return "completed";
    } catch (error) {
      if (signal.aborted) {
        interrupt(work, exported !== undefined, lease, context);
        emit({ type: "export_interrupted", run: name });
        return "interrupted";
      }
      const failure = failureOf(error);
      if (!failure) throw error;
      state.write(lease, () => state.runs.endAttempt(run.id, clock.now(), "failed", failure.message));
      const mayRetry = schedule.retry.on ? schedule.retry.on.includes(failure.code) : failure.isTransient;
      if (attempt <= schedule.retry.attempts && mayRetry) {
        const delayMs = retryDelayMs(schedule.retry, attempt, random.fraction());
        emit({ type: "export_retried", run: name, attempt, delayMs, code: failure.code, reason: failure.message });
        try {
          await place.leaveFor(() => clock.sleep(delayMs, signal));
        } catch {
          interrupt(work, exported !== undefined, lease, context);
          emit({ type: "export_interrupted", run: name });
          return "interrupted";
        }
        if (exported || heldBack(work, context) === undefined) continue;
      }
      fail(work, failure, lease, context);
      emit({ type: "export_failed", run: name, code: failure.code, reason: failure.message, hint: failure.hint ?? null });
      return "failed";
    }
  }
}

/** Exports and publishes one point. */
async function exportOnce(work: RunWork, destination: Destination, name: RunName, attempt: number, lease: Lease, context: EngineContext): Promise<Exported> {
  const { state, clock, random, emit, signal, revision } = context;
  const { run, schedule } = work;
  signal.throwIfAborted();
  const provider = await context.openProvider(work.provider);
  await claim(destination, state.lineage, clock.now(), {
    adopt: context.adopt,
    layout: work.destination.layout,
    hasPoints: state.artifacts.hasAt(work.destination.url),
  });
  const progress = progressNotes(run, lease, context);
  const distrusted = await distrustedPacks(destination, lease, context);
  const known = context.adopt ? {} : state.configuration.repositoryAt(work.destination.url);
  const exported = await exportVm(
    provider,
    destination,
    {
      pointId: random.uuid(),
      runId: run.id,
      lineage: state.lineage,
      toolVersion: context.toolVersion,
      schedule: run.schedule,
      kind: run.kind,
      fireTime: run.fireTime,
      commit: revision?.commit ?? null,
      identity: run.identity,
      sourceIdentity: work.sourceIdentity,
      vmPath: run.vmPath,
      layout: work.destination.layout,
      format: schedule.format,
      compression: schedule.compression,
      mode: work.mode,
      modeReason: work.modeReason,
      ...(schedule.incremental ? { fullReadEveryMs: schedule.incremental.fullReadEveryMs } : {}),
      estimates: work.expected,
      ...(distrusted.size > 0 ? { distrusted } : {}),
      ...known,
    },
    { clock, random },
    {
      begins(folder, disks) {
        state.write(lease, () => {
          state.runs.setFolder(run.id, folder);
          state.runs.setState(run.id, "storing");
        });
        progress.expect(disks.reduce((sum, { dataBytes }) => sum + dataBytes, 0));
        emit({ type: "export_started", run: name, attempt, disks });
      },
      read(disk, bytes) {
        progress.add(bytes);
        emit({ type: "export_progress", run: name, disk, bytes });
      },
      diskDone: (disk, storedBytes) => emit({ type: "disk_stored", run: name, disk, storedBytes }),
      // whose lock was broken while it slept has no say any more
      publishes: () => state.write(lease, () => {}),
      lied: (disk, offset) =>
        emit({
          type: "warning",
          code: "TrackerLied",
          text: `${work.provider.name} called byte ${offset} of disk ${disk} of ${run.vmPath} unchanged, and it has changed: the whole disk is read now, and its points since the last whole read may hold what was there before`,
        }),
    },
    signal,
  );
  await stillClaimed(destination, state.lineage);
  recordPoint(work, exported, lease, context);
  if (exported.repositoryId !== known.repositoryId || exported.keyId !== known.keyId)
    state.write(lease, () => state.configuration.setRepositoryAt(work.destination.url, exported));
  if (schedule.keepImage) await keepLatest(work, destination, exported, context);
  return exported;
}

/**
 * Packs of a repository that a proof of a restore point has found damaged: a new point that is built on them would be called good, and be none.
 * They are looked for once for each point that turned out to be bad, and remembered.
 */
async function distrustedPacks(destination: Destination, lease: Lease, { state, signal }: EngineContext): Promise<ReadonlySet<string>> {
  const { url } = destination.spec;
  const key = `damaged packs ${url}`;
  const { points, packs } = JSON.parse(state.configuration.meta(key) ?? '{"points":[],"packs":[]}') as { points: string[]; packs: string[] };
  const bad = state.artifacts.badAt(url).filter(({ manifestPath }) => isRepositoryPoint(manifestPath));
  const unknown = bad.filter(({ id }) => !points.includes(id)).map(({ manifestPath }) => manifestPath);
  if (unknown.length === 0) return new Set(packs);
  const distrusted = new Set([...packs, ...(await damagedPacksOf(destination, unknown, signal))]);
  state.write(lease, () => state.configuration.setMeta(key, JSON.stringify({ points: bad.map(({ id }) => id), packs: [...distrusted] })));
  return distrusted;
}

/** An image that cannot be kept costs the image, not the point. */
async function keepLatest({ run, schedule }: RunWork, destination: Destination, { manifest, manifestPath }: Exported, context: EngineContext): Promise<void> {
  const { state, clock, random, emit, signal, toolVersion } = context;
  try {
    await keepImage(
      { destination, manifestPath, manifest },
      { pointId: manifest.id, runId: run.id, lineage: state.lineage, toolVersion, layout: "image", format: schedule.format, compression: "none" },
      { clock, random },
      signal,
    );
  } catch (error) {
    const failure = failureOf(error);
    if (!failure || signal.aborted) throw error;
    emit({ type: "warning", code: failure.code, text: `the image of ${run.vmPath} was not kept, its restore point was: ${failure.message}` });
  }
}

/** The manifest is published: from here on the point exists, whatever happens to this process. */
export function recordPoint(
  { run }: Pick<RunWork, "run">,
  { manifest, manifestPath, storedBytes }: Exported,
  lease: Lease,
  { state, clock }: EngineContext,
): void {
  state.write(lease, () => {
    state.artifacts.add(
      {
        id: manifest.id,
        runId: run.id,
        schedule: run.schedule,
        provider: run.provider,
        identity: run.identity,
        vmPath: run.vmPath,
        destination: run.destination,
        destinationUrl: run.destinationUrl,
        manifestPath,
        instant: manifest.source.instant,
        storedBytes,
      },
      clock.now(),
      "unproved",
    );
    state.runs.setState(run.id, "verifying");
  });
}

/** Whether the point itself is to blame, and not the way to it, or a key that is not here. */
export function isOfThePoint(error: unknown): error is HypersdkError {
  return error instanceof HypersdkError && ["ArtifactDamaged", "ImageDamaged", "ImageUnsupported", "NotBooted"].includes(error.code);
}

/** Verifies a published point at the schedule's level and ends its run. Also the last step of a recovery. */
export async function proveAndComplete(
  { run, verify, boot }: { readonly run: RunRow } & Pick<ScheduleSpec, "verify" | "boot">,
  destination: Destination,
  { manifest, manifestPath, storedBytes }: Exported,
  name: RunName,
  lease: Lease,
  context: EngineContext,
): Promise<void> {
  const { state, clock, emit, signal } = context;
  emit({ type: "export_verifying", run: name, verify });
  try {
    await verifyPoint(destination, manifestPath, manifest, verify, { signal, ...(boot ? { boot } : {}) });
  } catch (error) {
    // one that does not boot may lack a driver: it stays unproved
    if (isOfThePoint(error) && error.code !== "NotBooted") state.write(lease, () => state.artifacts.setState(manifest.id, "bad"));
    throw error;
  }
  const at = clock.now();
  state.write(lease, () => {
    state.runs.endAttempt(run.id, at, "completed", undefined);
    state.runs.end(run.id, "completed", at);
    state.artifacts.setState(manifest.id, "good");
    state.configuration.recordSuccess(
      run,
      manifest.source.instant,
      manifest.actuals.durationMs,
      manifest.actuals.readBytes,
      storedBytes,
      disksOf(manifest, state.configuration.lastDisks(run)),
    );
    if (run.kind === "scheduled") state.configuration.markHandled(run, run.fireTime);
    audit(context, "run.completed", run, { fireTime: run.fireTime, point: manifest.id, storedBytes });
  });
  emit({
    type: "export_completed",
    run: name,
    point: manifest.id,
    folder: isRepositoryPoint(manifestPath) ? manifestPath : manifestPath.slice(0, manifestPath.lastIndexOf("/")),
    readBytes: manifest.actuals.readBytes,
    storedBytes,
    durationMs: manifest.actuals.durationMs,
  });
}

/** A disk that set no mark keeps the one before: the next export asks for that. */
function disksOf({ disks }: Manifest, last: readonly RecordedDisk[]): RecordedDisk[] {
  return disks.map((disk) => {
    const before = last.find(({ name, virtualBytes }) => name === disk.name && virtualBytes === disk.virtualBytes);
    const { mark, wholeReadAt } = isChunked(disk) && (disk.mark !== undefined || disk.marksRefused) ? disk : (before ?? {});
    return { name: disk.name, virtualBytes: disk.virtualBytes, ...(mark === undefined ? {} : { mark }), ...(wholeReadAt === undefined ? {} : { wholeReadAt }) };
  });
}

/**
 * Back into the queue: the next apply or watch starts it anew. One whose point is published stays open, and they prove it. A manual run that
 * published nothing belongs to who asked for it.
 */
function interrupt({ run }: RunWork, isPublished: boolean, lease: Lease, context: EngineContext): void {
  const { state, clock } = context;
  state.write(lease, () => {
    state.runs.endAttempt(run.id, clock.now(), "interrupted", undefined);
    if (isPublished) state.runs.setState(run.id, "verifying");
    else if (run.kind === "manual") state.runs.end(run.id, "cancelled", clock.now(), { code: "Interrupted", message: "interrupted" });
    else state.runs.setState(run.id, "queued");
    audit(context, "run.interrupted", run, { fireTime: run.fireTime });
  });
}

/** Ends a run that is not tried again. */
export function fail({ run }: Pick<RunWork, "run">, failure: HypersdkError, lease: Lease, context: EngineContext): void {
  const { state, clock } = context;
  state.write(lease, () => {
    state.runs.end(run.id, "failed", clock.now(), { code: failure.code, message: failure.message });
    if (run.kind === "scheduled") state.configuration.markHandled(run, run.fireTime);
    audit(context, "run.failed", run, { fireTime: run.fireTime, code: failure.code, reason: failure.message });
  });
}

function audit({ state, clock, revision }: EngineContext, type: string, run: RunRow, detail: unknown): void {
  state.audit.append({
    at: clock.now(),
    type,
    subject: `${run.schedule}:${run.vmPath}`,
    detail,
    commit: revision?.commit ?? null,
    author: revision?.author ?? null,
  });
}

/** The failure of one export as an error with a code; undefined for what must end the whole process. */
function failureOf(error: unknown): HypersdkError | undefined {
  if (error instanceof HypersdkError) return error.code === "LeaseLost" || error.code === "StateUnusable" || error.code === "StateFull" ? undefined : error;
  const errno = errnoOf(error);
  return errno ? new HypersdkError("Failed", `${errno}: ${(error as Error).message}`, { cause: error }) : undefined;
}
