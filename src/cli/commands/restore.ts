import { createHash } from "node:crypto";
import { existsSync, realpathSync, statSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join, resolve } from "node:path";
import type { BlockSource, ByteRange } from "../../converters/block-source.ts";
import { formatOfName, writeImageFile } from "../../converters/image-file.ts";
import { defaultHardware } from "../../converters/machine/pack-machine.ts";
import { writeOva, writeOvf } from "../../converters/machine/write-package.ts";
import type { Destination } from "../../destinations/destination.ts";
import { Leftover } from "../../exports/leftover.ts";
import { isChunked, type Manifest, type ManifestDisk } from "../../exports/manifest.ts";
import { checkContent, hashPieceBytesOf, restoreDisk, storedDisks } from "../../exports/restore.ts";
import { makeFolder } from "../../files/durable.ts";
import { formatBytes } from "../../model/bytes.ts";
import { HypersdkError } from "../../model/errors.ts";
import { type ExportFormat, exportFormats, type ImageFormat } from "../../model/image-formats.ts";
import { isRepositoryPoint } from "../../repository/points.ts";
import { ProcessLock } from "../../state/process-lock.ts";
import { plural } from "../../ui/plan-view.ts";
import { exitCodes } from "../exit-codes.ts";
import { listenForInterrupts } from "../interrupts.ts";
import type { Io } from "../io.ts";
import { byteProgress } from "./byte-progress.ts";
import { type FoundPoint, findPoint, type PointSelection } from "./points.ts";

export interface RestoreOptions extends PointSelection {
  readonly to: string;
  readonly disk?: number;
  readonly format?: ExportFormat;
  readonly overwrite?: boolean;
  /** Goes on where chunks are damaged or gone, with zeros in their place. */
  readonly salvage?: boolean;
}

/** One disk into a new file, all disks into a folder, or the VM into a package; each disk compared with the hash that the export took. */
export async function restore(id: string | undefined, options: RestoreOptions, io: Io): Promise<number> {
  const found = await findPoint(id, options, io);
  const { destination, manifestPath, manifest } = found;
  refuseInside(found, resolve(io.cwd, options.to), options.to);
  if (options.salvage) refuseSalvage(manifest, options);
  if (isPackage(options)) return restorePackage(manifestPath, manifest, destination, options, io);
  const targets = await targetsOf(manifest, options, io.cwd);
  const interrupts = listenForInterrupts(io.err);
  const restored: object[] = [];
  let isWhole = true;
  try {
    const open = await storedDisks(destination, manifestPath, manifest);
    for (const { disk, path, format } of targets) {
      // what has zeros in it is none to go on with
      const resumes = format === "raw" && isChunked(disk) && !options.salvage;
      const lock = resumes ? await alone(path, io.env) : undefined;
      const leftover = resumes ? await Leftover.at(path, manifest.id) : undefined;
      const missing: ByteRange[] = [];
      const source = await open(disk, { leftover, ...(options.salvage ? { onLost: (range) => missing.push(range) } : {}) });
      const progress = byteProgress(io, source.dataBytes);
      try {
        const { bytes } = await writeImageFile(
          path,
          format,
          disk.virtualBytes,
          { compression: "none", overwrite: options.overwrite ?? false, inputs: [], durable: true, ...(leftover ? { resumes: leftover } : {}) },
          (sink) =>
            restoreDisk(source, disk, sink, { signal: interrupts.signal, onRead: progress.add }).catch((error: unknown) => {
              throw isChunked(disk) ? withSalvage(error) : error;
            }),
        );
        progress.stop();
        await leftover?.done();
        if (leftover && leftover.presentBytes > 0 && !io.json && !io.quiet)
          io.err(`${formatBytes(leftover.presentBytes)} were there from a restore that was cut off\n`);
        const lost = inOrder(missing);
        isWhole &&= lost.length === 0;
        restored.push({ disk: disk.bootOrder, name: disk.name, path, format, bytes, ...(options.salvage ? { lost } : {}) });
        tellOf(`${path}: ${format}, ${formatBytes(disk.virtualBytes)}`, disk, lost, io);
      } finally {
        progress.stop();
        await leftover?.close();
        await source.close();
        lock?.release();
      }
    }
    if (io.json) io.result("restore", { point: manifest.id, vm: manifest.source.vm, instant: manifest.source.instant, disks: restored });
    return isWhole ? exitCodes.done : exitCodes.damaged;
  } catch (error) {
    if (interrupts.exitCode === undefined) throw error;
    const isKept = !options.salvage && targets.some(({ disk, format }) => format === "raw" && isChunked(disk));
    // those that are whole would be in its way
    const next = restored.length > 0 ? ` with --disk ${targets[restored.length]?.disk.bootOrder}` : "";
    if (isKept && !io.quiet) io.err(`what is restored so far is kept beside the target: the same command${next} goes on with it\n`);
    return interrupts.exitCode;
  } finally {
    interrupts.dispose();
  }
}

