import { statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { checkImage } from "../../converters/check-image.ts";
import { compareDisks } from "../../converters/compare.ts";
import { isMachine, openMachine } from "../../converters/machine/open-machine.ts";
import { type OpenedImage, type OpenOptions, openImage } from "../../converters/open-image.ts";
import { formatBytes } from "../../model/bytes.ts";
import { HypersdkError } from "../../model/errors.ts";
import type { ImageFormat } from "../../model/image-formats.ts";
import { plural } from "../../ui/plan-view.ts";
import { printable } from "../../ui/style.ts";
import { exitCodes } from "../exit-codes.ts";
import type { Io } from "../io.ts";
import { byteProgress } from "./byte-progress.ts";

export interface ImageCommandOptions {
  readonly from?: ImageFormat;
  readonly allowBacking?: readonly string[];
}

export async function info(file: string, options: ImageCommandOptions, io: Io): Promise<number> {
  if (isMachine(file) && options.from === undefined) return machineInfo(file, io);
  const image = await openImage(file, { ...options, mayLackParents: true });
  try {
    const value = { file, ...aboutImage(image), ...sizeOf(file, image) };
    if (io.json) io.result("image-info", value);
    else io.out(imageLines(value));
    return value.problem === null ? exitCodes.done : exitCodes.damaged;
  } finally {
    await image.source.close();
  }
}

type ImageInfo = ReturnType<typeof aboutImage>;

function aboutImage({ format, variant, source, otherFiles, chain, details, problem }: OpenedImage) {
  const { creator = null, blockBytes = null, sectorBytes = null, features = [], notes = [], defects = [] } = details;
  return {
    format,
    variant,
    virtualBytes: source.sizeBytes,
    creator,
    blockBytes,
    sectorBytes,
    features,
    chain,
    otherFiles,
    notes: [...defects, ...notes],
    problem: problem?.message ?? null,
  };
}

/** What the image takes on this disk: its extents count, its parents do not. */
function sizeOf(file: string, { otherFiles, chain }: OpenedImage): { readonly fileBytes: number; readonly allocatedBytes: number } {
  const parents = new Set(chain.slice(1).map((link) => resolve(dirname(file), link.file)));
  const stats = [file, ...otherFiles.filter((each) => !parents.has(each))].map((each) => statSync(each));
  return { fileBytes: stats.reduce((sum, { size }) => sum + size, 0), allocatedBytes: stats.reduce((sum, { blocks }) => sum + blocks * 512, 0) };
}

function imageLines(value: ImageInfo & { readonly file?: string; readonly fileBytes?: number; readonly allocatedBytes?: number }): string {
  const { fileBytes, allocatedBytes, blockBytes, sectorBytes, features, chain, otherFiles, notes, problem } = value;
  const lines: readonly (readonly [string, string | null])[] = [
    ["file", value.file ?? null],
    ["format", `${value.format} (${value.variant})`],
    ["virtual", `${formatBytes(value.virtualBytes)} (${value.virtualBytes} bytes)`],
    ["file size", fileBytes === undefined ? null : `${formatBytes(fileBytes)}, ${formatBytes(allocatedBytes ?? 0)} allocated`],
    ["block", blockBytes === null ? null : formatBytes(blockBytes)],
    ["sector", sectorBytes === null || sectorBytes === 512 ? null : formatBytes(sectorBytes)],
    ["made by", value.creator || null],
    ["features", features.length > 0 ? features.join(", ") : null],
    ...chain.slice(1).map((link): [string, string] => ["over", `${link.file} (${link.format}, ${link.variant})`]),
    ["other files", otherFiles.length > 0 ? otherFiles.join(", ") : null],
    ...notes.map((note): [string, string] => ["note", note]),
    ["problem", problem],
  ];
  return lines.flatMap(([what, text]) => (text === null ? [] : [`${what.padEnd(12)}${printable(text)}\n`])).join("");
}

/** A VM with each of its disks. */
async function machineInfo(file: string, io: Io): Promise<number> {
  const { descriptor, disks } = await openMachine(file);
  const shown: (ImageInfo & { readonly name: string })[] = [];
  for (const { name, open: openDisk } of disks) {
    const image = await openDisk();
    shown.push({ name, ...aboutImage(image) });
    await image.source.close();
  }
  const { name = null, guestType = null, firmware = null, cpus = null, memoryBytes = null } = descriptor;
  if (io.json) {
    io.result("machine-info", { file, name, guestType, firmware, cpus, memoryBytes, disks: shown });
    return exitCodes.done;
  }
  const lines: readonly (readonly [string, string | null])[] = [
    ["file", file],
    ["VM", name],
    ["guest", guestType],
    ["firmware", firmware],
    ["CPUs", cpus === null ? null : String(cpus)],
    ["memory", memoryBytes === null ? null : formatBytes(memoryBytes)],
  ];
  io.out(lines.flatMap(([what, text]) => (text === null ? [] : [`${what.padEnd(12)}${printable(text)}\n`])).join(""));
  for (const [i, disk] of shown.entries()) io.out(`\n${`disk ${i}`.padEnd(12)}${printable(disk.name)}\n${imageLines(disk)}`);
  return exitCodes.done;
}

export async function check(file: string, options: ImageCommandOptions, io: Io): Promise<number> {
  refuseMachine(file, options);
  const { format, problems, leaks, notes } = await checkImage(file, options);
  if (io.json) io.result("image-check", { file, format, sound: problems.length === 0, problems, leaks, notes });
  else {
    for (const problem of problems.slice(0, 50)) io.out(`${io.style.red("error")}: ${problem}\n`);
    if (problems.length > 50) io.out(`… and ${problems.length - 50} more\n`);
    if (leaks > 0)
      io.out(
        `${io.style.yellow("leak")}: ${plural(leaks, "block")} of the file ${leaks === 1 ? "takes" : "take"} space and ${leaks === 1 ? "holds" : "hold"} nothing of the disk\n`,
      );
    for (const note of notes) io.out(`note: ${printable(note)}\n`);
    if (problems.length === 0) io.out(`${file}: ${format}, sound${leaks > 0 ? ", but for the leaks: the content is unharmed" : ""}\n`);
  }
  return problems.length > 0 ? exitCodes.damaged : exitCodes.done;
}

export async function map(file: string, options: ImageCommandOptions, io: Io): Promise<number> {
  const { source } = await open(file, options);
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

interface CompareOptions extends ImageCommandOptions {
  readonly rightFrom?: ImageFormat;
  readonly strict?: boolean;
}

export async function compare(left: string, right: string, options: CompareOptions, io: Io): Promise<number> {
  const { allowBacking, rightFrom, strict = false } = options;
  const a = await open(left, options);
  const b = await open(right, { ...(rightFrom ? { from: rightFrom } : {}), ...(allowBacking ? { allowBacking } : {}) }).catch(async (error: unknown) => {
    await a.source.close();
    throw error;
  });
  const progress = byteProgress(io, a.source.dataBytes + b.source.dataBytes);
  try {
    const difference = await compareDisks(a.source, b.source, { onRead: progress.add, maySizesDiffer: !strict });
    progress.stop();
    const [leftBytes, rightBytes] = [a.source.sizeBytes, b.source.sizeBytes];
    if (io.json) io.result("image-compare", { left, right, identical: difference === undefined, leftBytes, rightBytes, ...(difference ? { difference } : {}) });
    else if (difference === undefined)
      io.out(
        leftBytes === rightBytes ? "the disks are identical\n" : `the disks are identical, but for zeros at the end: ${leftBytes} and ${rightBytes} bytes\n`,
      );
    else if (difference.kind === "size") io.out(`the disks differ in size: ${difference.left} and ${difference.right} bytes\n`);
    else
      io.out(`the disks differ first at offset ${difference.offset}${leftBytes === rightBytes ? "" : `, and in size: ${leftBytes} and ${rightBytes} bytes`}\n`);
    return difference === undefined ? exitCodes.done : exitCodes.difference;
  } finally {
    progress.stop();
    await Promise.all([a.source.close(), b.source.close()]);
  }
}

/** One disk image; what describes a VM is none. */
async function open(file: string, options: OpenOptions): Promise<OpenedImage> {
  refuseMachine(file, options);
  return openImage(file, options);
}

function refuseMachine(file: string, options: OpenOptions): void {
  if (isMachine(file) && options.from === undefined)
    throw new HypersdkError("Usage", `${file} is a VM, not a disk image`, {
      hint: "hypersdk image info shows its disks; name one of them, or unpack it with hypersdk convert",
    });
}
