import { existsSync } from "node:fs";
import { resolve } from "node:path";
import type { Destination } from "../../destinations/destination.ts";
import { isGone } from "../../destinations/gone.ts";
import { damagedPacksOf } from "../../exports/damaged-packs.ts";
import type { Exported } from "../../exports/export-vm.ts";
import { claim, DamagedMarker, layoutThere, readMarker, stillClaimed } from "../../exports/lineage.ts";
import { isChunked } from "../../exports/manifest.ts";
import { readManifest } from "../../exports/restore.ts";
import { type StoredPoint, storeAgain } from "../../exports/stored-point.ts";
import { verifyPoint } from "../../exports/verify.ts";
import { readSecret } from "../../files/read-secret.ts";
import { formatBytes } from "../../model/bytes.ts";
import type { DesiredState, DestinationAddress, DestinationSpec } from "../../model/desired.ts";
import { HypersdkError } from "../../model/errors.ts";
import type { ExportFormat } from "../../model/image-formats.ts";
import type { RepositoryBefore, RestorePoint } from "../../model/recorded.ts";
import type { EncryptionRef } from "../../model/secret.ts";
import type { Revision } from "../../plan/plan.ts";
import { keyThatOpens, listSlots, sealingOf } from "../../repository/keys.ts";
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
import { destinationNamed, elsewhere, type KeyOptions } from "./destinations.ts";
import { findPoint, openPoint, pointOf, recordedPoints } from "./points.ts";

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
  const selection = withKeyBesides(options, io);
  const address = destinationNamed(to, desired, selection, io.cwd);
  const target = await adapters.openDestination(address);
  const points = await pointsOf(from, desired, selection, io);
  const interrupts = listenForInterrupts(io.err);
  const state = State.openForWriting(statePath, random);
  const copied: object[] = [];
  let isThere = 0;
  let distrusted: ReadonlySet<string> | undefined;
  try {
    const layout = await layoutOf(target, desired, options);
    const adopt = options.adopt ?? false;
    const targetFor = sealing(target, desired, { layout, mayLieOpen: options.unencrypted ?? false });
    const before = adopt ? {} : state.configuration.repositoryAt(address.url);
    let isClaimed = false;
    for (const open of points) {
      const point = await open();
      const { source, repository, disks } = point.manifest;
      if (point.destination.spec.url === address.url)
        throw new HypersdkError("Usage", `${source.vm} as of ${source.instant} is at ${address.name} already`, { hint: "name another destination" });
      const into = await targetFor(point);
      if (!isClaimed) await enter(into, state, { adopt, layout, before });
      isClaimed = true;
      if (await hasSound(into, state, point)) {
        isThere++;
        continue;
      }
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
          ...before,
        },
        { clock, random },
        { signal: interrupts.signal, onRead: progress.add },
      ).finally(progress.stop);
      await stillClaimed(into, state.lineage);
      await verifyPoint(into, exported.manifestPath, exported.manifest, "stored", { signal: interrupts.signal });
      recordCopy(state, exported, point, address, revision);
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

/** The key of `--key-file` opens what those of the files do not, at either end. @throws KeyRefused when it cannot be had */
function withKeyBesides({ keyFile, ...rest }: CopyOptions, io: Io): CopyOptions {
  if (keyFile === undefined) return rest;
  readSecret({ kind: "file", path: resolve(io.cwd, keyFile) }, io.env);
  return { ...rest, furtherKeyFile: keyFile };
}

/**
 * What is encrypted stays so: where the target has no key of its own, it gets one that opens a point where that is.
 * @returns the target as it takes a point; it throws Usage where that would lie open, and may not
 */
function sealing(
  target: Destination,
  desired: DesiredState | undefined,
  { layout, mayLieOpen }: { readonly layout: DestinationSpec["layout"]; readonly mayLieOpen: boolean },
): (point: StoredPoint) => Promise<Destination> {
  const bySecret = new Map<string, Destination>();
  return async (point) => {
    const config = point.manifest.repository && (await Repository.configAt(point.destination));
    if (!config?.encryption) return target;
    const isSealed = layout === "repository" ? await Repository.isSealed(target) : false;
    if (isSealed === false && !mayLieOpen) throw liesOpen(point, target, layout);
    if (target.encryption?.sealing || (!isSealed && mayLieOpen)) return target;
    const openWriter = openWriterOf(target.spec.url, desired);
    if (isSealed === undefined && openWriter !== undefined)
      throw new HypersdkError(
        "Usage",
        `${point.manifest.source.vm} is encrypted where it is, and schedule ${openWriter} exports to ${target.spec.name} unencrypted`,
        { hint: "name another destination, or give that schedule encryption" },
      );
    const { key, secret } = await keyThatOpens(await withKeyOfItsSchedule(point, desired), config.id);
    const ways = await listSlots(point.destination, config.id);
    const recipients = key.recipients.filter((recipient) => ways.some((slot) => slot.kind === "age" && slot.recipient === recipient));
    const sealed = bySecret.get(secret) ?? {
      ...target,
      // a repository that is there keeps its ways in
      encryption: { sealing: { secret: () => secret, recipients: isSealed ? [] : recipients }, others: target.encryption?.others ?? [] },
    };
    bySecret.set(secret, sealed);
    return sealed;
  };
}

