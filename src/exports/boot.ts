import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, open, rm } from "node:fs/promises";
import type { Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { BlockSource } from "../converters/block-source.ts";
import type { Destination } from "../destinations/destination.ts";
import { HypersdkError } from "../model/errors.ts";
import { monotonicMs } from "../model/monotonic.ts";
import { nbdServer } from "../nbd/server.ts";
import type { Manifest } from "./manifest.ts";
import { storedDisks } from "./restore.ts";

export interface BootOptions {
  /** What the guest says on its first serial port once it is up; the prompt of a login otherwise. */
  readonly marker?: string;
  /** How long it may take; five minutes otherwise. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
}

const defaultMarker = "login:";
const defaultTimeoutMs = 5 * 60_000;
const emulator = "qemu-system-x86_64";
/** Where distributions put the firmware for guests that boot by EFI. */
const efiFirmware: readonly string[] = [
  "/usr/share/ovmf/OVMF.fd",
  "/usr/share/OVMF/OVMF_CODE.fd",
  "/usr/share/edk2/x64/OVMF_CODE.fd",
  "/usr/share/qemu/ovmf-x86_64.bin",
];
/** A guest gets what it had, within these. */
const [leastMemory, mostMemory] = [256 * 2 ** 20, 2 * 2 ** 30];
const logBytes = 2 ** 20;

/**
 * Starts the machine of a restore point in QEMU, straight from the store over NBD, without network, and waits for what it says on the serial
 * port. What the guest writes goes into temporary files and is forgotten: the point is not touched.
 * @throws NotBooted when it has not said it in time
 */
export async function bootPoint(destination: Destination, manifestPath: string, manifest: Manifest, options: BootOptions = {}): Promise<void> {
  const { marker = defaultMarker, timeoutMs = defaultTimeoutMs, signal } = options;
  const firmware = manifest.vm.firmware === "efi" ? efiFirmware.find((path) => existsSync(path)) : undefined;
  if (manifest.vm.firmware === "efi" && firmware === undefined)
    throw new HypersdkError("NotBooted", `${manifest.source.vm} boots by EFI, and no firmware for that is installed`, { hint: "install ovmf" });
  const opened: BlockSource[] = [];
  const folder = await mkdtemp(join(tmpdir(), "hypersdk-boot-"));
  let server: Server | undefined;
  let guest: ChildProcess | undefined;
  try {
    const disk = await storedDisks(destination, manifestPath, manifest);
    for (const each of manifest.disks) opened.push(await disk(each));
    server = nbdServer(new Map(opened.map((source, i) => [`disk-${i}`, source])));
    const socket = join(folder, "nbd.sock");
    await new Promise<void>((resolve, reject) => server?.once("error", reject).listen({ path: socket }, () => resolve()));
    const log = join(folder, "serial.log");
    for (const accelerators of [["kvm", "tcg"], ["tcg"]]) {
      await rm(log, { force: true });
      guest = spawn(emulator, argumentsOf(manifest, socket, log, firmware, accelerators), {
        stdio: ["ignore", "ignore", "pipe"],
        env: { ...process.env, TMPDIR: folder },
      });
      const isLast = accelerators.length === 1;
      if ((await saysIt(guest, log, marker, timeoutMs, manifest, signal, !isLast)) === "said") return;
    }
  } finally {
    await ended(guest);
    server?.close();
    await Promise.allSettled(opened.map((source) => source.close()));
    await rm(folder, { recursive: true, force: true });
  }
}

function argumentsOf({ vm, disks }: Manifest, socket: string, log: string, firmware: string | undefined, accelerators: readonly string[]): string[] {
  const memory = Math.min(mostMemory, Math.max(leastMemory, vm.memoryBytes ?? 2 ** 30));
  return [
    ...accelerators.flatMap((name) => ["-accel", name]),
    ...["-machine", "pc", "-cpu", "max", "-m", `${Math.floor(memory / 2 ** 20)}`, "-nodefaults", "-display", "none", "-no-reboot"],
    ...["-serial", `file:${log}`, "-nic", "none", ...(firmware === undefined ? [] : ["-bios", firmware])],
    // every guest knows IDE; it has room for four
    ...disks.flatMap((_, i) => ["-drive", `file=nbd+unix:///disk-${i}?socket=${socket},format=raw,snapshot=on,if=${disks.length > 4 ? "virtio" : "ide"}`]),
  ];
}

/**
 * Resolves when the marker has been said, or, with `mayCrash`, when QEMU itself has crashed: some kernels offer a KVM that QEMU cannot use.
 * @throws NotBooted
 */
async function saysIt(
  guest: ChildProcess,
  log: string,
  marker: string,
  timeoutMs: number,
  { source }: Manifest,
  signal: AbortSignal | undefined,
  mayCrash: boolean,
): Promise<"said" | "crashed"> {
  let complaint = "";
  let failure: Error | undefined;
  guest.stderr?.setEncoding("utf8").on("data", (text: string) => {
    complaint = (complaint + text).slice(-2000);
  });
  guest.on("error", (error) => (failure = error));
  const until = monotonicMs() + timeoutMs;
  for (;;) {
    signal?.throwIfAborted();
    const said = await endOf(log);
    if (said.includes(marker)) return "said";
    if (failure)
      throw new HypersdkError("NotBooted", `${emulator} cannot be started: ${failure.message}`, {
        hint: "verify: boot needs QEMU on this machine",
        cause: failure,
      });
    const hasEnded = guest.exitCode !== null || guest.signalCode !== null;
    if (hasEnded && (await endOf(log)).includes(marker)) return "said";
    if (mayCrash && guest.signalCode === "SIGABRT") return "crashed";
    if (hasEnded || monotonicMs() > until) {
      const last = said.trim().split("\n").at(-1)?.trim().slice(-200) ?? "";
      throw new HypersdkError(
        "NotBooted",
        `${source.vm} as of ${source.instant} has not said ${JSON.stringify(marker)} on its serial port ${hasEnded ? `before it ended${complaint === "" ? "" : `: ${complaint.trim()}`}` : `within ${Math.round(timeoutMs / 1000)} s`}`,
        { hint: last === "" ? "it said nothing there: its kernel may need console=ttyS0" : `the last it said was ${JSON.stringify(last)}` },
      );
    }
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

/** The last MiB of what the guest has said. */
async function endOf(log: string): Promise<string> {
  const file = await open(log).catch(() => undefined);
  if (!file) return "";
  try {
    const { size } = await file.stat();
    const bytes = Buffer.alloc(Math.min(size, logBytes));
    await file.read(bytes, 0, bytes.length, size - bytes.length);
    return bytes.toString("latin1");
  } finally {
    await file.close();
  }
}

async function ended(guest: ChildProcess | undefined): Promise<void> {
  if (guest?.pid === undefined || guest.exitCode !== null || guest.signalCode !== null) return;
  const gone = new Promise((resolve) => guest.once("exit", resolve));
  guest.kill("SIGKILL");
  await gone;
}
