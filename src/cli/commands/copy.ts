import { existsSync } from "node:fs";
import { resolve } from "node:path";
import type { Destination } from "../../destinations/destination.ts";
import { isGone } from "../../destinations/gone.ts";
import { damagedPacksOf } from "../../exports/damaged-packs.ts";
import { claim, readMarker, stillClaimed } from "../../exports/lineage.ts";
import { isChunked } from "../../exports/manifest.ts";
import { readManifest } from "../../exports/restore.ts";
import { type StoredPoint, storeAgain } from "../../exports/stored-point.ts";
import { verifyPoint } from "../../exports/verify.ts";
import { formatBytes } from "../../model/bytes.ts";
import type { DesiredState, DestinationSpec } from "../../model/desired.ts";
import { HypersdkError } from "../../model/errors.ts";
import type { ExportFormat } from "../../model/image-formats.ts";
import type { RestorePoint } from "../../model/recorded.ts";
import { keyThatOpens } from "../../repository/keys.ts";
import { isRepositoryPoint } from "../../repository/points.ts";
import { isDamage, Repository } from "../../repository/repository.ts";
import { State } from "../../state/state.ts";
import { plural } from "../../ui/plan-view.ts";
import { printable } from "../../ui/style.ts";
import { adapters, clock, random } from "../compose.ts";
import { listenForInterrupts } from "../interrupts.ts";
import type { Io } from "../io.ts";
import { load, type SourceOptions } from "../load.ts";
import { toolVersion } from "../tool-version.ts";
import { byteProgress } from "./byte-progress.ts";
import { destinationNamed, type KeyOptions } from "./destinations.ts";
import { findPoint, openPoint, recordedPoints } from "./points.ts";

export interface CopyOptions extends SourceOptions, KeyOptions {
  readonly vm?: string;
  readonly schedule?: string;
  readonly format?: ExportFormat;
  readonly layout?: DestinationSpec["layout"];
  readonly adopt?: boolean;
  readonly unencrypted?: boolean;
}

/** Stores restore points at another destination too: one, or all good ones of a destination that are not there yet, oldest first. */
export async function copy(from: string, to: string, options: CopyOptions, io: Io): Promise<number> {
  const { statePath, desired, revision } = await load(options, io.env, io.cwd);
  const { keysOfCopies, ...address } = destinationNamed(to, desired, {}, io.cwd);
  const bare = await adapters.openDestination(address);
  // with these, what is there is opened, and nothing sealed
  const withKnownKeys = await adapters.openDestination(keysOfCopies ? { ...address, keysOfCopies } : address);
  const target = (await Repository.isSealed(bare)) ? withKnownKeys : bare;
  const points = await pointsOf(from, desired, options, io);
  const interrupts = listenForInterrupts(io.err);
  const state = State.openForWriting(statePath, random);
  const copied: object[] = [];
  let isThere = 0;
  let distrusted: ReadonlySet<string> | undefined;
  try {
    const layout = await layoutOf(target, desired, options);
    const mayLieOpen = options.unencrypted ?? false;
    const sealedAs = sealing(bare, { layout, mayLieOpen, known: withKnownKeys.encryption });
    for (const open of points) {
      const point = await open();
      const { source, repository, disks } = point.manifest;
      if (point.destination.spec.url === address.url)
        throw new HypersdkError("Usage", `${source.vm} as of ${source.instant} is at ${address.name} already`, { hint: "name another destination" });
      const isSealed = repository !== undefined && (await Repository.isSealed(point.destination));
      const into = isSealed ? await sealedAs(point, repository.id) : target;
      if (await hasSound(into, state, point)) {
        isThere++;
        continue;
      }
      await claim(into, state.lineage, clock.now(), { adopt: options.adopt ?? false, layout, hasPoints: state.artifacts.hasAt(address.url) });
      const [first] = disks;
      distrusted ??= await damagedPacksOf(into, badPointsAt(state, address.url), interrupts.signal);
      const format = options.format ?? repository?.restoreFormat ?? (first && !isChunked(first) ? first.format : "qcow2");
      const id = random.uuid();
      const progress = byteProgress(
        io,
        disks.reduce((sum, disk) => sum + (isChunked(disk) ? disk.dataBytes : disk.readBytes), 0),
      );
      const exported = await storeAgain(
        point,
        into,
        {
          pointId: id,
          runId: id,
          lineage: state.lineage,
          toolVersion: toolVersion(),
          layout,
          format,
          compression: layout === "repository" ? "zstd" : "none",
          distrusted,
        },
        { clock, random },
        { signal: interrupts.signal, onRead: progress.add },
      ).finally(progress.stop);
      await stillClaimed(into, state.lineage);
      await verifyPoint(into, exported.manifestPath, exported.manifest, "stored", { signal: interrupts.signal });
      state.writeUnlocked(() => {
        state.artifacts.add(
          {
            id,
            runId: id,
            schedule: source.schedule,
            provider: source.provider,
            identity: source.identity,
            vmPath: source.vm,
            destination: address.name,
            destinationUrl: address.url,
            manifestPath: exported.manifestPath,
            instant: source.instant,
            storedBytes: exported.storedBytes,
          },
          clock.now(),
        );
        state.audit.append({
          at: clock.now(),
          type: "point.copied",
          subject: id,
          detail: { of: point.manifest.id, vmPath: source.vm, destination: address.name },
          commit: revision?.commit ?? null,
          author: revision?.author ?? null,
        });
      });
      copied.push({ point: id, of: point.manifest.id, vm: source.vm, instant: source.instant, storedBytes: exported.storedBytes });
      if (!io.json && !io.quiet) io.out(`${id.slice(0, 8)}  ${source.vm}  ${source.instant}  ${formatBytes(exported.storedBytes)} stored at ${address.name}\n`);
    }
  } catch (error) {
    if (interrupts.exitCode !== undefined) return interrupts.exitCode;
    throw error;
  } finally {
    interrupts.dispose();
    state.close();
  }
  if (io.json) io.result("copy", { destination: address.name, copied, alreadyThere: isThere });
  else io.out(`${plural(copied.length, "restore point")} copied to ${address.name}, ${isThere} there already.\n`);
  return 0;
}

