import { randomUUID } from "node:crypto";
import { lstatSync, statSync } from "node:fs";
import { rm } from "node:fs/promises";
import { basename, resolve } from "node:path";
import { umask } from "node:process";
import { partialName, publish } from "../files/durable.ts";
import { LocalFileSink } from "../files/local-file-sink.ts";
import { HypersdkError } from "../model/errors.ts";
import { type ImageFormat, imageFormats } from "../model/image-formats.ts";
import type { DiskSink } from "./disk-sink.ts";
import { isLockedByOther } from "./file-locks.ts";
import { checkImageOptions, type ImageOptions, imageSink } from "./write-image.ts";

/** The format that a file name's ending stands for, or undefined. */
export function formatOfName(path: string): ImageFormat | undefined {
  const ending = /\.([a-z0-9]+)$/i.exec(basename(path))?.[1]?.toLowerCase();
  if (ending === "img" || ending === "raw") return "raw";
  if (ending === "vpc") return "vhd";
  return imageFormats.find((format) => format === ending);
}

/**
 * Writes a disk as one local image file. The file gets its name when everything is in it and safe; on any failure nothing of it
 * is left, and what stood under the name before is untouched.
 * With `durable` it survives a power cut too; without, it is as safe as a copy made by cp.
 * @param inputs files that are read meanwhile: the output may be none of them, under whatever name
 */
export async function writeImageFile(
  path: string,
  format: ImageFormat,
  sizeBytes: number,
  options: ImageOptions & {
    readonly overwrite: boolean;
    readonly inputs: readonly string[];
    readonly durable: boolean;
    readonly shownAs?: string;
    /** A file that an earlier attempt left and this one goes on with; it stays when this one fails as well, unless it proves damaged or was not synced. */
    readonly resumes?: { readonly path: string; confirm(): Promise<void> };
  },
  fill: (sink: DiskSink) => Promise<void>,
): Promise<{ readonly bytes: number }> {
  const target = resolve(path);
  checkImageOptions(format, sizeBytes, options);
  refuseTarget(path, target, options);
  const partial = options.resumes?.path ?? partialName(target, randomUUID());
  const reopen = options.resumes !== undefined;
  const file = await LocalFileSink.create(partial, { hashed: false, durable: options.durable, shownAs: options.shownAs ?? path, mode: modeOf(target), reopen });
  try {
    await fill(imageSink(format, file, sizeBytes, { ...options, fileName: basename(target) }));
    const { bytes } = await file.finish();
    await options.resumes?.confirm();
    // somebody may have made it meanwhile
    refuseTarget(path, target, options);
    await publish(partial, target, options.durable);
    return { bytes };
  } catch (error) {
    await file.abort();
    const isDamaged = error instanceof HypersdkError && error.code === "ArtifactDamaged";
    if (!reopen || isDamaged || file.isLost) await rm(partial, { force: true });
    throw error;
  }
}

/** As of any file that a person asks for: what the umask leaves, or what the file has that is replaced. */
export function modeOf(target: string): number {
  return (statSync(target, { throwIfNoEntry: false })?.mode ?? 0o666 & ~umask()) & 0o777;
}

/** Refuses a target that is there, or that is one of the files that are read, or that a VM runs from. */
export function refuseTarget(path: string, target: string, { overwrite, inputs }: { readonly overwrite: boolean; readonly inputs: readonly string[] }): void {
  const link = lstatSync(target, { throwIfNoEntry: false });
  if (!link) return;
  const stat = statSync(target, { throwIfNoEntry: false });
  if (!stat) throw new HypersdkError("AlreadyExists", `${path} is a link to something that is not there`, { hint: "name a new file" });
  if (!stat.isFile()) throw new HypersdkError("AlreadyExists", `${path} is no regular file`, { hint: "name a new file" });
  for (const input of inputs) {
    const other = statSync(input, { throwIfNoEntry: false });
    if (other && other.dev === stat.dev && other.ino === stat.ino)
      throw new HypersdkError("Usage", `${path} is the file that is read`, { hint: "name another file for the output" });
  }
  if (overwrite && isLockedByOther(statSync(target, { bigint: true })))
    throw new HypersdkError("SourceLocked", `${path} is in use by another process, which would go on writing to what it was`, {
      hint: "stop the VM first, or name a new file",
    });
  if (!overwrite) throw new HypersdkError("AlreadyExists", `${path} exists already`, { hint: "name a new file, or say --overwrite" });
}
