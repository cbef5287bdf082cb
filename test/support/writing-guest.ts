import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { stopped } from "./nbd.ts";

/**
 * A guest of 140 bytes that counts: the number m goes, 128 times, into the sector of slot m mod `slots`, first of disk 0, then of disk 1 where
 * there is one, each write ended before the next begins. So the whole disk is a function of the last number: see {@link diskAfter}.
 *
 *     7c00  set up segments; ebx = [start]
 *     7c12  fill 8000..81ff with ebx; edx = ebx mod [slots] * [stride] + 64
 *     7c39  int 13h, ah=43h: write to drive 80h; halt on an error; the same to drive 81h; inc ebx; again
 */
const code =
  "fa31c08ed88ec08ed0bc007cfbfc668b1ea07dbf0080b980006689d8f366ab6689d86631d2668b0ea47d66f7f1660faf16a87d6683c240668916617cb80043b280be597ccd13720eb80043b281be597ccd136643ebbdf4ebfd10000100008000000000000000000000000000";

export interface Counting {
  readonly slots: number;
  /** Sectors from one slot to the next. */
  readonly stride: number;
}

/** The boot sector that counts. */
export function countingSector({ slots, stride }: Counting, start: number = 1): Buffer {
  const sector = Buffer.alloc(512);
  Buffer.from(code, "hex").copy(sector);
  sector.writeUInt32LE(start, 0x1a0);
  sector.writeUInt32LE(slots, 0x1a4);
  sector.writeUInt32LE(stride, 0x1a8);
  sector.writeUInt16LE(0xaa55, 510);
  return sector;
}

function placeOf(slot: number, { stride }: Counting): number {
  return (64 + slot * stride) * 512;
}

/** The last number that is on a disk; 0 where the guest has written none. */
export function lastNumber(disk: Buffer, before: Buffer, counting: Counting): number {
  let last = 0;
  for (let slot = 0; slot < counting.slots; slot++) {
    const at = placeOf(slot, counting);
    if (disk.compare(before, at, at + 512, at, at + 512) !== 0) last = Math.max(last, disk.readUInt32LE(at));
  }
  return last;
}

/** What a disk holds once the guest has written `last` and nothing after it. */
export function diskAfter(last: number, before: Buffer, counting: Counting): Buffer {
  const disk = Buffer.from(before);
  for (let slot = 0; slot < counting.slots; slot++) {
    const number = last - ((last - slot + counting.slots) % counting.slots);
    if (number < 1) continue;
    const at = placeOf(slot, counting);
    for (let i = 0; i < 512; i += 4) disk.writeUInt32LE(number, at + i);
  }
  return disk;
}

/** A running QEMU, with a monitor for the program and one for the test. */
export interface Guest {
  readonly process: ChildProcess;
  /** Switches it off in order, so that its images are closed. */
  quit(): Promise<void>;
  kill(): Promise<void>;
}

/** @param disks images, named as nodes disk0, disk1, … */
export async function startGuest(
  monitor: string,
  disks: readonly { readonly path: string; readonly format: string }[],
  more: readonly string[] = [],
): Promise<Guest> {
  const process = spawn(
    "qemu-system-x86_64",
    [
      ...["-accel", "tcg", "-machine", "pc,graphics=off", "-m", "32", "-nodefaults", "-display", "none", "-name", "counting", "-monitor", "stdio"],
      ...["-qmp", `unix:${monitor},server=on,wait=off`],
      ...disks.flatMap(({ path, format }, i) => [
        ...["-blockdev", `driver=file,filename=${path},node-name=file${i},cache.direct=off`],
        ...["-blockdev", `driver=${format},file=file${i},node-name=disk${i}`],
        ...["-device", `ide-hd,drive=disk${i},bus=ide.${Math.floor(i / 2)},unit=${i % 2}${i === 0 ? ",bootindex=0" : ""}`],
      ]),
      ...more,
    ],
    { stdio: ["pipe", "ignore", "pipe"] },
  );
  let said = "";
  process.stderr?.setEncoding("utf8").on("data", (text: string) => {
    said += text;
  });
  for (let i = 0; i < 1200 && !listens(monitor); i++) {
    if (process.exitCode !== null) throw new Error(`QEMU did not start: ${said}`);
    await sleep(25);
  }
  return {
    process,
    async quit() {
      const gone = new Promise((resolve) => process.once("exit", resolve));
      process.stdin?.write("quit\n");
      await gone;
    },
    kill: () => stopped(process),
  };
}

/** A socket has its name a moment before anybody listens on it, and refuses until then: the kernel's table has the flag. */
function listens(path: string): boolean {
  return readFileSync("/proc/net/unix", "latin1")
    .split("\n")
    .some((line) => line.endsWith(` ${path}`) && line.split(/\s+/)[3] === "00010000");
}

/** Waits until the guest has written on for so many milliseconds. */
export async function whileItWrites(ms: number, guest: Guest): Promise<void> {
  await sleep(ms);
  if (guest.process.exitCode !== null) throw new Error("the guest is gone");
}
