import { statSync } from "node:fs";
import { dirname, join } from "node:path";
import type { ImageFormat } from "../../converters/detect.ts";
import { formatOfName, writeImageFile } from "../../converters/image-file.ts";
import { openImage } from "../../converters/open-image.ts";
import { pour } from "../../converters/pour.ts";
import { type WritableFormat, writableFormats } from "../../converters/write-image.ts";
import { formatBytes } from "../../model/bytes.ts";
import { HypersdkError } from "../../model/errors.ts";
import { listenForInterrupts } from "../interrupts.ts";
import type { Io } from "../io.ts";
import { byteProgress } from "./byte-progress.ts";

export interface ConvertOptions {
  readonly from?: ImageFormat;
  readonly to?: WritableFormat;
  readonly compress?: boolean;
  readonly overwrite?: boolean;
}

export async function convert(input: string, output: string, options: ConvertOptions, io: Io): Promise<number> {
  const to = options.to ?? formatOfName(output);
  if (!to)
    throw new HypersdkError("Usage", `the name ${JSON.stringify(output)} does not say which format to write`, {
      hint: `say --to ${writableFormats.join(" or --to ")}`,
    });
  if (options.compress && to !== "qcow2") throw new HypersdkError("Usage", `${to} images cannot be compressed`);
  const interrupts = listenForInterrupts(io.err);
  try {
    const image = await openImage(input, options.from ? { from: options.from } : {});
    const progress = byteProgress(io, image.source.dataBytes);
    try {
      const inputs = [input, ...image.extentFiles.map((name) => join(dirname(input), name))];
      const before = inputs.map(fingerprint).join();
      let readBytes = 0;
      const { bytes } = await writeImageFile(
        output,
        to,
        image.source.sizeBytes,
        { compression: options.compress ? "zlib" : "none", overwrite: options.overwrite ?? false, inputs, durable: false },
        async (sink) => {
          ({ readBytes } = await pour(image.source, sink, { signal: interrupts.signal, onRead: progress.add }));
          if (inputs.map(fingerprint).join() !== before)
            throw new HypersdkError("SourceChanged", `${input} changed while it was read`, { hint: "convert it while nothing writes to it" });
        },
      );
      progress.stop();
      if (io.json) io.result("convert", { input, output, from: image.format, to, virtualBytes: image.source.sizeBytes, readBytes, writtenBytes: bytes });
      else if (!io.quiet) io.out(`${output}: ${to}, ${formatBytes(image.source.sizeBytes)} virtual, ${formatBytes(readBytes)} of data read\n`);
      return 0;
    } finally {
      progress.stop();
      await image.source.close();
    }
  } catch (error) {
    if (interrupts.exitCode !== undefined) return interrupts.exitCode;
    throw error;
  } finally {
    interrupts.dispose();
  }
}

function fingerprint(path: string): string {
  const stat = statSync(path, { bigint: true });
  return `${stat.size} ${stat.mtimeNs} ${stat.ino}`;
}
