import { statSync } from "node:fs";
import { readSlice } from "../converters/machine/read-slice.ts";
import { HypersdkError } from "../model/errors.ts";

/**
 * Refuses to write over a file that no earlier run of the same option made: a slip of the hand would cost a disk, or the configuration.
 * @param begins what such a file begins with
 */
export function refuseForeign(path: string, option: string, begins: string): void {
  const stat = statSync(path, { throwIfNoEntry: false });
  // a terminal, a pipe and nothing at all take what they are given; a device may be the disk of a machine
  const isFree = stat === undefined || !(stat.isFile() || stat.isBlockDevice()) || (stat.isFile() && stat.size === 0);
  if (isFree || (stat.isFile() && beginningOf(path, begins.length) === begins)) return;
  throw new HypersdkError("Usage", `${path} is there, and was not made by ${option}`, { hint: "name another file, or remove it first" });
}

function beginningOf(path: string, bytes: number): string | undefined {
  try {
    return readSlice(path, 0, bytes).toString();
  } catch {
    return undefined;
  }
}
