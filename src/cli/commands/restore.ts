import { existsSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { formatOfName, writeImageFile } from "../../converters/image-file.ts";
import { type WritableFormat, writableFormats } from "../../converters/write-image.ts";
import type { ManifestDisk } from "../../exports/manifest.ts";
import { openStoredDisk, restoreDisk } from "../../exports/restore.ts";
import { makeFolder } from "../../files/durable.ts";
import { formatBytes } from "../../model/bytes.ts";
import { HypersdkError } from "../../model/errors.ts";
import { listenForInterrupts } from "../interrupts.ts";
import type { Io } from "../io.ts";
import { byteProgress } from "./byte-progress.ts";
import { findPoint, type PointSelection } from "./points.ts";

export interface RestoreOptions extends PointSelection {
  readonly to: string;
  readonly disk?: number;
  readonly format?: WritableFormat;
  readonly overwrite?: boolean;
}

/** One disk into a new file, or all disks into a folder; each compared with the hash that the export took. */
export async function restore(id: string | undefined, options: RestoreOptions, io: Io): Promise<number> {
  const { destination, manifestPath, manifest } = await findPoint(id, options, io);
  const targets = await targetsOf(manifest.disks, options, io.cwd);
  const interrupts = listenForInterrupts(io.err);
  const restored: object[] = [];
  try {
    for (const { disk, path, format } of targets) {
      const source = await openStoredDisk(destination, manifestPath, disk);
      const progress = byteProgress(io, source.dataBytes);
      try {
        const { bytes } = await writeImageFile(
          path,
          format,
          disk.virtualBytes,
          { compression: "none", overwrite: options.overwrite ?? false, inputs: [], durable: true },
          (sink) => restoreDisk(source, disk, sink, { signal: interrupts.signal, onRead: progress.add }),
        );
        progress.stop();
        restored.push({ disk: disk.bootOrder, name: disk.name, path, format, bytes });
        if (!io.json && !io.quiet)
          io.out(`${path}: ${format}, ${formatBytes(disk.virtualBytes)}, the content is what was exported (${disk.contentHash.value.slice(0, 12)}…)\n`);
      } finally {
        progress.stop();
        await source.close();
      }
    }
    if (io.json) io.result("restore", { point: manifest.id, vm: manifest.source.vm, instant: manifest.source.instant, disks: restored });
    return 0;
  } catch (error) {
    if (interrupts.exitCode !== undefined) return interrupts.exitCode;
    throw error;
  } finally {
    interrupts.dispose();
  }
}

interface Target {
  readonly disk: ManifestDisk;
  readonly path: string;
  readonly format: WritableFormat;
}

async function targetsOf(disks: readonly ManifestDisk[], { to, disk: number, format, overwrite }: RestoreOptions, cwd: string): Promise<Target[]> {
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
    const chosenFormat = format ?? (isFolder ? disk.format : formatOfName(to));
    if (!chosenFormat)
      throw new HypersdkError("Usage", `the name ${JSON.stringify(to)} does not say which format to write`, {
        hint: `say --format ${writableFormats.join(" or --format ")}`,
      });
    return { disk, format: chosenFormat, path: isFolder ? join(target, `disk-${disk.bootOrder}.${chosenFormat}`) : target };
  });
  // before the first byte: a second disk must not fail for what could be known
  for (const { path } of targets)
    if (!overwrite && existsSync(path)) throw new HypersdkError("AlreadyExists", `${path} exists already`, { hint: "name a new file, or say --overwrite" });
  return targets;
}
