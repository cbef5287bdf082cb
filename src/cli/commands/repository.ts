import { existsSync } from "node:fs";
import type { Destination } from "../../destinations/destination.ts";
import { emptied } from "../../destinations/gone.ts";
import { readMarker } from "../../exports/lineage.ts";
import { openRepository } from "../../exports/restore.ts";
import { formatBytes } from "../../model/bytes.ts";
import type { DestinationAddress } from "../../model/desired.ts";
import { parseDuration } from "../../model/duration.ts";
import { HypersdkError } from "../../model/errors.ts";
import { type CheckReport, checkRepository } from "../../repository/check.ts";
import { compactRepository } from "../../repository/compact.ts";
import { repairRepository } from "../../repository/repair.ts";
import { Repository } from "../../repository/repository.ts";
import { State } from "../../state/state.ts";
import { plural } from "../../ui/plan-view.ts";
import { printable } from "../../ui/style.ts";
import { adapters, clock, random } from "../compose.ts";
import { exitCodeOf, exitCodes } from "../exit-codes.ts";
import { listenForInterrupts } from "../interrupts.ts";
import type { Io } from "../io.ts";
import { load, type SourceOptions, statePathFor } from "../load.ts";
import { askForYes } from "../prompt.ts";
import { type ByteProgress, byteProgress } from "./byte-progress.ts";
import { destinationNamed, type KeyOptions, withKey } from "./destinations.ts";

export interface RepositoryOptions extends SourceOptions, KeyOptions {
  /** A destination's name, or its URL. */
  readonly destination?: string;
}

export interface CheckCommandOptions extends RepositoryOptions {
  readonly readData?: string | true;
}

/** Looks at repositories, all of the files' where none is named. */
export async function check(options: CheckCommandOptions, io: Io): Promise<number> {
  const readData = shareOf(options.readData);
  let isSound = true;
  return eachRepository("check", options, io, {
    async work(repository, { signal, progress }) {
      const report = await checkRepository(repository, { readData, signal, onRead: progress.add, onTotal: progress.setTotal });
      isSound &&= report.problems.length === 0;
      await tellState(report.brokenPoints, "check", repository.destination, options, io);
      if (readData > 0 && report.problems.length === 0) await tellOfBad(repository.destination, options, io);
      return report;
    },
    show(name, report) {
      for (const { message } of report.problems) io.out(`${io.style.red("✗")} ${message}\n`);
      for (const path of report.brokenPoints) io.out(`${io.style.red("✗")} ${path} cannot be restored whole\n`);
      io.out(
        `${name}: ${plural(report.points, "restore point")}, ${plural(report.packs, "pack")}, ${formatBytes(report.storedBytes)}, ${formatBytes(report.unusedBytes)} unused; ` +
          `${readData > 0 ? `${formatBytes(report.readBytes)} read` : "structure only"}; ${report.problems.length === 0 ? "sound" : plural(report.problems.length, "problem")}\n`,
      );
    },
    exitCode: () => (isSound ? exitCodes.done : exitCodes.damaged),
  });
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
  const dryRun = options.dryRun ?? false;
  return eachRepository("compact", options, io, {
    work: (repository, { signal, progress }) =>
      compactRepository(repository, { now: clock.now(), id: random.uuid(), graceMs, maxUnused, dryRun, signal, onRewrite: progress.add }),
    show(name, report) {
      const would = dryRun ? "would be " : "";
      io.out(`${name}: ${formatBytes(report.freedBytes)} ${would}freed`);
      if (report.sparedBytes > 0) io.out(`, ${formatBytes(report.sparedBytes)} still in use and ${would}kept`);
      if (report.rewrittenBytes > 0) io.out(`, ${formatBytes(report.rewrittenBytes)} ${would}moved into new packs`);
      io.out(
        report.freeAt
          ? `; ${formatBytes(report.condemnedBytes)} ${report.freedBytes > 0 ? "more " : ""}${dryRun ? "would be condemned" : "are condemned"}, and go when compact runs after ${report.freeAt}`
          : "",
      );
      if (report.exportSince !== null && report.waitingBytes > 0)
        io.out(`; ${formatBytes(report.waitingBytes)} wait for an export that began ${report.exportSince}: if it was killed, its lock counts for a day`);
      if (report.leftBytes > 0)
        io.out(
          `; ${formatBytes(report.leftBytes)} unused stay in packs of which no more than ${options.maxUnused ?? "20%"} is: a lower --max-unused rewrites those`,
        );
      io.out("\n");
    },
    result: { dryRun },
  });
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
  let isWhole = true;
  let left: CheckReport["problems"] = [];
  return eachRepository("repair", options, io, {
    async work(repository, { signal, progress }) {
      const report = await repairRepository(repository, { now: clock.now(), signal, onRead: progress.add, onTotal: progress.setTotal });
      // what it found and could not mend is no success
      left = report.problems.length === 0 || report.brokenPoints.length > 0 ? [] : (await checkRepository(repository, { signal })).problems;
      isWhole &&= report.brokenPoints.length === 0 && left.length === 0;
      await tellState(report.brokenPoints, "repair", repository.destination, options, io);
      return report;
    },
    show(name, report) {
      for (const path of report.dropped) io.out(`${io.style.red("-")} ${path} removed\n`);
      for (const path of report.brokenPoints) io.out(`${io.style.red("✗")} ${path} has lost data\n`);
      for (const { message } of left) io.out(`${io.style.red("✗")} ${message}\n`);
      const still = left.length === 0 ? "" : ` (${left.length} of them still there)`;
      io.out(
        `${name}: ${plural(report.problems.length, "problem")}${still}, ${plural(report.dropped.length, "object")} removed, ${plural(report.salvagedChunks, "chunk")} saved from them, ` +
          `${plural(report.brokenPoints.length, "restore point")} with lost data${report.brokenPoints.length > 0 ? "; `hypersdk run` of its schedule sends again what the source still has" : ""}\n`,
      );
    },
    exitCode: () => (isWhole ? exitCodes.done : exitCodes.damaged),
  });
}