/** @throws Usage where nothing is known of the parts of a disk */
function refuseSalvage({ disks }: Manifest, options: RestoreOptions): void {
  if (isPackage(options))
    throw new HypersdkError("Usage", "--salvage is for disk images, a package says that it is whole", { hint: "name a folder: --to restored/" });
  if (!disks.every(isChunked))
    throw new HypersdkError("Usage", "--salvage is for restore points in a repository: this one is an image", {
      hint: "qemu-img convert --salvage reads images as far as it goes",
    });
}

/** In the order of the disk; neighbours are one range. */
function inOrder(lost: readonly ByteRange[]): ByteRange[] {
  const ranges: ByteRange[] = [];
  for (const { offset, length } of lost.toSorted((a, b) => a.offset - b.offset)) {
    const last = ranges.at(-1);
    if (last && last.offset + last.length === offset) ranges[ranges.length - 1] = { offset: last.offset, length: last.length + length };
    else ranges.push({ offset, length });
  }
  return ranges;
}

/** Every range that is lost is told, for who looks up which files lie there. */
function tellOf(what: string, { contentHash }: ManifestDisk, lost: readonly ByteRange[], io: Io): void {
  if (io.json) return;
  if (lost.length === 0) {
    if (!io.quiet) io.out(`${what}, the content is what was exported (${contentHash.value.slice(0, 12)}…)\n`);
    return;
  }
  const bytes = lost.reduce((sum, { length }) => sum + length, 0);
  io.err(`${io.errStyle.yellow("warning")}: ${what}, the content is what was exported but for ${formatBytes(bytes)} that are lost, and zeros now\n`);
  for (const { offset, length } of lost) io.err(`  ${length} bytes at ${offset}\n`);
  io.err(`  ${repairFirst}\n`);
}

/** Where an index is gone, chunks are found again that only it named. */
const repairFirst = "hypersdk repair may find it again";

/** What a chunk says that is damaged or gone, with the way out. */
function withSalvage(error: unknown): unknown {
  if (!(error instanceof HypersdkError && error.code === "ArtifactDamaged")) return error;
  return new HypersdkError(error.code, error.message, {
    cause: error,
    hint: `${repairFirst}; --salvage restores what is there, zeros where nothing is, and says where that was`,
  });
}

/** Nothing is restored into the place that it is read from: with --overwrite, that would be the end of what is there. */
function refuseInside({ destination: { spec }, manifestPath, point }: FoundPoint, target: string, shown: string): void {
  const { name, url } = spec;
  if (!url.startsWith("file://")) return;
  let existing = target;
  while (!existsSync(existing)) existing = dirname(existing);
  // of images that were named by their folder, nobody knows what is around them
  const at = url.slice("file://".length);
  const root = point || isRepositoryPoint(manifestPath) ? at : join(at, dirname(manifestPath));
  if (existsSync(root) && `${realpathSync(existing)}/`.startsWith(`${realpathSync(root)}/`))
    throw new HypersdkError("Usage", `${shown} lies in the destination ${name}, which the restore point is read from`, { hint: "name another place" });
}

/**
 * One process at a time goes on with what an earlier restore of a point left beside `path`. Undefined where nothing can be locked: a restore
 * goes on without a home, too.
 * @throws LockHeld while another does
 */
async function alone(path: string, env: NodeJS.ProcessEnv): Promise<ProcessLock | undefined> {
  const home = join(env["XDG_STATE_HOME"] ?? join(homedir(), ".local", "state"), "hypersdk", "restores");
  try {
    return await ProcessLock.enter(join(home, createHash("sha256").update(path).digest("hex").slice(0, 16)), 0);
  } catch (error) {
    if (!(error instanceof HypersdkError && error.code === "LockHeld")) return undefined;
    throw new HypersdkError("LockHeld", `another process restores to ${path}`, { cause: error, hint: "wait until it has ended" });
  }
}

