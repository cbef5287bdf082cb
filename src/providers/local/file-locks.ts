import { readFileSync } from "node:fs";
import { pid } from "node:process";

/**
 * True when another process holds a lock on the file: QEMU locks the image of every VM that runs. The kernel lists locks by
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
    // "1: OFDLCK ADVISORY READ -1 08:01:131 100 100"; a waiting lock has "->" in the second column
    const fields = line.trim().split(/\s+/);
    return fields.includes(place) && fields[4] !== String(pid);
  });
}