/** What one command does with a repository, and how it tells. */
interface Care<Report extends object> {
  work(repository: Repository, context: { readonly signal: AbortSignal; readonly progress: ByteProgress }): Promise<Report>;
  show(name: string, report: Report): void;
  /** More than the reports, for the JSON result. */
  readonly result?: object;
  exitCode?(): number;
}

/** Takes care of the repository that was named, or of all that the files have, one after the other; one that cannot be had keeps nobody from the others. */
async function eachRepository<Report extends object>(command: string, options: RepositoryOptions, io: Io, care: Care<Report>): Promise<number> {
  const interrupts = listenForInterrupts(io.err);
  const reports: object[] = [];
  const failures: { readonly destination: string; readonly error: HypersdkError }[] = [];
  try {
    const all = await repositoryAddresses(options, io);
    let none = 0;
    for (const address of all) {
      try {
        const repository = await repositoryAt(address, options, io);
        if (!repository) {
          none++;
          continue;
        }
        const { name } = repository.destination.spec;
        const progress = byteProgress(io, 0);
        const report = await care.work(repository, { signal: interrupts.signal, progress }).finally(progress.stop);
        reports.push({ destination: name, repository: repository.config.id, ...report });
        if (!io.json) care.show(name, report);
      } catch (error) {
        if (all.length === 1 || interrupts.exitCode !== undefined || !(error instanceof HypersdkError)) throw error;
        failures.push({ destination: address.name, error });
        if (!io.json)
          io.err(
            `${io.errStyle.red("error")}: ${printable(address.name)}: ${printable(error.message)}\n${error.hint ? `       ${printable(error.hint)}\n` : ""}`,
          );
      }
    }
    if (none === all.length) throw noRepository();
  } catch (error) {
    if (interrupts.exitCode !== undefined) return interrupts.exitCode;
    throw error;
  } finally {
    interrupts.dispose();
  }
  const failed = failures.map(({ destination, error: { code, message } }) => ({ destination, code, message }));
  if (io.json) io.result(command, { ...care.result, repositories: reports, failed });
  const [first] = failures;
  return care.exitCode?.() || (first ? exitCodeOf(first.error.code) : exitCodes.done);
}

/** What was found is told in any case, also where the state cannot take it. */
async function tellState(...[paths, by, destination, options, io]: Parameters<typeof recordBroken>): Promise<void> {
  try {
    await recordBroken(paths, by, destination, options, io);
  } catch (error) {
    if (!(error instanceof HypersdkError)) throw error;
    io.err(`${io.errStyle.yellow("warning")}: the state does not know what is damaged now: ${printable(error.message)}\n`);
  }
}

