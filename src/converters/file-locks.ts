import { readFileSync } from "node:fs";
import { pid } from "node:process";

/** The byte that QEMU locks, shared, in an image that it may write: 100 and the number of the permission. */
const qemuWriteByte = 101;

/**
 * True when another process has locked the file for writing: QEMU does with the image of every VM that runs. The kernel lists locks by
 * device and inode; where it does not (no Linux), nothing is known and nothing is refused.
 */
export function isLockedByOther(stat: { readonly dev: bigint; readonly ino: bigint }): boolean {
  let table: string;
  try {
    table = readFileSync("/proc/locks", "latin1");
  } catch {
    return false;
  }
  // glibc's gnu_dev_major and gnu_dev_minor
  const major = ((stat.dev >> 8n) & 0xfffn) | ((stat.dev >> 32n) & 0xfffff000n);
  const minor = (stat.dev & 0xffn) | ((stat.dev >> 12n) & 0xffffff00n);
  const place = `${major.toString(16).padStart(2, "0")}:${minor.toString(16).padStart(2, "0")}:${stat.ino}`;
  return table.split("\n").some((line) => {
    // "1: OFDLCK ADVISORY READ -1 08:01:131 100 101"; a waiting lock has "->" in the second column
    const fields = line.trim().split(/\s+/);
    const at = fields.indexOf(place);
    if (at < 0 || fields[4] === String(pid)) return false;
    const [from, to] = [Number(fields[at + 1]), fields[at + 2] === "EOF" ? Number.POSITIVE_INFINITY : Number(fields[at + 2])];
    return fields[at - 2] === "WRITE" || (from <= qemuWriteByte && qemuWriteByte <= to);
  });
}
