import { HypersdkError } from "../model/errors.ts";
import type { ImageFormat } from "../model/image-formats.ts";
import { openByteFile } from "./byte-file.ts";
import type { BlocksInFile } from "./layer.ts";
import { type OpenOptions, openImage } from "./open-image.ts";
import { checkRefcounts } from "./qcow2/check.ts";

/** Of so many blocks the places are remembered: 2 TiB of blocks of 1 MiB, some 80 MiB of memory. */
const maxRemembered = 2 ** 21;
const maxProblems = 1000;

export interface ImageCheck {
  readonly format: ImageFormat;
  /** What is wrong, each as a sentence; empty when the image is sound. */
  readonly problems: readonly string[];
  /** Clusters or blocks of the file that take space and hold nothing of the disk. */
  readonly leaks: number;
  /** What a person should know, and is no fault. */
  readonly notes: readonly string[];
}

/** Checks the structure of an image: every table and every entry, and that everything that is packed can be unpacked. */
export async function checkImage(path: string, options: OpenOptions): Promise<ImageCheck> {
  const { format, source, blocks, crossCheck, details } = await openImage(path, options);
  const problems: string[] = [...(details.defects ?? [])];
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
    if (blocks) {
      const found = await checkBlocks(blocks);
      problems.push(...found.problems);
      leaks = found.orphans;
    }
    for await (const found of crossCheck?.() ?? []) {
      if ("orphans" in found) leaks += found.orphans;
      else if (problems.length < maxProblems) problems.push(found.problem);
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
  return { format, problems, leaks, notes: details.notes ?? [] };
}

/** Blocks that share a place, a count in the header that is not that of the table, and space that no block has. */
async function checkBlocks({ placed, counted, space }: BlocksInFile): Promise<{ readonly problems: string[]; readonly orphans: number }> {
  const problems: string[] = [];
  const at = new Map<number, number>();
  let count = 0;
  for await (const { index, offset } of placed()) {
    count++;
    const other = at.get(offset);
    if (other === undefined) {
      if (at.size < maxRemembered) at.set(offset, index);
    } else if (problems.length < maxProblems) problems.push(`the blocks ${other} and ${index} both lie at ${offset}`);
  }
  if (counted !== undefined && counted !== count) problems.push(`the header counts ${counted} blocks, the table has ${count}`);
  const orphans = space ? Math.max(0, Math.floor((space.bytes - count * space.eachBytes) / space.eachBytes)) : 0;
  return { problems, orphans };
}
