import { HypersdkError } from "../model/errors.ts";
import { openByteFile } from "./byte-file.ts";
import type { ImageFormat } from "./detect.ts";
import { type OpenOptions, openImage } from "./open-image.ts";
import { checkRefcounts } from "./qcow2/check.ts";

export interface ImageCheck {
  readonly format: ImageFormat;
  /** What is wrong, each as a sentence; empty when the image is sound. */
  readonly problems: readonly string[];
  /** Space that is counted as used and is not. */
  readonly leaks: number;
}

/** Checks the structure of an image: every table and every entry, and that everything that is packed can be unpacked. */
export async function checkImage(path: string, options: OpenOptions): Promise<ImageCheck> {
  const { format, source } = await openImage(path, options);
  const problems: string[] = [];
  let leaks = 0;
  try {
    if (format === "qcow2") {
      const file = openByteFile(path);
      try {
        const found = await checkRefcounts(file);
        problems.push(...found.problems);
        leaks = found.leaks;
      } finally {
        await file.close();
      }
    }
    // reading the map touches every table, reading the data every stream
    for await (const _extent of source.extents()) {
    }
    if (source.pieces)
      for await (const _piece of source.pieces()) {
      }
  } catch (error) {
    if (!(error instanceof HypersdkError)) throw error;
    problems.push(error.message);
  } finally {
    await source.close();
  }
  return { format, problems, leaks };
}