/**
 * What is encrypted stays so: where the target has no key of its own, it gets the one that opens a point where that is.
 * @returns the target as it takes a point; it throws Usage where that would lie open, and may not
 */
function sealing(
  target: Destination,
  { layout, mayLieOpen, known }: { readonly layout: DestinationSpec["layout"]; readonly mayLieOpen: boolean; readonly known: Destination["encryption"] },
): (point: StoredPoint, repository: string) => Promise<Destination> {
  const withKey = new Map<string, Destination>();
  return async (point, repository) => {
    const isSealed = layout === "repository" ? await Repository.isSealed(target) : false;
    if (isSealed === false && !mayLieOpen) throw liesOpen(point, target);
    if (target.encryption || (!isSealed && mayLieOpen)) return target;
    const { secret } = await keyThatOpens(point.destination, repository);
    const { key, others = [] } = known ?? {};
    const { recipients = [] } = point.destination.encryption ?? {};
    const sealed = withKey.get(secret) ?? { ...target, encryption: { key: () => secret, others: [...(key ? [key] : []), ...others], recipients } };
    withKey.set(secret, sealed);
    return sealed;
  };
}

function liesOpen({ manifest }: StoredPoint, { spec }: Destination): HypersdkError {
  return new HypersdkError("Usage", `${manifest.source.vm} is encrypted where it is, and would lie open at ${printable(spec.name)}`, {
    hint: "only repositories are encrypted, from their first export on: say --layout repository where nothing is stored yet, name another destination, or say --unencrypted",
  });
}

/** Whether a copy of a point is there that is not known to be bad. */
async function hasSound(target: Destination, state: State, point: StoredPoint): Promise<boolean> {
  const copies = state.artifacts.list().filter((each) => each.destinationUrl === target.spec.url && each.state !== "bad" && isSame(each, point));
  for (const { manifestPath } of copies) {
    try {
      await readManifest(target, manifestPath);
      return true;
    } catch (error) {
      if (!isDamage(error) && !isGone(error)) throw error;
    }
  }
  return false;
}

function badPointsAt(state: State, url: string): string[] {
  return state.artifacts.badAt(url).flatMap(({ manifestPath }) => (isRepositoryPoint(manifestPath) ? [manifestPath] : []));
}

function isSame(one: RestorePoint, { manifest: { source } }: StoredPoint): boolean {
  return one.schedule === source.schedule && one.provider === source.provider && one.identity === source.identity && one.instant === source.instant;
}

/** A point by its id or folder, or those of a destination. */
async function pointsOf(from: string, desired: DesiredState | undefined, options: CopyOptions, io: Io): Promise<(() => Promise<StoredPoint>)[]> {
  const isDestination = desired?.destinations.some(({ name }) => name === from) || (from.includes(":") && !existsSync(resolve(io.cwd, from)));
  if (!isDestination) return [() => findPoint(from, options, io)];
  const { url, name } = destinationNamed(from, desired, options, io.cwd);
  const { points, addressOf } = await recordedPoints(options, io);
  const { vm, schedule } = options;
  const chosen = points.filter(
    (point) =>
      point.destinationUrl === url &&
      point.state === "good" &&
      (vm === undefined || point.vmPath === vm) &&
      (schedule === undefined || point.schedule === schedule),
  );
  if (chosen.length === 0)
    throw new HypersdkError(
      "NotFound",
      `${name} has no good restore point${vm === undefined ? "" : ` of ${vm}`}${schedule === undefined ? "" : ` of schedule ${schedule}`} that is known here`,
      { hint: "hypersdk get artifacts lists what there is" },
    );
  return chosen.map((point) => () => openPoint(point, addressOf(point)));
}

/** As it is there; else as the files say; else a repository. */
async function layoutOf(target: Destination, desired: DesiredState | undefined, { layout }: CopyOptions): Promise<DestinationSpec["layout"]> {
  const marker = await readMarker(target);
  return layout ?? marker?.layout ?? desired?.destinations.find(({ url }) => url === target.spec.url)?.layout ?? "repository";
}
