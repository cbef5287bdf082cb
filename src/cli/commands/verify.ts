import { RepositoryUnusable } from "../../exports/restore.ts";
import { verifyPoint } from "../../exports/verify.ts";
import { parseDuration } from "../../model/duration.ts";
import { type ErrorCode, HypersdkError } from "../../model/errors.ts";
import type { RestorePoint } from "../../model/recorded.ts";
import { State } from "../../state/state.ts";
import { plural } from "../../ui/plan-view.ts";
import { printable } from "../../ui/style.ts";
import { clock, random } from "../compose.ts";
import { exitCodeOf, exitCodes } from "../exit-codes.ts";
import { listenForInterrupts } from "../interrupts.ts";
import type { Io } from "../io.ts";
import { load } from "../load.ts";
import { timeOption } from "../time-option.ts";
import { byteProgress } from "./byte-progress.ts";
import { type FoundPoint, findPoint, openPoint, PointGone, type PointSelection, recordedPoints } from "./points.ts";

export interface VerifyOptions extends PointSelection {
  readonly level?: "checksum" | "restore" | "boot";
  readonly marker?: string;
  readonly timeout?: string;
}

/** Reads restore points back and proves them; every one, without an id. What it finds is recorded. */
export async function verify(id: string | undefined, options: VerifyOptions, io: Io): Promise<number> {
  const level = options.level ?? "restore";
  const boot = bootOf(options);
  const all = id === undefined && options.vm === undefined ? await chosenPoints(options, io) : undefined;
  const results: { point: string; vm: string; instant: string; ok: boolean; reason?: string }[] = [];
  const failed: { point: string; vm: string; instant: string; code: ErrorCode; message: string }[] = [];
  const removed: { point: string; vm: string; instant: string }[] = [];
  /** Destinations that cannot be had: what else is there is not tried. */
  const unreachable = new Map<string, HypersdkError>();
  const interrupts = listenForInterrupts(io.err);
  try {
    for (const wanted of all?.points ?? [undefined]) {
      const known = wanted && unreachable.get(wanted.destinationUrl);
      if (known) {
        failed.push(failureOf(wanted, known));
        continue;
      }
      let found: FoundPoint | undefined;
      try {
        found = wanted ? await openPoint(wanted, (all as NonNullable<typeof all>).addressOf(wanted)) : await findPoint(id, options, io);
        const progress = byteProgress(io, found.manifest.actuals.storedBytes);
        try {
          await verifyPoint(found.destination, found.manifestPath, found.manifest, level, { signal: interrupts.signal, onRead: progress.add, boot });
        } finally {
          progress.stop();
        }
        results.push({ point: found.manifest.id, vm: found.manifest.source.vm, instant: found.manifest.source.instant, ok: true });
      } catch (error) {
        if (interrupts.exitCode !== undefined) return interrupts.exitCode;
        if (wanted && isBeingRemoved(wanted, error)) {
          removed.push(nameOf(wanted));
          if (!io.json && !io.quiet)
            io.out(`· ${wanted.id.slice(0, 8)}  ${wanted.vmPath}  ${wanted.instant}  expired, and its removal was cut off: the next apply ends it\n`);
          continue;
        }
        // what all points are read with says nothing of this one
        const isDamage =
          error instanceof HypersdkError && !(error instanceof RepositoryUnusable) && ["ArtifactDamaged", "ImageDamaged", "NotBooted"].includes(error.code);
        const point: RestorePoint | undefined = wanted ?? found?.point;
        if (!isDamage && wanted && error instanceof HypersdkError) {
          // it keeps nobody from the others
          failed.push(failureOf(wanted, error));
          if (["DestinationUnreachable", "DestinationDenied", "DestinationForeign", "KeyRefused"].includes(error.code) || error instanceof RepositoryUnusable)
            unreachable.set(wanted.destinationUrl, error);
          if (!io.json) io.err(`${io.errStyle.red("error")}: ${printable(wanted.destination)}: ${printable(error.message)}\n`);
          continue;
        }
        if (!isDamage || (!point && !found)) throw error;
        results.push({
          point: point?.id ?? found?.manifest.id ?? "",
          vm: point?.vmPath ?? "",
          instant: point?.instant ?? "",
          ok: false,
          reason: error.message,
        });
      }
      const last = results.at(-1);
      const point = wanted ?? found?.point;
      // one that does not start may lack a driver: its content is proved by the other levels
      if (last && point && level !== "boot" && point.state !== (last.ok ? "good" : "bad")) await record(point, last.ok, options, io);
      if (last && !io.json && !io.quiet)
        io.out(
          `${last.ok ? io.style.green("✓") : io.style.red("✗")} ${last.point.slice(0, 8)}  ${last.vm}  ${last.instant}  ${last.ok ? "sound" : last.reason}\n`,
        );
    }
  } finally {
    interrupts.dispose();
  }
  const bad = results.filter(({ ok }) => !ok).length;
  if (io.json) io.result("verify", { level, points: results, failed, removed });
  else {
    const unread = failed.length > 0 ? `, ${failed.length} could not be looked at` : "";
    const sound = bad > 0 ? `${results.length - bad} of ` : "";
    io.out(`${sound}${plural(results.length, "restore point")} verified (${level}), ${bad} ${level === "boot" ? "not started" : "damaged"}${unread}.\n`);
  }
  const [first] = failed;
  return bad > 0 ? exitCodes.damaged : first ? exitCodeOf(first.code) : exitCodes.done;
}

