import { existsSync, statSync } from "node:fs";
import { basename, extname, join } from "node:path";
import type { ImageFormat } from "../../converters/detect.ts";
import { formatOfName, writeImageFile } from "../../converters/image-file.ts";
import { type OpenedImage, openImage } from "../../converters/open-image.ts";
import { pour } from "../../converters/pour.ts";
import { checkImageOptions, type ImageCompression, type WritableFormat, writableFormats } from "../../converters/write-image.ts";
import { makeFolder } from "../../files/durable.ts";
import { formatBytes, parseSize } from "../../model/bytes.ts";
import { HypersdkError } from "../../model/errors.ts";
import { listenForInterrupts } from "../interrupts.ts";
import type { Io } from "../io.ts";
import { byteProgress } from "./byte-progress.ts";

export interface ConvertOptions {
  readonly from?: ImageFormat;
  readonly to?: WritableFormat;
  readonly compress?: "zlib" | "zstd";
  readonly subformat?: string;
  readonly preallocate?: boolean;
  readonly allowBacking?: readonly string[];
  readonly maxVirtualSize?: string;
  readonly parallelism?: number;
  readonly overwrite?: boolean;
}

/** One image into another. */
interface Job {
  readonly input: string;
  readonly image: OpenedImage;
  readonly output: string;
  readonly to: WritableFormat;
}

interface Converted {
  readonly input: string;
  readonly output: string;
  readonly from: ImageFormat;
  readonly to: WritableFormat;
  readonly virtualBytes: number;
  readonly readBytes: number;
  readonly writtenBytes: number;
}

/** Images into one file, or into a folder where there are several. */
export async function convert(paths: readonly string[], options: ConvertOptions, io: Io): Promise<number> {
  const inputs = paths.slice(0, -1);
  const output = paths.at(-1) as string;
  if (inputs.length === 0) throw new HypersdkError("Usage", "convert needs an image and what to write", { hint: "hypersdk convert disk.vmdk disk.qcow2" });
  const interrupts = listenForInterrupts(io.err);
  const jobs: Job[] = [];
  try {
    const targets = targetsOf(inputs, output, options);
    for (const { input, path, to } of targets) {
      const image = await openImage(input, options);
      jobs.push({ input, image, output: path, to });
      checkJob(jobs.at(-1) as Job, options, io);
    }
    if (targets.length > 1) await makeFolder(output);
    const progress = byteProgress(
      io,
      jobs.reduce((sum, { image }) => sum + image.source.dataBytes, 0),
    );
    try {
      const queue = [...jobs];
      const done: Converted[] = [];
      const work = async (): Promise<void> => {
        for (let job = queue.shift(); job; job = queue.shift()) {
          const one = await convertOne(job, options, interrupts.signal, progress.add);
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
      if (io.json) io.result("convert", { images: done.sort((a, b) => (a.output < b.output ? -1 : 1)) });
      return 0;
    } finally {
      progress.stop();
    }
  } catch (error) {
    if (interrupts.exitCode !== undefined) return interrupts.exitCode;
    throw error;
  } finally {
    interrupts.dispose();
    await Promise.allSettled(jobs.map(({ image }) => image.source.close()));
  }
}

interface Target {
  readonly input: string;
  readonly path: string;
  readonly to: WritableFormat;
}

function targetsOf(inputs: readonly string[], output: string, options: ConvertOptions): Target[] {
  const isFolder = output.endsWith("/") || inputs.length > 1 || (existsSync(output) && statSync(output).isDirectory());
  if (!isFolder) {
    const to = options.to ?? formatOfName(output);
    if (!to)
      throw new HypersdkError("Usage", `the name ${JSON.stringify(output)} does not say which format to write`, {
        hint: `say --to ${writableFormats.join(" or --to ")}`,
      });
    return [{ input: inputs[0] as string, path: output, to }];
  }
  if (existsSync(output) && !statSync(output).isDirectory())
    throw new HypersdkError("Usage", `${output} is a file, and there are ${inputs.length} images`, { hint: "name a folder" });
  const to = options.to;
  if (!to) throw new HypersdkError("Usage", "into a folder, the format must be said", { hint: `say --to ${writableFormats.join(" or --to ")}` });
  const targets = inputs.map((input): Target => ({ input, to, path: join(output, `${basename(input, extname(input))}.${to}`) }));
  const twice = targets.find(({ path }, i) => targets.findIndex((other) => other.path === path) < i);
  if (twice) throw new HypersdkError("Usage", `two images would become ${twice.path}`, { hint: "convert them one by one" });
  return targets;
}

/** What can be known before anything is written. */
function checkJob({ input, image, to }: Job, options: ConvertOptions, io: Io): void {
  const { sizeBytes } = image.source;
  const most = options.maxVirtualSize === undefined ? undefined : parseSize(options.maxVirtualSize);
  if (options.maxVirtualSize !== undefined && most === undefined)
    throw new HypersdkError("Usage", `--max-virtual-size ${JSON.stringify(options.maxVirtualSize)} is no size`, { hint: "such as 500GiB or 2TiB" });
  if (most !== undefined && sizeBytes > most)
    throw new HypersdkError("ImageDamaged", `${input}: a virtual size of ${sizeBytes} bytes is over the limit of ${most}`, {
      hint: "raise --max-virtual-size",
    });
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
  options: ConvertOptions,
  signal: AbortSignal,
  onRead: (bytes: number) => void,
): Promise<Converted> {
  const inputs = [input, ...image.otherFiles];
  const before = inputs.map(fingerprint).join();
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
        refuseChanged(input, inputs, before);
        throw error;
      }
      refuseChanged(input, inputs, before);
    },
  );
  return { input, output, from: image.format, to, virtualBytes: image.source.sizeBytes, readBytes, writtenBytes: bytes };
}

function refuseChanged(input: string, inputs: readonly string[], before: string): void {
  if (inputs.map(fingerprint).join() !== before)
    throw new HypersdkError("SourceChanged", `${input} changed while it was read`, { hint: "convert it while nothing writes to it" });
}

function fingerprint(path: string): string {
  const stat = statSync(path, { bigint: true, throwIfNoEntry: false });
  return stat ? `${stat.size} ${stat.mtimeNs} ${stat.ino}` : "gone";
}