/** Whether the whole VM becomes one file. */
function isPackage({ to, format, disk }: RestoreOptions): boolean {
  if (format !== "ova" && (format !== undefined || !/\.(ova|ovf)$/i.test(to))) return false;
  if (disk !== undefined) throw new HypersdkError("Usage", "--disk is for disk images, a package holds the whole VM");
  if (to.endsWith("/")) throw new HypersdkError("Usage", `${JSON.stringify(to)} is a folder, an OVA is one file`, { hint: `--to ${to}vm.ova` });
  return true;
}

async function restorePackage(manifestPath: string, manifest: Manifest, destination: Destination, options: RestoreOptions, io: Io): Promise<number> {
  const path = resolve(io.cwd, options.to);
  const interrupts = listenForInterrupts(io.err);
  const sources: BlockSource[] = [];
  try {
    const open = await storedDisks(destination, manifestPath, manifest);
    for (const disk of manifest.disks) sources.push(await open(disk));
    const progress = byteProgress(
      io,
      sources.reduce((sum, { dataBytes }) => sum + dataBytes, 0),
    );
    try {
      const write = /\.ovf$/i.test(path) ? writeOvf : writeOva;
      const { bytes } = await write(
        path,
        { ...defaultHardware, ...manifest.vm, sources },
        {
          overwrite: options.overwrite ?? false,
          inputs: [],
          durable: true,
          hashPieceBytes: manifest.disks.map(hashPieceBytesOf),
          signal: interrupts.signal,
          onRead: progress.add,
          confirm: (hashes) => {
            for (const [i, disk] of manifest.disks.entries()) checkContent(disk, hashes[i] as string);
          },
        },
      );
      progress.stop();
      const { id: point, source, vm } = manifest;
      if ((vm.cpus === undefined || vm.memoryBytes === undefined) && !io.json)
        io.err(
          `${io.errStyle.yellow("warning")}: the provider did not say what hardware the VM has: the package has 1 CPU and 1 GiB of memory where it is unknown\n`,
        );
      if (io.json)
        io.result("restore", {
          point,
          vm: source.vm,
          instant: source.instant,
          disks: manifest.disks.map(({ bootOrder, name }) => ({ disk: bootOrder, name, path, format: "ova", bytes })),
        });
      else if (!io.quiet) io.out(`${path}: ova, ${plural(sources.length, "disk")}, ${formatBytes(bytes)}, the content is what was exported\n`);
      return 0;
    } finally {
      progress.stop();
    }
  } catch (error) {
    if (interrupts.exitCode !== undefined) return interrupts.exitCode;
    throw error;
  } finally {
    interrupts.dispose();
    await Promise.allSettled(sources.map((source) => source.close()));
  }
}

interface Target {
  readonly disk: ManifestDisk;
  readonly path: string;
  readonly format: ImageFormat;
}

async function targetsOf({ disks, repository }: Manifest, { to, disk: number, format, overwrite }: RestoreOptions, cwd: string): Promise<Target[]> {
  const target = resolve(cwd, to);
  const isFolder = to.endsWith("/") || (existsSync(target) && statSync(target).isDirectory());
  const chosen = number === undefined ? disks : disks.filter((disk) => disk.bootOrder === number);
  if (chosen.length === 0)
    throw new HypersdkError("NotFound", `there is no disk ${number}`, { hint: `disks: ${disks.map((disk) => `${disk.bootOrder} ${disk.name}`).join(", ")}` });
  if (!isFolder && chosen.length > 1) {
    throw new HypersdkError("Usage", `the restore point has ${disks.length} disks, ${JSON.stringify(to)} is one file`, {
      hint: `choose one with --disk (${disks.map((disk) => `${disk.bootOrder} ${disk.name}`).join(", ")}), or name a folder: --to ${to.replace(/\.[^/.]*$/, "")}/`,
    });
  }
  if (isFolder) await makeFolder(target);
  const targets = chosen.map((disk): Target => {
    const chosenFormat = (format as ImageFormat | undefined) ?? (isFolder ? (isChunked(disk) ? repository?.restoreFormat : disk.format) : formatOfName(to));
    if (!chosenFormat)
      throw new HypersdkError("Usage", `the name ${JSON.stringify(to)} does not say which format to write`, {
        hint: `say --format ${exportFormats.join(" or --format ")}`,
      });
    return { disk, format: chosenFormat, path: isFolder ? join(target, `disk-${disk.bootOrder}.${chosenFormat}`) : target };
  });
  // before the first byte: a second disk must not fail for what could be known
  for (const { path } of targets)
    if (!overwrite && existsSync(path)) throw new HypersdkError("AlreadyExists", `${path} exists already`, { hint: "name a new file, or say --overwrite" });
  return targets;
}
