/**
 * Increments of a running QEMU beside restic, which reads the whole disk again: `npm run bench:changed`. The machine stands still (`-S`);
 * what a guest would write goes into its disk over NBD, in units of 64 KiB as a dirty bitmap reports them, and into the copy that restic
 * reads. BENCH_ROUNDS for more than three rounds; BENCH_GIB for disks of other sizes, such as `2 8 32`: the same 2 GiB of data, and
 * more of it up to 8 GiB, on larger disks, with the very same change. BENCH_ALONE=1 leaves restic out, which takes a quarter of an hour for
 * 32 GiB. BENCH_SEALED=1 encrypts ours as restic does.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import {
  closeSync,
  existsSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type Measured, measure, median, say, sizeOf } from "./measure.ts";

const program = join(import.meta.dirname, "..", "bin", "hypersdk.js");
const workload = join(import.meta.dirname, "vm-image-workload.sh");
const rounds = Number(process.env["BENCH_ROUNDS"] ?? 3);
const sizes = (process.env["BENCH_GIB"] ?? "2").split(/\s+/).map(Number);
const isAlone = process.env["BENCH_ALONE"] === "1";
const isSealed = process.env["BENCH_SEALED"] === "1";
const top = mkdtempSync(join(tmpdir(), "hypersdk-bench-"));
const patterns = ["clustered", "hotspot", "scattered"];
const GiB = 2 ** 30;
process.env["RESTIC_PASSWORD"] = "bench";

interface Seen {
  readonly ours: Measured[];
  readonly theirs: Measured[];
  readonly oursAdded: number[];
  readonly theirsAdded: number[];
  /** Seconds of CPU that the changed chunks take by themselves. */
  readonly dataAlone: number[];
}

try {
  const source = process.env["BENCH_DISK"] ?? join(top, "source");
  if (!process.env["BENCH_DISK"]) execFileSync(workload, ["gen", source], { stdio: "ignore" });
  for (const gib of sizes) {
    const steps = new Map<string, Seen>();
    for (let round = 0; round < rounds; round++) await oneRound(join(source, "disk0.img"), gib, round, steps);
    for (const [step, { ours, theirs, oursAdded, theirsAdded, dataAlone }] of steps) {
      const of = (measured: readonly Measured[], key: keyof Measured): number => median(measured.map((each) => each[key]));
      const ratio = (key: keyof Measured): string => (theirs.length > 0 ? ` = ${(of(ours, key) / of(theirs, key)).toFixed(2)}` : "");
      const share = median(theirsAdded) > 0 ? ` = ${(median(oursAdded) / median(theirsAdded)).toFixed(2)}` : "";
      const alone =
        dataAlone.length > 0
          ? `; reading, hashing and compressing its chunks alone: CPU ${median(dataAlone).toFixed(2)} s${theirs.length > 0 ? ` = ${(median(dataAlone) / of(theirs, "cpuS")).toFixed(2)}` : ""}`
          : "";
      say(
        `${gib} GiB, ${step}${isAlone ? "" : ", of restic's"}: wall ${of(ours, "wallS").toFixed(2)} s${ratio("wallS")}, CPU ${of(ours, "cpuS").toFixed(2)} s${ratio("cpuS")}; added ${(median(oursAdded) / 2 ** 20).toFixed(1)} MiB${share}; peak ${Math.round(of(ours, "peakMiB"))} MiB${alone}`,
      );
    }
  }
} finally {
  rmSync(top, { recursive: true, force: true });
}

