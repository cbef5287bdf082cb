import { existsSync, statSync } from "node:fs";
import { rmdir } from "node:fs/promises";
import { basename, extname, join } from "node:path";
import { isLockedByOther } from "../../converters/file-locks.ts";
import { formatOfName, writeImageFile } from "../../converters/image-file.ts";
import { isMachine, type Machine, openMachine } from "../../converters/machine/open-machine.ts";
import { defaultHardware } from "../../converters/machine/pack-machine.ts";
import { writeOva, writeOvf } from "../../converters/machine/write-package.ts";
import { type OpenedImage, openImage } from "../../converters/open-image.ts";
import { pour } from "../../converters/pour.ts";
import { checkImageOptions } from "../../converters/write-image.ts";
import { makeFolder } from "../../files/durable.ts";
import { formatBytes, parseSize } from "../../model/bytes.ts";
import { HypersdkError } from "../../model/errors.ts";
import { type ImageCompression, type ImageFormat, imageFormats } from "../../model/image-formats.ts";
import { listenForInterrupts } from "../interrupts.ts";
import type { Io } from "../io.ts";
import { byteProgress } from "./byte-progress.ts";

export interface ConvertOptions {
  readonly from?: ImageFormat;
  readonly to?: ImageFormat;
  readonly compress?: "zlib" | "zstd";
  readonly subformat?: string;
  readonly preallocate?: boolean;
  readonly allowBacking?: readonly string[];
  readonly maxVirtualSize?: string;
  readonly parallelism?: number;
  readonly forceShare?: boolean;
  readonly overwrite?: boolean;
}

/** A disk that is read. */
interface Input {
  /** As people know it. */
  readonly name: string;
  /** Without its folder and ending: what a file in a folder is called after. */
  readonly stem: string;
  /** The file that holds it, and the one that describes its VM where there is one. */
  readonly files: readonly string[];
  open(): Promise<OpenedImage>;
}

/** One image into another. */
interface Job {
  readonly input: Input;
  readonly image: OpenedImage;
  readonly output: string;
  readonly to: ImageFormat;
}

/** What was seen of each file that is read, before it was opened. */
type Watched = Map<string, string>;

interface Converted {
  readonly input: string;
  readonly output: string;
  readonly from: ImageFormat;
  readonly to: ImageFormat;
  readonly virtualBytes: number;
  readonly readBytes: number;
  readonly writtenBytes: number;
}

