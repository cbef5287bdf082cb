import { HypersdkError } from "../model/errors.ts";
import type { ImageFormat } from "../model/image-formats.ts";
import { openByteFile } from "./byte-file.ts";
import { type OpenedImage, type OpenOptions, openImage } from "./open-image.ts";
import { checkRefcounts } from "./qcow2/check.ts";

/** Of so many blocks the places are remembered: 2 TiB of blocks of 1 MiB, some 80 MiB of memory. */
const maxRemembered = 2 ** 21;

export interface ImageCheck {
  readonly format: ImageFormat;
  /** What is wrong, each as a sentence; empty when the image is sound. */
  readonly problems: readonly string[];
  /** Space that is counted as used and is not. */
  readonly leaks: number;
}

/** Checks the structure of an image: every table and every entry, and that everything that is packed can be unpacked. */
export async function checkImage(path: string, options: OpenOptions): Promise<ImageCheck> {
  const { format, source, blocks } = await openImage(path, options);
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
    if (blocks) problems.push(...(await checkBlocks(blocks)));
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

/** Blocks that share a place, and a count in the header that is not that of the table. */
async function checkBlocks({ placed, counted }: NonNullable<OpenedImage["blocks"]>): Promise<string[]> {
  const problems: string[] = [];
  const at = new Map<number, number>();
  let count = 0;
  for await (const { index, offset } of placed()) {
    count++;
    const other = at.get(offset);
    if (other === undefined) {
      if (at.size < maxRemembered) at.set(offset, index);
    } else if (problems.length < 1000) problems.push(`the blocks ${other} and ${index} both lie at ${offset}`);
  }
  if (counted !== undefined && counted !== count) problems.push(`the header counts ${counted} blocks, the table has ${count}`);
  return problems;
}
