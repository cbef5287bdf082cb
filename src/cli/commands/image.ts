import { statSync } from "node:fs";
import { checkImage } from "../../converters/check-image.ts";
import { compareDisks } from "../../converters/compare.ts";
import type { ImageFormat } from "../../converters/detect.ts";
import { openImage } from "../../converters/open-image.ts";
import { formatBytes } from "../../model/bytes.ts";
import { renderTable } from "../../ui/table.ts";
import { exitCodes } from "../exit-codes.ts";
import type { Io } from "../io.ts";
import { byteProgress } from "./byte-progress.ts";

export interface ImageCommandOptions {
  readonly from?: ImageFormat;
}

const opening = ({ from }: ImageCommandOptions): { readonly from?: ImageFormat } => (from ? { from } : {});

export async function info(file: string, options: ImageCommandOptions, io: Io): Promise<number> {
  const { format, variant, source, extentFiles } = await openImage(file, opening(options));
  try {
    const stat = statSync(file);
    const value = { file, format, variant, virtualBytes: source.sizeBytes, fileBytes: stat.size, allocatedBytes: stat.blocks * 512, extentFiles };
    if (io.json) io.result("image-info", value);
    else {
      io.out(
        `file       ${file}\nformat     ${format} (${variant})\nvirtual    ${formatBytes(source.sizeBytes)} (${source.sizeBytes} bytes)\nfile size  ${formatBytes(stat.size)}, ${formatBytes(value.allocatedBytes)} allocated\n`,
      );
      if (extentFiles.length > 0) io.out(`extents    ${extentFiles.join(", ")}\n`);
    }
    return 0;
  } finally {
    await source.close();
  }
}

export async function check(file: string, options: ImageCommandOptions, io: Io): Promise<number> {
  const { format, problems, leaks } = await checkImage(file, opening(options));
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
  const { source } = await openImage(file, opening(options));
  try {
    const extents: { offset: number; length: number; kind: string }[] = [];
    for await (const { offset, length, kind } of source.extents()) extents.push({ offset, length, kind });
    if (io.json) io.result("image-map", { file, virtualBytes: source.sizeBytes, extents });
    else
      io.out(
        renderTable(
          ["offset", "length", "kind"],
          extents.map(({ offset, length, kind }) => [String(offset), String(length), kind]),
          [0, 1],
        ),
      );
    return 0;
  } finally {
    await source.close();
  }
}

export async function compare(left: string, right: string, options: ImageCommandOptions, io: Io): Promise<number> {
  const a = await openImage(left, opening(options));
  const b = await openImage(right, opening(options)).catch(async (error: unknown) => {
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