/** Images and machines into one file, into a package of a VM, or into a folder where there are several. */
export async function convert(paths: readonly string[], options: ConvertOptions, io: Io): Promise<number> {
  const sources = paths.slice(0, -1);
  const output = paths.at(-1) as string;
  if (sources.length === 0) throw new HypersdkError("Usage", "convert needs an image and what to write", { hint: "hypersdk convert disk.vmdk disk.qcow2" });
  const interrupts = listenForInterrupts(io.err);
  const opened: OpenedImage[] = [];
  try {
    const machine =
      sources.length === 1 && isMachine(sources[0] as string) ? await openMachine(sources[0] as string, interrupts.signal, options.allowBacking) : undefined;
    if (machine && options.from) throw new HypersdkError("Usage", "--from is for disk images, not for a VM");
    const inputs = machine ? inputsOf(sources[0] as string, machine) : sources.map((path) => inputOf(path, options));
    if (/\.(ova|ovf)$/i.test(output)) return await convertToPackage(inputs, machine, output, options, interrupts.signal, opened, io);
    const targets = targetsOf(inputs, output, options);
    const jobs: Job[] = [];
    const watched: Watched = new Map();
    for (const { input, path, to } of targets) {
      const image = await openWatched(input, watched, options);
      opened.push(image);
      checkSize(input, image, options);
      jobs.push({ input, image, output: path, to });
      checkJob(jobs.at(-1) as Job, options, io);
    }
    const madeFolder = isFolder(inputs, output) && !existsSync(output);
    if (isFolder(inputs, output)) await makeFolder(output);
    const progress = byteProgress(
      io,
      jobs.reduce((sum, { image }) => sum + image.source.dataBytes, 0),
    );
    const done: Converted[] = [];
    const stopMeasuring = measureMeanwhile(opened, progress);
    try {
      const queue = [...jobs];
      const work = async (): Promise<void> => {
        for (let job = queue.shift(); job; job = queue.shift()) {
          const one = await convertOne(job, watched, options, interrupts.signal, progress.add);
          done.push(one);
          if (!io.json && !io.quiet) {
            progress.stop();
            io.out(`${one.output}: ${one.to}, ${formatBytes(one.virtualBytes)} virtual, ${formatBytes(one.readBytes)} of data read\n`);
          }
        }
      };
      const results = await Promise.allSettled(Array.from({ length: Math.min(jobs.length, options.parallelism ?? 2) }, work));
      for (const result of results) if (result.status === "rejected") throw result.reason;
      progress.stop();
      const order = new Map(jobs.map(({ output: path }, i) => [path, i]));
      if (io.json) io.result("convert", { images: done.sort((a, b) => (order.get(a.output) ?? 0) - (order.get(b.output) ?? 0)) });
      return 0;
    } catch (error) {
      if (done.length > 0 && jobs.length > 1 && !interrupts.exitCode)
        io.err(`${io.errStyle.yellow("warning")}: ${done.length} of ${jobs.length} images were converted: ${done.map((one) => one.output).join(", ")}\n`);
      if (done.length === 0 && madeFolder) await rmdir(output).catch(() => {});
      throw error;
    } finally {
      await stopMeasuring();
      progress.stop();
    }
  } catch (error) {
    if (interrupts.exitCode !== undefined) return interrupts.exitCode;
    throw error;
  } finally {
    interrupts.dispose();
    await Promise.allSettled(opened.map(({ source }) => source.close()));
  }
}

function inputOf(path: string, options: ConvertOptions): Input {
  if (isMachine(path)) throw new HypersdkError("Usage", `${path} is a VM of its own`, { hint: "convert one VM at a time" });
  return { name: path, stem: basename(path, extname(path)), files: [path], open: () => openImage(path, options) };
}

function inputsOf(path: string, { disks }: Machine): Input[] {
  return disks.map(({ name, path: file, open }) => ({ name: `${path}: ${name}`, stem: basename(name, extname(name)), files: [file, path], open }));
}

/** Opens an image and remembers what its files are now. @throws SourceLocked for one that somebody writes to, such as a running VM */
async function openWatched(input: Input, watched: Watched, { forceShare = false }: ConvertOptions): Promise<OpenedImage> {
  const watch = (path: string): void => {
    if (watched.has(path)) return;
    const stat = statSync(path, { bigint: true, throwIfNoEntry: false });
    if (stat && !forceShare && isLockedByOther(stat))
      throw new HypersdkError("SourceLocked", `${path} is locked by another process, which may write to it`, {
        hint: "shut the VM down, or read it all the same with --force-share",
      });
    watched.set(path, fingerprint(path));
  };
  for (const path of input.files) watch(path);
  const image = await input.open();
  try {
    for (const path of image.otherFiles) watch(path);
  } catch (error) {
    await image.source.close();
    throw error;
  }
  return image;
}

/**
 * Once a conversion takes so long that its progress is shown, sums what the tables say: of packed data, an estimate before is far off.
 * @returns stops it, and waits until the images are no longer read
 */
function measureMeanwhile(images: readonly OpenedImage[], progress: ReturnType<typeof byteProgress>): () => Promise<void> {
  let isStopped = false;
  let measuring: Promise<void> = Promise.resolve();
  const measure = async (): Promise<void> => {
    let bytes = 0;
    for (const { source } of images)
      for await (const { kind, length } of source.extents()) {
        if (isStopped) return;
        if (kind === "data") bytes += length;
      }
    progress.setTotal(bytes);
  };
  // what it cannot read, the conversion will meet
  const timer = setTimeout(() => (measuring = measure().catch(() => {})), 1000);
  return async () => {
    isStopped = true;
    clearTimeout(timer);
    await measuring;
  };
}