/** Every restore point, or those of a schedule and until a time. */
async function chosenPoints(options: VerifyOptions, io: Io): Promise<Awaited<ReturnType<typeof recordedPoints>>> {
  const all = await recordedPoints(options, io);
  if (!all.isRecorded)
    throw new HypersdkError("NotFound", "no restore point is known: there is no state file", {
      hint: "where it was lost, `hypersdk state rebuild --from` each destination finds them again",
    });
  const { schedule } = options;
  const latest = timeOption("--at", options.at);
  if (schedule !== undefined && !all.points.some((point) => point.schedule === schedule))
    throw new HypersdkError("NotFound", `no restore point is of a schedule ${JSON.stringify(schedule)}`, {
      hint: "hypersdk get artifacts lists what there is",
    });
  const points = all.points.filter((point) => (schedule === undefined || point.schedule === schedule) && (!latest || point.instant <= latest));
  return { ...all, points };
}

/** The manifest goes before the state hears of it: a process that was killed in between leaves a point that is listed, and no damage. */
function isBeingRemoved({ expiresAt, held }: RestorePoint, error: unknown): boolean {
  // within its time of grace nothing removes it
  return error instanceof PointGone && expiresAt !== undefined && expiresAt <= clock.now() && !held;
}

function nameOf({ id, vmPath, instant }: RestorePoint) {
  return { point: id, vm: vmPath, instant };
}

function failureOf(point: RestorePoint, { code, message }: HypersdkError) {
  return { ...nameOf(point), code, message };
}

function bootOf({ level, marker, timeout }: VerifyOptions): { readonly marker?: string; readonly timeoutMs?: number } {
  if (level !== "boot" && (marker !== undefined || timeout !== undefined)) throw new HypersdkError("Usage", "--marker and --timeout are for --level boot");
  const timeoutMs = timeout === undefined ? undefined : parseDuration(timeout);
  if (timeout !== undefined && timeoutMs === undefined)
    throw new HypersdkError("Usage", `--timeout ${JSON.stringify(timeout)} is no duration`, { hint: "such as 10m" });
  return { ...(marker === undefined ? {} : { marker }), ...(timeoutMs === undefined ? {} : { timeoutMs }) };
}

async function record(point: RestorePoint, isGood: boolean, options: VerifyOptions, io: Io): Promise<void> {
  const { statePath, revision } = await load(options, io.env, io.cwd);
  const state = State.openForWriting(statePath, random);
  try {
    state.writeUnlocked(() => {
      state.artifacts.setState(point.id, isGood ? "good" : "bad");
      state.audit.append({
        at: clock.now(),
        type: isGood ? "point.good" : "point.bad",
        subject: point.id,
        detail: { vmPath: point.vmPath },
        commit: revision?.commit ?? null,
        author: revision?.author ?? null,
      });
    });
  } finally {
    state.close();
  }
}