async function oneRound(image: string, gib: number, round: number, steps: Map<string, Seen>): Promise<void> {
  const folder = join(top, `round-${gib}-${round}`);
  for (const name of ["run", "machines/vm", "copy", "changing"]) mkdirSync(join(folder, name), { recursive: true });
  const [disk, copy] = [join(folder, "machines/vm/disk0.raw"), join(folder, "copy/disk0.img")];
  for (const path of [disk, copy]) {
    execFileSync("cp", ["--sparse=always", image, path]);
    enlarge(path, gib);
  }
  // what changes is chosen in a disk of the first size, so that it is the same in a larger one
  const changing = join(folder, "changing/disk0.img");
  execFileSync("cp", ["--sparse=always", image, changing]);
  const restic = ["restic", "-q", "-r", join(folder, "restic")];
  execFileSync("restic", [...restic.slice(1), "init"], { stdio: "ignore" });
  prepare(folder);
  const guest = await startMachine(folder, disk);
  try {
    const step = (name: string, alone?: number): void => {
      const seen: Seen = steps.get(name) ?? { ours: [], theirs: [], oursAdded: [], theirsAdded: [], dataAlone: [] };
      if (alone !== undefined) seen.dataAlone.push(alone);
      steps.set(name, seen);
      const [ours, theirs] = [sizeOf(join(folder, "backups")), sizeOf(join(folder, "restic"))];
      // what the guest wrote is on the disk: who syncs first would pay for it
      execFileSync("sync");
      seen.ours.push(measure([process.execPath, program, "run", "nightly", "--quiet"], folder));
      seen.oursAdded.push(sizeOf(join(folder, "backups")) - ours);
      if (isAlone) return;
      execFileSync("sync");
      seen.theirs.push(measure([...restic, "backup", copy], folder));
      seen.theirsAdded.push(sizeOf(join(folder, "restic")) - theirs);
    };
    step("full");
    step("increment of nothing");
    for (const pattern of patterns) {
      execFileSync(workload, ["mutate", join(folder, "changing"), pattern], { stdio: "ignore" });
      const changed = join(folder, "changing", `changed-${pattern}.json`);
      const { extents: ranges } = JSON.parse(readFileSync(changed, "utf8")) as { extents: [offset: number, length: number][] };
      copyRanges(changing, copy, ranges);
      await writeThrough(join(folder, "run/write.sock"), copy, ranges);
      const alone = Number(execFileSync(process.execPath, [join(import.meta.dirname, "data-alone.ts"), copy, changed], { encoding: "utf8" }));
      rmSync(changed);
      step(`increment, ${pattern}, changed blocks`, alone);
    }
    execFileSync(process.execPath, [program, "restore", "--vm", "/datacenter/vm/vm", "--to", "ours.raw", "--quiet"], { cwd: folder });
    execFileSync("cmp", [copy, join(folder, "ours.raw")]);
  } finally {
    const gone = new Promise((resolve) => guest.once("exit", resolve));
    guest.kill("SIGKILL");
    await gone;
    rmSync(folder, { recursive: true, force: true });
  }
}

function prepare(folder: string): void {
  const encryption = isSealed ? ', encryption: {key: "${file:key}"}' : "";
  if (isSealed) writeFileSync(join(folder, "key"), "a passphrase of the bench");
  writeFileSync(
    join(folder, "infrastructure.yaml"),
    `version: v2\nproviders: [{name: lab, type: qemu, sockets: ./run}]\nschedules:\n  - {name: nightly, cron: "0 2 * * *", vms: ["/datacenter/vm/*"], destination: "file:./backups", incremental: true, verify: none${encryption}}\n`,
  );
  for (const args of [
    ["init", "-q"],
    ["add", "infrastructure.yaml"],
    ["-c", "user.name=B", "-c", "user.email=b@b", "commit", "-qm", "a schedule"],
  ])
    execFileSync("git", args, { cwd: folder, stdio: "ignore" });
}

async function startMachine(folder: string, disk: string): Promise<ChildProcess> {
  const monitor = join(folder, "run/vm.qmp");
  const guest = spawn(
    "qemu-system-x86_64",
    [
      ...[
        "-accel",
        "tcg",
        "-S",
        "-machine",
        "pc",
        "-m",
        "16",
        "-nodefaults",
        "-display",
        "none",
        "-qmp",
        `unix:${monitor},server=on,wait=off`,
        "-monitor",
        "stdio",
      ],
      ...[
        "-blockdev",
        `driver=file,filename=${disk},node-name=f0`,
        "-blockdev",
        "driver=raw,file=f0,node-name=disk0",
        "-device",
        "virtio-blk-pci,drive=disk0,share-rw=on",
      ],
    ],
    { stdio: ["pipe", "ignore", "inherit"] },
  );
  while (!existsSync(monitor)) await sleep(20);
  execFileSync(process.execPath, [program, "apply", "--auto-approve", "--quiet"], { cwd: folder, stdio: "ignore" });
  return guest;
}