/** A VM as one archive, or as a descriptor with its disks beside it. */
async function convertToPackage(
  inputs: readonly Input[],
  machine: Machine | undefined,
  output: string,
  options: ConvertOptions,
  signal: AbortSignal,
  opened: OpenedImage[],
  io: Io,
): Promise<number> {
  for (const [flag, value] of [
    ["--to", options.to],
    ["--compress", options.compress],
    ["--subformat", options.subformat],
    ["--preallocate", options.preallocate],
  ] as const)
    if (value !== undefined) throw new HypersdkError("Usage", `${flag} is not for an OVF package: its disks are stream-optimized VMDKs`);
  const watched: Watched = new Map();
  for (const input of inputs) {
    const image = await openWatched(input, watched, options);
    opened.push(image);
    checkSize(input, image, options);
  }
  const { descriptor } = machine ?? {};
  const progress = byteProgress(
    io,
    opened.reduce((sum, { source }) => sum + source.dataBytes, 0),
  );
  const stopMeasuring = measureMeanwhile(opened, progress);
  try {
    const write = /\.ova$/i.test(output) ? writeOva : writeOvf;
    const { bytes, readBytes } = await write(
      output,
      {
        name: descriptor?.name ?? basename(output, extname(output)),
        cpus: descriptor?.cpus ?? defaultHardware.cpus,
        memoryBytes: descriptor?.memoryBytes ?? defaultHardware.memoryBytes,
        ...(descriptor?.guestType ? { guestType: descriptor.guestType } : {}),
        ...(descriptor?.firmware ? { firmware: descriptor.firmware } : {}),
        sources: opened.map(({ source }) => source),
      },
      { overwrite: options.overwrite ?? false, inputs: [...watched.keys()], confirm: () => refuseChanged(watched), signal, onRead: progress.add },
    );
    progress.stop();
    if (!machine && !io.json) io.err(`${io.errStyle.yellow("warning")}: disk images say nothing of a VM: the package has 1 CPU and 1 GiB of memory\n`);
    const virtualBytes = opened.reduce((sum, { source }) => sum + source.sizeBytes, 0);
    const from = (opened[0] as OpenedImage).format;
    const to = /\.ova$/i.test(output) ? "ova" : "ovf";
    if (io.json)
      io.result("convert", { images: [{ input: inputs.map(({ name }) => name).join(", "), output, from, to, virtualBytes, readBytes, writtenBytes: bytes }] });
    else if (!io.quiet)
      io.out(
        `${output}: ${to}, ${opened.length} ${opened.length === 1 ? "disk" : "disks"}, ${formatBytes(virtualBytes)} virtual, ${formatBytes(bytes)} written\n`,
      );
    return 0;
  } finally {
    await stopMeasuring();
    progress.stop();
  }
}

interface Target {
  readonly input: Input;
  readonly path: string;
  readonly to: ImageFormat;
}

function isFolder(inputs: readonly Input[], output: string): boolean {
  return output.endsWith("/") || inputs.length > 1 || (existsSync(output) && statSync(output).isDirectory());
}

function targetsOf(inputs: readonly Input[], output: string, options: ConvertOptions): Target[] {
  if (!isFolder(inputs, output)) {
    const to = options.to ?? formatOfName(output);
    if (!to)
      throw new HypersdkError("Usage", `the name ${JSON.stringify(output)} does not say which format to write`, {
        hint: `say --to ${imageFormats.join(" or --to ")}`,
      });
    return [{ input: inputs[0] as Input, path: output, to }];
  }
  if (existsSync(output) && !statSync(output).isDirectory())
    throw new HypersdkError("Usage", `${output} is a file, and there are ${inputs.length} images`, { hint: "name a folder" });
  const to = options.to;
  if (!output.endsWith("/") && !existsSync(output) && formatOfName(output) && !to)
    throw new HypersdkError("Usage", `there are ${inputs.length} disks, and ${JSON.stringify(output)} is one file`, {
      hint: `name a folder and a format: ${output.replace(/\.[^/.]*$/, "")}/ --to ${formatOfName(output)}`,
    });
  if (!to) throw new HypersdkError("Usage", "into a folder, the format must be said", { hint: `say --to ${imageFormats.join(" or --to ")}` });
  const targets = inputs.map((input): Target => ({ input, to, path: join(output, `${input.stem}.${to}`) }));
  const twice = targets.find(({ path }, i) => targets.findIndex((other) => other.path === path) < i);
  if (twice) throw new HypersdkError("Usage", `two images would become ${twice.path}`, { hint: "convert them one by one" });
  return targets;
}

