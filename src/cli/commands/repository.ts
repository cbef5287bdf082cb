import type { Destination } from "../../destinations/destination.ts";
import { formatBytes } from "../../model/bytes.ts";
import { parseDuration } from "../../model/duration.ts";
import { HypersdkError } from "../../model/errors.ts";
import { checkRepository } from "../../repository/check.ts";
import { compactRepository } from "../../repository/compact.ts";
import { repairRepository } from "../../repository/repair.ts";
import { Repository } from "../../repository/repository.ts";
import { State } from "../../state/state.ts";
import { plural } from "../../ui/plan-view.ts";
import { adapters, clock, random } from "../compose.ts";
import { exitCodes } from "../exit-codes.ts";
import { listenForInterrupts } from "../interrupts.ts";
import type { Io } from "../io.ts";
import { load, type SourceOptions } from "../load.ts";
import { askForYes } from "../prompt.ts";
import { byteProgress } from "./byte-progress.ts";
import { destinationNamed } from "./destinations.ts";

interface RepositoryOptions extends SourceOptions {
  /** A destination's name, or its URL. */
  readonly destination?: string;
}

export interface CheckCommandOptions extends RepositoryOptions {
  readonly readData?: string | true;
}

/** Looks at repositories, all of the files' where none is named. */
export async function check(options: CheckCommandOptions, io: Io): Promise<number> {
  const readData = shareOf(options.readData);
  const interrupts = listenForInterrupts(io.err);
  const reports: object[] = [];
  let isSound = true;
  try {
    for (const repository of await repositories(options, io)) {
      const name = repository.destination.spec.name;
      const progress = byteProgress(io, 0);
      const report = await checkRepository(repository, { readData, signal: interrupts.signal, onRead: progress.add }).finally(progress.stop);
      reports.push({ destination: name, repository: repository.config.id, ...report });
      isSound &&= report.problems.length === 0;
      if (io.json) continue;
      for (const { message } of report.problems) io.out(`${io.style.red("✗")} ${message}\n`);
      for (const path of report.brokenPoints) io.out(`${io.style.red("✗")} ${path} cannot be restored whole\n`);
      io.out(
        `${name}: ${plural(report.points, "restore point")}, ${plural(report.packs, "pack")}, ${formatBytes(report.storedBytes)}, ${formatBytes(report.unusedBytes)} unused; ` +
          `${readData > 0 ? `${formatBytes(report.readBytes)} read` : "structure only"}; ${report.problems.length === 0 ? "sound" : plural(report.problems.length, "problem")}\n`,
      );
    }
  } catch (error) {
    if (interrupts.exitCode !== undefined) return interrupts.exitCode;
    throw error;
  } finally {
    interrupts.dispose();
  }
  if (io.json) io.result("check", { repositories: reports });
  return isSound ? exitCodes.done : exitCodes.damaged;
}

export interface CompactCommandOptions extends RepositoryOptions {
  readonly grace?: string;
  readonly maxUnused?: string;
  readonly dryRun?: boolean;
}

/** Frees what no restore point uses. */
export async function compact(options: CompactCommandOptions, io: Io): Promise<number> {
  const graceMs = parseDuration(options.grace ?? "1h");
  if (graceMs === undefined) throw new HypersdkError("Usage", `--grace ${JSON.stringify(options.grace)} is no duration`, { hint: "such as 1h, 30m or 0s" });
  const maxUnused = percent("--max-unused", options.maxUnused ?? "20%");
  const interrupts = listenForInterrupts(io.err);
  const reports: object[] = [];
  try {
    for (const repository of await repositories(options, io)) {
      const name = repository.destination.spec.name;
      const progress = byteProgress(io, 0);
      const report = await compactRepository(repository, {
        now: clock.now(),
        id: random.uuid(),
        graceMs,
        maxUnused,
        dryRun: options.dryRun ?? false,
        signal: interrupts.signal,
        onRewrite: progress.add,
      }).finally(progress.stop);
      reports.push({ destination: name, repository: repository.config.id, ...report });
      if (io.json) continue;
      const would = options.dryRun ? "would be " : "";
      io.out(`${name}: ${formatBytes(report.freedBytes)} ${would}freed`);
      if (report.sparedBytes > 0) io.out(`, ${formatBytes(report.sparedBytes)} still in use and ${would}kept`);
      if (report.rewrittenBytes > 0) io.out(`, ${formatBytes(report.rewrittenBytes)} ${would}moved into new packs`);
      io.out(
        report.freeAt
          ? `; ${formatBytes(report.condemnedBytes)} more ${options.dryRun ? "would be condemned" : "are condemned"}, and go when compact runs after ${report.freeAt}\n`
          : "\n",
      );
    }
  } catch (error) {
    if (interrupts.exitCode !== undefined) return interrupts.exitCode;
    throw error;
  } finally {
    interrupts.dispose();
  }
  if (io.json) io.result("compact", { dryRun: options.dryRun ?? false, repositories: reports });
  return exitCodes.done;
}