/** Tells the state, where there is one: nothing new is built on what these points use, and retention lets nothing go for them. */
async function recordBroken(paths: readonly string[], by: "check" | "repair", destination: Destination, options: RepositoryOptions, io: Io): Promise<void> {
  const path = paths.length === 0 ? undefined : await statePathFor(options, io.env, io.cwd);
  if (path === undefined || !existsSync(path)) return;
  const { revision } = await load(options, io.env, io.cwd).catch(() => ({ revision: null }));
  const state = State.openForWriting(path, random);
  try {
    const broken = state.artifacts
      .list()
      .filter(({ manifestPath, destinationUrl, state: known }) => known !== "bad" && destinationUrl === destination.spec.url && paths.includes(manifestPath));
    state.writeUnlocked(() => {
      for (const point of broken) {
        state.artifacts.setState(point.id, "bad");
        state.audit.append({
          at: clock.now(),
          type: "point.bad",
          subject: point.id,
          detail: { vmPath: point.vmPath, by },
          commit: revision?.commit ?? null,
          author: revision?.author ?? null,
        });
      }
    });
  } finally {
    state.close();
  }
}

/** Points that were once found damaged stay so until somebody proves them: what is sound now may make them whole again. */
async function tellOfBad({ spec }: Destination, options: RepositoryOptions, io: Io): Promise<void> {
  const path = await statePathFor(options, io.env, io.cwd);
  let state: State | undefined;
  try {
    state = State.openForReading(path);
    const bad = state?.artifacts.list().filter((point) => point.destinationUrl === spec.url && point.state === "bad").length ?? 0;
    if (bad > 0)
      io.err(
        `${io.errStyle.yellow("warning")}: ${plural(bad, "restore point")} of ${printable(spec.name)} ${bad === 1 ? "is" : "are"} recorded as damaged: hypersdk verify looks again\n`,
      );
  } catch {
    // a state that cannot be read says nothing of what was checked
  } finally {
    state?.close();
  }
}

/** The destination that was named, or all of the files that are repositories, or are meant to be. */
export async function repositoryAddresses(options: RepositoryOptions, io: Io): Promise<DestinationAddress[]> {
  // a URL needs no files, and where there are some they may know its key
  const isUrl = options.destination?.includes(":") ?? false;
  const { desired } = await load(options, io.env, io.cwd).catch((error: unknown) => {
    if (isUrl && error instanceof HypersdkError) return { desired: undefined };
    throw error;
  });
  if (options.destination !== undefined) return [destinationNamed(options.destination, desired, options, io.cwd)];
  const found: DestinationAddress[] = [];
  for (const each of desired?.destinations ?? []) if (each.layout === "repository" || (await holdsRepository(each))) found.push(withKey(each, options, io.cwd));
  return found;
}

/** A copy may have made one where the files say nothing of a layout. */
async function holdsRepository(address: DestinationAddress): Promise<boolean> {
  try {
    return (await readMarker(await adapters.openDestination(address)))?.layout === "repository";
  } catch (error) {
    if (error instanceof HypersdkError) return false;
    throw error;
  }
}

/**
 * The repository at a destination; undefined where nothing was ever written.
 * @throws DestinationUnreachable, ArtifactDamaged where there was one, and NotFound where it was asked for by name
 */
async function repositoryAt(address: DestinationAddress, options: RepositoryOptions, io: Io): Promise<Repository | undefined> {
  const destination = await adapters.openDestination(address);
  const repository = await Repository.open(destination);
  if (repository) return repository;
  if ((await readMarker(destination))?.layout === "repository") return openRepository(destination);
  if (await isRecorded(address.url, options, io)) throw emptied(destination);
  if (options.destination !== undefined) throw new HypersdkError("NotFound", `there is no repository at ${address.url}`);
  return undefined;
}

async function isRecorded(url: string, options: RepositoryOptions, io: Io): Promise<boolean> {
  const state = State.openForReading(await statePathFor(options, io.env, io.cwd));
  try {
    return state?.artifacts.hasAt(url) ?? false;
  } finally {
    state?.close();
  }
}

function noRepository(): HypersdkError {
  return new HypersdkError("NotFound", "no destination of the files holds a repository", {
    hint: "name one with --destination NAME or --destination file:///…",
  });
}

function shareOf(readData: string | true | undefined): number {
  if (readData === undefined) return 0;
  return readData === true || readData === "all" ? 1 : percent("--read-data", readData);
}

/** @returns from 0 to 1 */
function percent(flag: string, text: string): number {
  const value = /^(\d+(?:\.\d+)?)%$/.exec(text)?.[1];
  if (value === undefined || Number(value) > 100) throw new HypersdkError("Usage", `${flag} ${JSON.stringify(text)} is no share`, { hint: "such as 10%" });
  return Number(value) / 100;
}