/** Writes ranges of a file into the machine's disk, through an NBD export that QEMU has open for as long. */
async function writeThrough(socket: string, from: string, ranges: readonly (readonly [number, number])[]): Promise<void> {
  const qmp = await monitor(join(socket, "../vm.qmp"));
  await qmp.ask("qmp_capabilities");
  await qmp.ask("nbd-server-start", { addr: { type: "unix", data: { path: socket } } });
  await qmp.ask("block-export-add", { type: "nbd", id: "w", "node-name": "disk0", name: "d", writable: true });
  await writeOverNbd(socket, from, ranges);
  await qmp.ask("nbd-server-stop");
  qmp.close();
  await sleep(200);
}

function copyRanges(from: string, to: string, ranges: readonly (readonly [number, number])[]): void {
  const [source, target] = [openSync(from, "r"), openSync(to, "r+")];
  for (const [offset, length] of ranges) {
    const bytes = Buffer.alloc(length);
    readSync(source, bytes, 0, length, offset);
    writeSync(target, bytes, 0, length, offset);
  }
  closeSync(source);
  closeSync(target);
}

async function monitor(path: string): Promise<{ ask(execute: string, args?: object): Promise<void>; close(): void }> {
  const socket = connect({ path });
  let said = "";
  let wake = (): void => {};
  socket.setEncoding("utf8").on("data", (text: string) => {
    said += text;
    wake();
  });
  const line = async (): Promise<string> => {
    for (;;) {
      const end = said.indexOf("\n");
      if (end >= 0) {
        const first = said.slice(0, end);
        said = said.slice(end + 1);
        return first;
      }
      await new Promise<void>((resolve) => (wake = resolve));
    }
  };
  await line();
  return {
    async ask(execute, args) {
      socket.write(`${JSON.stringify({ execute, ...(args ? { arguments: args } : {}) })}\n`);
      for (;;) {
        const answer = JSON.parse(await line()) as { return?: unknown; error?: { desc: string } };
        if (answer.error) throw new Error(answer.error.desc);
        if (answer.return !== undefined) return;
      }
    },
    close: () => socket.destroy(),
  };
}

/** The least of a writing NBD client: the old way to name an export, one request after the other. */
async function writeOverNbd(path: string, from: string, ranges: readonly (readonly [number, number])[]): Promise<void> {
  const socket = connect({ path });
  const take = async (bytes: number): Promise<Buffer> => {
    for (;;) {
      const data = socket.read(bytes) as Buffer | null;
      if (data) return data;
      await new Promise((resolve) => socket.once("readable", resolve));
    }
  };
  await take(18);
  const hello = Buffer.alloc(4 + 16 + 1);
  hello.writeUInt32BE(3);
  hello.write("IHAVEOPT", 4, "latin1");
  hello.writeUInt32BE(1, 12);
  hello.writeUInt32BE(1, 16);
  hello.write("d", 20, "latin1");
  socket.write(hello);
  await take(10);
  const file = openSync(from, "r");
  for (const [offset, length] of ranges)
    for (let done = 0; done < length; done += 2 ** 20) {
      const bytes = Math.min(2 ** 20, length - done);
      const request = Buffer.alloc(28 + bytes);
      request.writeUInt32BE(0x25609513);
      request.writeUInt16BE(1, 6);
      request.writeBigUInt64BE(BigInt(offset + done), 16);
      request.writeUInt32BE(bytes, 24);
      readSync(file, request, 28, bytes, offset + done);
      socket.write(request);
      const reply = await take(16);
      if (reply.readUInt32BE(4) !== 0) throw new Error(`QEMU refused a write: ${reply.readUInt32BE(4)}`);
    }
  closeSync(file);
  socket.destroy();
}

/** More of the disk, behind what the workload changes: data up to 8 GiB that no two chunks share, holes behind it. */
function enlarge(path: string, gib: number): void {
  if (gib * GiB <= statSync(path).size) return;
  const file = openSync(path, "r+");
  const start = statSync(path).size;
  ftruncateSync(file, gib * GiB);
  const piece = Buffer.alloc(2 ** 20);
  let seed = 1;
  for (let offset = start; offset < Math.min(gib, 8) * GiB; offset += piece.length) {
    for (let i = 0; i < piece.length; i += 4) {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      // about as compressible as programs are
      piece.writeUInt32LE(i % 16 === 0 ? seed : seed & 0x0f0f, i);
    }
    writeSync(file, piece, 0, piece.length, offset);
  }
  closeSync(file);
}