/** Where a point is, with the key of the schedule that made it before all others: what opens it as a recipient, or for other schedules, comes behind. */
async function withKeyOfItsSchedule({ destination, manifest }: StoredPoint, desired: DesiredState | undefined): Promise<Destination> {
  const schedule = desired?.schedules.find(({ name }) => name === manifest.source.schedule);
  const own = desired?.destinations.find(({ name }) => name === schedule?.destination)?.encryption;
  const { otherKeys = [] } = elsewhere(destination.spec, desired);
  const isOwn = ({ key }: EncryptionRef): boolean => JSON.stringify(key) === JSON.stringify(own?.key);
  const ofFiles = await adapters.openDestination({ ...destination.spec, otherKeys: [...otherKeys.filter(isOwn), ...otherKeys.filter((each) => !isOwn(each))] });
  const { sealing, others } = destination.encryption ?? { others: [] };
  return { ...destination, encryption: { others: [...(ofFiles.encryption?.others ?? []), ...(sealing ? [sealing] : []), ...others] } };
}

function liesOpen({ manifest }: StoredPoint, { spec, encryption }: Destination, layout: DestinationSpec["layout"]): HypersdkError {
  const unencrypted = encryption?.sealing && layout === "repository" ? "" : ", or say --unencrypted";
  return new HypersdkError("Usage", `${manifest.source.vm} is encrypted where it is, and would lie open at ${printable(spec.name)}`, {
    hint:
      layout === "repository"
        ? `the repository there is not encrypted, and cannot be any more: name another destination${unencrypted}`
        : `images are not encrypted: name another destination, say --layout repository where nothing is stored yet${unencrypted}`,
  });
}

/** A schedule that exports to a place, and not encrypted. */
function openWriterOf(url: string, desired: DesiredState | undefined): string | undefined {
  const names = (desired?.destinations ?? []).filter((each) => each.url === url).map(({ name }) => name);
  return desired?.schedules.find(({ destination, encryption }) => names.includes(destination) && !encryption)?.name;
}

/** Makes a place this state's own, and remembers the repository there. What is refused is refused before anything is written. */
async function enter(
  target: Destination,
  state: State,
  { adopt, layout, before }: { readonly adopt: boolean; readonly layout: DestinationSpec["layout"]; readonly before: RepositoryBefore },
): Promise<void> {
  const { url } = target.spec;
  const there = layout === "repository" ? await Repository.openForExport(target, before) : undefined;
  if (layout === "repository" && !there && target.encryption?.sealing) await sealingOf(target);
  await claim(target, state.lineage, clock.now(), { adopt, layout, hasPoints: state.artifacts.hasAt(url) });
  if (!there) return;
  const { config, keyId } = there;
  state.writeUnlocked(() => state.configuration.setRepositoryAt(url, { repositoryId: config.id, ...(keyId ? { keyId } : {}) }));
}

function recordCopy(
  state: State,
  { manifest, manifestPath, ...there }: Exported,
  of: StoredPoint,
  address: DestinationAddress,
  revision: Revision | null,
): void {
  state.writeUnlocked(() => {
    state.artifacts.add(pointOf(manifestPath, manifest, address), clock.now());
    state.configuration.setRepositoryAt(address.url, there);
    state.audit.append({
      at: clock.now(),
      type: "point.copied",
      subject: manifest.id,
      detail: { of: of.manifest.id, vmPath: manifest.source.vm, destination: address.name },
      commit: revision?.commit ?? null,
      author: revision?.author ?? null,
    });
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
async function layoutOf(target: Destination, desired: DesiredState | undefined, { layout, adopt }: CopyOptions): Promise<DestinationSpec["layout"]> {
  const there = await readMarker(target).then(
    (marker) => marker?.layout,
    (error: unknown) => {
      if (!adopt || !(error instanceof DamagedMarker)) throw error;
      return layoutThere(target);
    },
  );
  return layout ?? there ?? desired?.destinations.find(({ url }) => url === target.spec.url)?.layout ?? "repository";
}
