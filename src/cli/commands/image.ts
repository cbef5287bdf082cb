import { statSync } from "node:fs";
import { checkImage } from "../../converters/check-image.ts";
import { compareDisks } from "../../converters/compare.ts";
import { openImage } from "../../converters/open-image.ts";
import { formatBytes } from "../../model/bytes.ts";
import type { ImageFormat } from "../../model/image-formats.ts";
import { printable } from "../../ui/style.ts";
import { exitCodes } from "../exit-codes.ts";
import type { Io } from "../io.ts";
import { byteProgress } from "./byte-progress.ts";

export interface ImageCommandOptions {
  readonly from?: ImageFormat;
  readonly allowBacking?: readonly string[];
}

export async function info(file: string, options: ImageCommandOptions, io: Io): Promise<number> {
  const { format, variant, source, otherFiles, chain, details } = await openImage(file, options);
  try {
    const stat = statSync(file);
    const { creator = null, blockBytes = null, sectorBytes = null, features = [], notes = [] } = details;
    const value = {
      file,
      format,
      variant,
      virtualBytes: source.sizeBytes,
      fileBytes: stat.size,
      allocatedBytes: stat.blocks * 512,
      creator,
      blockBytes,
      sectorBytes,
      features,
      chain,
      otherFiles,
      notes,
    };
    if (io.json) {
      io.result("image-info", value);
      return 0;
    }
    const lines: readonly (readonly [string, string | null])[] = [
      ["file", file],
      ["format", `${format} (${variant})`],
      ["virtual", `${formatBytes(source.sizeBytes)} (${source.sizeBytes} bytes)`],
      ["file size", `${formatBytes(stat.size)}, ${formatBytes(value.allocatedBytes)} allocated`],
      ["block", blockBytes === null ? null : formatBytes(blockBytes)],
      ["sector", sectorBytes === null || sectorBytes === 512 ? null : formatBytes(sectorBytes)],
      ["made by", creator || null],
      ["features", features.length > 0 ? features.join(", ") : null],
      ...chain.slice(1).map((link): [string, string] => ["over", `${link.file} (${link.format}, ${link.variant})`]),
      ["other files", otherFiles.length > 0 ? otherFiles.join(", ") : null],
      ...notes.map((note): [string, string] => ["note", note]),
    ];
    io.out(lines.flatMap(([what, text]) => (text === null ? [] : [`${what.padEnd(12)}${printable(text)}\n`])).join(""));
    return 0;
  } finally {
    await source.close();
  }
}

export async function check(file: string, options: ImageCommandOptions, io: Io): Promise<number> {
  const { format, problems, leaks } = await checkImage(file, options);
  if (io.json) io.result("image-check", { file, format, sound: problems.length === 0, problems, leaks });
  else if (problems.length + leaks === 0) io.out(`${file}: ${format}, sound\n`);
  else {
    for (const problem of problems.slice(0, 50)) io.out(`${io.style.red("error")}: ${problem}\n`);
    if (problems.length > 50) io.out(`… and ${problems.length - 50} more\n`);
    if (leaks > 0) io.out(`${io.style.yellow("leak")}: ${leaks} clusters are counted and not used; the content is unharmed\n`);
  }
  return problems.length > 0 ? exitCodes.damaged : exitCodes.done;
}

export async function map(file: string, options: ImageCommandOptions, io: Io): Promise<number> {
  const { source } = await openImage(file, options);
  try {
    // a map may be longer than memory: it is printed as it is found, once it is known that all of it can be
    for await (const _extent of source.extents()) {
    }
    const head = JSON.stringify({ formatVersion: 1, type: "image-map", file, virtualBytes: source.sizeBytes });
    io.out(io.json ? `${head.slice(0, -1)},"extents":[` : `${"offset".padStart(16)}  ${"length".padStart(16)}  kind\n`);
    let isFirst = true;
    for await (const { offset, length, kind } of source.extents()) {
      if (io.json) io.out(`${isFirst ? "" : ","}\n${JSON.stringify({ offset, length, kind })}`);
      else io.out(`${String(offset).padStart(16)}  ${String(length).padStart(16)}  ${kind}\n`);
      isFirst = false;
    }
    if (io.json) io.out("]}\n");
    return 0;
  } finally {
    await source.close();
  }
}

export async function compare(left: string, right: string, options: ImageCommandOptions, io: Io): Promise<number> {
  const a = await openImage(left, options);
  const b = await openImage(right, options).catch(async (error: unknown) => {
    await a.source.close();
    throw error;
  });
  const progress = byteProgress(io, a.source.dataBytes + b.source.dataBytes);
  try {
    const difference = await compareDisks(a.source, b.source, progress.add);
    progress.stop();
    if (io.json) io.result("image-compare", { left, right, identical: difference === undefined, ...(difference ? { difference } : {}) });
    else if (difference === undefined) io.out("the disks are identical\n");
    else if (difference.kind === "size") io.out(`the disks differ in size: ${difference.left} and ${difference.right} bytes\n`);
    else io.out(`the disks differ first at offset ${difference.offset}\n`);
    return difference === undefined ? exitCodes.done : exitCodes.difference;
  } finally {
    progress.stop();
    await Promise.all([a.source.close(), b.source.close()]);
  }
}