function checkSize({ name }: Input, { source }: OpenedImage, { maxVirtualSize }: ConvertOptions): void {
  if (maxVirtualSize === undefined) return;
  const most = parseSize(maxVirtualSize);
  if (most === undefined)
    throw new HypersdkError("Usage", `--max-virtual-size ${JSON.stringify(maxVirtualSize)} is no size`, { hint: "such as 500GiB or 2TiB" });
  if (source.sizeBytes > most)
    throw new HypersdkError("ImageUnsupported", `${name}: a virtual size of ${source.sizeBytes} bytes is over the limit of ${most}`, {
      hint: "raise --max-virtual-size",
    });
}

/** What can be known before anything is written. */
function checkJob({ image, to }: Job, options: ConvertOptions, io: Io): void {
  const { sizeBytes } = image.source;
  const isFixed = to === "raw" || ((to === "vhd" || to === "vhdx") && options.subformat === "fixed");
  if (options.preallocate && !isFixed) throw new HypersdkError("Usage", "--preallocate is for raw, and for fixed vhd and vhdx");
  const becomes = checkImageOptions(to, sizeBytes, imageOptionsOf(options));
  if (becomes !== sizeBytes)
    io.err(
      `${io.errStyle.yellow("warning")}: ${to} counts in sectors of 512 bytes: the disk of ${sizeBytes} bytes becomes one of ${becomes}, zeros at its end\n`,
    );
}

function imageOptionsOf({ compress, subformat, preallocate }: ConvertOptions): {
  readonly compression: ImageCompression;
  readonly subformat?: string;
  readonly preallocated: boolean;
} {
  return { compression: compress ?? "none", ...(subformat === undefined ? {} : { subformat }), preallocated: preallocate ?? false };
}

async function convertOne(
  { input, image, output, to }: Job,
  watched: Watched,
  options: ConvertOptions,
  signal: AbortSignal,
  onRead: (bytes: number) => void,
): Promise<Converted> {
  // none of the files that any of the conversions reads may be written over
  const inputs = [...watched.keys()];
  let readBytes = 0;
  const { bytes } = await writeImageFile(
    output,
    to,
    image.source.sizeBytes,
    { ...imageOptionsOf(options), overwrite: options.overwrite ?? false, inputs, durable: false },
    async (sink) => {
      try {
        ({ readBytes } = await pour(image.source, sink, { signal, onRead }));
      } catch (error) {
        // an image that is rewritten while it is read looks damaged
        refuseChanged(watched, [...input.files, ...image.otherFiles]);
        throw error;
      }
      refuseChanged(watched, [...input.files, ...image.otherFiles]);
    },
  );
  return { input: input.name, output, from: image.format, to, virtualBytes: image.source.sizeBytes, readBytes, writtenBytes: bytes };
}

function refuseChanged(watched: Watched, files: Iterable<string> = watched.keys()): void {
  for (const path of files)
    if (fingerprint(path) !== watched.get(path))
      throw new HypersdkError("SourceChanged", `${path} changed while it was read`, { hint: "convert it while nothing writes to it" });
}

function fingerprint(path: string): string {
  const stat = statSync(path, { bigint: true, throwIfNoEntry: false });
  return stat ? `${stat.size} ${stat.mtimeNs} ${stat.ino}` : "gone";
}