export interface RepairCommandOptions extends RepositoryOptions {
  readonly autoApprove?: boolean;
}

/** Drops what is provably damaged and keeps what is sound; the state learns which restore points have lost data. */
export async function repair(options: RepairCommandOptions, io: Io): Promise<number> {
  if (!options.autoApprove) {
    if (!io.isInteractive)
      throw new HypersdkError("Declined", "nobody can answer whether damaged objects may be removed", {
        hint: "say --auto-approve, or look with hypersdk check --read-data",
      });
    await askForYes("Read everything, and remove what is damaged?", "nothing was removed");
  }
  const interrupts = listenForInterrupts(io.err);
  const reports: object[] = [];
  let isWhole = true;
  try {
    for (const repository of await repositories(options, io)) {
      const name = repository.destination.spec.name;
      const progress = byteProgress(io, 0);
      const report = await repairRepository(repository, { signal: interrupts.signal, onRead: progress.add }).finally(progress.stop);
      reports.push({ destination: name, repository: repository.config.id, ...report });
      isWhole &&= report.brokenPoints.length === 0;
      await recordBroken(report.brokenPoints, repository.destination, options, io);
      if (io.json) continue;
      for (const path of report.dropped) io.out(`${io.style.red("-")} ${path} removed\n`);
      for (const path of report.brokenPoints) io.out(`${io.style.red("✗")} ${path} has lost data\n`);
      io.out(
        `${name}: ${plural(report.problems.length, "problem")}, ${plural(report.dropped.length, "object")} removed, ${plural(report.salvagedChunks, "chunk")} saved from them, ` +
          `${plural(report.brokenPoints.length, "restore point")} with lost data${report.brokenPoints.length > 0 ? "; `hypersdk run` of its schedule sends again what the source still has" : ""}\n`,
      );
    }
  } catch (error) {
    if (interrupts.exitCode !== undefined) return interrupts.exitCode;
    throw error;
  } finally {
    interrupts.dispose();
  }
  if (io.json) io.result("repair", { repositories: reports });
  return isWhole ? exitCodes.done : exitCodes.damaged;
}

async function recordBroken(paths: readonly string[], destination: Destination, options: RepositoryOptions, io: Io): Promise<void> {
  if (paths.length === 0) return;
  const { statePath, revision } = await load(options, io.env, io.cwd);
  const state = State.openForWriting(statePath, random);
  try {
    const broken = state.artifacts.list().filter(({ manifestPath, destinationUrl }) => destinationUrl === destination.spec.url && paths.includes(manifestPath));
    state.writeUnlocked(() => {
      for (const point of broken) {
        state.artifacts.setState(point.id, "bad");
        state.audit.append({
          at: clock.now(),
          type: "point.bad",
          subject: point.id,
          detail: { vmPath: point.vmPath, by: "repair" },
          commit: revision?.commit ?? null,
          author: revision?.author ?? null,
        });
      }
    });
  } finally {
    state.close();
  }
}

/** The repository at a destination that was named, or those at all destinations of the files. */
async function repositories(options: RepositoryOptions, io: Io): Promise<Repository[]> {
  const found: Repository[] = [];
  const { desired } = options.destination?.includes(":") ? {} : await load(options, io.env, io.cwd);
  const all = desired?.destinations.filter(({ layout }) => layout === "repository") ?? [];
  for (const address of options.destination === undefined ? all : [destinationNamed(options.destination, desired, io.cwd)]) {
    const repository = await Repository.open(await adapters.openDestination(address));
    if (repository) found.push(repository);
    else if (options.destination !== undefined) throw new HypersdkError("NotFound", `there is no repository at ${address.url}`);
  }
  if (found.length === 0)
    throw new HypersdkError("NotFound", "no destination of the files holds a repository", {
      hint: "name one with --destination NAME or --destination file:///…",
    });
  return found;
}

function shareOf(readData: string | true | undefined): number {
  if (readData === undefined) return 0;
  return readData === true ? 1 : percent("--read-data", readData);
}

/** @returns from 0 to 1 */
function percent(flag: string, text: string): number {
  const value = /^(\d+(?:\.\d+)?)%$/.exec(text)?.[1];
  if (value === undefined || Number(value) > 100) throw new HypersdkError("Usage", `${flag} ${JSON.stringify(text)} is no share`, { hint: "such as 10%" });
  return Number(value) / 100;
}
