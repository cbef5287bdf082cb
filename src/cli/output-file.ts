import { closeSync, openSync, readSync, statSync } from "node:fs";
import { HypersdkError } from "../model/errors.ts";

/**
 * Refuses to write over a file that no earlier run of the same option made: a slip of the hand would cost a disk, or the configuration.
 * @param begins what such a file begins with
 */
export function refuseForeign(path: string, option: string, begins: string): void {
  const stat = statSync(path, { throwIfNoEntry: false });
  // a terminal, a pipe and nothing at all take what they are given; a device may be the disk of a machine
  const isFree = stat === undefined || !(stat.isFile() || stat.isBlockDevice()) || (stat.isFile() && stat.size === 0);
  if (isFree || (stat.isFile() && headOf(path, begins.length) === begins)) return;
  throw new HypersdkError("Usage", `${path} is there, and was not made by ${option}`, { hint: "name another file, or remove it first" });
}

function headOf(path: string, length: number): string {
  const descriptor = openSync(path, "r");
  try {
    const head = Buffer.alloc(length);
    return head.toString("utf8", 0, readSync(descriptor, head, 0, length, 0));
  } finally {
    closeSync(descriptor);
  }
}
