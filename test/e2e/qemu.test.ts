import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it, onTestFinished } from "vitest";
import type { ChunkedDisk, Manifest } from "../../src/exports/manifest.ts";
import { Qmp } from "../../src/providers/qemu/qmp.ts";
import { hypersdk, ok, start, workTree } from "../support/cli.ts";
import { bytes, KiB, MiB } from "../support/disks.ts";
import { has, qemuImg } from "../support/qemu.ts";
import { conforms } from "../support/schemas.ts";
import { type Counting, countingSector, diskAfter, type Guest, lastNumber, startGuest, whileItWrites } from "../support/writing-guest.ts";

const counting: Counting = { slots: 700, stride: 40 };
const diskBytes = 48 * MiB;

interface Machine {
  readonly folder: string;
  readonly monitor: string;
  /** The disks before the guest began, and their images. */
  readonly before: readonly Buffer[];
  readonly images: readonly { readonly path: string; readonly format: string }[];
}

/** A work tree with a provider of QEMU machines, and one machine, `web`, with its images. */
function machine(formats: readonly string[], more = ""): Machine {
  const folder = workTree(
    `version: v2\nproviders:\n  - {name: lab, type: qemu, sockets: ./run, path: ./machines}\nschedules:\n` +
      `  - {name: nightly, cron: "0 2 * * *", initialExport: immediate, vms: ["/datacenter/vm/*"], destination: "file:./backups", incremental: true${more}}\n`,
  );
  mkdirSync(join(folder, "run"));
  mkdirSync(join(folder, "machines", "web"), { recursive: true });
  const before = formats.map((_, i) => {
    const disk = Buffer.alloc(diskBytes);
    bytes(6 * MiB, 20 + i).copy(disk, 30 * MiB);
    bytes(3 * MiB, 40 + i).copy(disk, 5 * MiB);
    if (i === 0) countingSector(counting).copy(disk);
    return disk;
  });
  const images = formats.map((format, i) => {
    const raw = join(folder, `disk-${i}.raw`);
    const path = join(folder, "machines", "web", `disk-${i}.${format}`);
    writeFileSync(raw, before[i] as Buffer);
    qemuImg("convert", "-f", "raw", "-O", format, raw, path);
    rmSync(raw);
    return { path, format };
  });
  return { folder, monitor: join(folder, "run", "web.qmp"), before, images };
}

async function running({ monitor, images }: Machine, more: readonly string[] = []): Promise<Guest> {
  rmSync(monitor, { force: true });
  const guest = await startGuest(monitor, images, more);
  onTestFinished(() => guest.kill());
  return guest;
}

function manifestsOrNone(folder: string): number {
  return existsSync(join(folder, "backups/points")) ? manifests(folder).length : 0;
}

function manifests(folder: string): Manifest[] {
  const points = join(folder, "backups/points");
  return readdirSync(points, { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".json"))
    .map((name) => conforms<Manifest>("manifest", JSON.parse(readFileSync(join(points, name), "utf8"))))
    .sort((a, b) => (a.source.instant < b.source.instant ? -1 : 1));
}

const disksOf = ({ disks }: Manifest): ChunkedDisk[] => disks as ChunkedDisk[];

/** Restores a point, and says which number its disks stand at: they are exactly what the guest had written by then. */
async function numberOf({ folder, before }: Machine, { id }: Manifest): Promise<number> {
  const to = join(folder, `restored-${id}`);
  await ok(folder, ["restore", id, "--to", `${to}/`, "--format", "raw"]);
  const disks = before.map((_, i) => readFileSync(join(to, `disk-${i}.raw`)));
  const numbers = disks.map((disk, i) => lastNumber(disk, before[i] as Buffer, counting));
  for (const [i, disk] of disks.entries()) expect([id, i, disk.equals(diskAfter(numbers[i] as number, before[i] as Buffer, counting))]).toEqual([id, i, true]);
  // disk 1 gets each number after disk 0
  const [first = 0, second = first] = numbers;
  expect([0, 1]).toContain(first - second);
  rmSync(to, { recursive: true });
  return first;
}

describe.skipIf(!has("qemu-system-x86_64"))("a running QEMU", () => {
  it("is exported at one instant for all its disks while the guest writes, in ten rounds of increments", { timeout: 300_000 }, async () => {
    const vm = machine(["qcow2", "raw"]);
    const guest = await running(vm);
    expect(await ok(vm.folder, ["get", "vms"])).toContain("/datacenter/vm/web");
    await whileItWrites(1500, guest);
    await ok(vm.folder, ["apply", "--auto-approve"]);
    const tomorrow = new Date(Date.now() + 2 * 86_400_000).toISOString();
    expect(await ok(vm.folder, ["plan", "--at", tomorrow])).toMatch(
      /> nightly {2}\/datacenter\/vm\/web {2}incremental .*\n +disk-0.qcow2 {2}incremental \(changed blocks, .*\n +disk-1.raw {2}incremental \(changed blocks/,
    );
    const later = new Date(Date.now() + 30 * 86_400_000).toISOString();
    expect(await ok(vm.folder, ["plan", "--at", later])).toMatch(/full \(all of it was read 30d ago for the last time\)/);
    for (let round = 0; round < 10; round++) {
      await whileItWrites(300, guest);
      await ok(vm.folder, ["run", "nightly"]);
    }
    expect(await ok(vm.folder, ["run", "nightly", "--full"])).toContain("1 export completed");
    await guest.quit();
    const points = manifests(vm.folder);
    expect(points.length).toBe(12);
    const numbers: number[] = [];
    for (const point of points) numbers.push(await numberOf(vm, point));
    expect(numbers).toEqual([...new Set(numbers)].sort((a, b) => a - b));
    expect(points[0]?.source.consistency).toBe("crash");
    const [first, ...increments] = points as [Manifest, ...Manifest[]];
    const last = increments.pop() as Manifest;
    for (const disk of disksOf(first)) expect(disk).toMatchObject({ mode: "full", reason: "the first export of this VM" });
    for (const disk of disksOf(last)) expect(disk).toMatchObject({ mode: "full", reason: "a full export was asked for" });
    for (const disk of increments.flatMap(disksOf)) {
      expect(disk).toMatchObject({ mode: "incremental", reason: expect.stringContaining("changed blocks since") as string });
      // the guest writes to the first 14 MiB; the rest is not read again
      expect(disk.readBytes).toBeLessThan(16 * MiB);
    }
    expect(await ok(vm.folder, ["check", "--read-data"])).toContain("sound");
    expect(readdirSync(join(vm.folder, "machines/web"))).toEqual(["disk-0.qcow2", "disk-1.raw"]);
  });

  it("loses no change when an export is killed, and clears up what that left in the machine", { timeout: 300_000 }, async () => {
    const vm = machine(["qcow2"]);
    const guest = await running(vm);
    await whileItWrites(500, guest);
    await ok(vm.folder, ["apply", "--auto-approve"]);
    for (const delay of [350, 450, 550, 650, 800]) {
      await whileItWrites(100, guest);
      const cut = start(vm.folder, ["run", "nightly"]);
      await sleep(delay);
      cut.kill("SIGKILL");
      await cut.done;
      await whileItWrites(100, guest);
    }
    // finishes what was published by one that died before it could record it
    await ok(vm.folder, ["apply", "--auto-approve"]);
    await ok(vm.folder, ["run", "nightly"]);
    await whileItWrites(100, guest);
    await ok(vm.folder, ["run", "nightly"]);
    expect(readdirSync(join(vm.folder, "machines/web"), { recursive: true })).toEqual(["disk-0.qcow2"]);
    await guest.quit();
    const points = manifests(vm.folder);
    expect(points.length).toBeGreaterThanOrEqual(3);
    for (const point of points) await numberOf(vm, point);
    const reasons = points.slice(1).map((point) => disksOf(point)[0]?.reason);
    expect(reasons).toEqual(reasons.map(() => expect.stringContaining("changed blocks since") as string));
    // what is left in the image is the last mark alone
    const { "format-specific": specific } = JSON.parse(qemuImg("info", "--output=json", vm.images[0]?.path as string)) as {
      "format-specific": { data: { bitmaps: { name: string }[] } };
    };
    expect(specific.data.bitmaps.map(({ name }) => name)).toEqual([disksOf(points.at(-1) as Manifest)[0]?.mark]);
  });

  it("keeps its marks while it is off, reads only what changed then, and reads everything after a QEMU that did not end well", {
    timeout: 300_000,
  }, async () => {
    const vm = machine(["qcow2"]);
    let guest = await running(vm);
    await whileItWrites(500, guest);
    await ok(vm.folder, ["apply", "--auto-approve"]);
    await whileItWrites(300, guest);
    await guest.quit();
    expect(await ok(vm.folder, ["plan"])).not.toContain("missing");
    await ok(vm.folder, ["run", "nightly"]);
    const off = manifests(vm.folder).at(-1) as Manifest;
    // it sets no mark: the next one builds on the same point
    expect(disksOf(off)[0]).toMatchObject({ mode: "incremental", reason: `changed blocks since ${manifests(vm.folder)[0]?.source.instant}` });
    expect(disksOf(off)[0]?.mark).toBeUndefined();
    const later = new Date(Date.now() + 2 * 86_400_000).toISOString();
    expect(await ok(vm.folder, ["plan", "--at", later])).toContain("incremental (changed blocks, ");
    const number = await numberOf(vm, off);
    guest = await running(vm);
    await whileItWrites(300, guest);
    await ok(vm.folder, ["run", "nightly"]);
    const again = manifests(vm.folder).at(-1) as Manifest;
    expect(disksOf(again)[0]).toMatchObject({ mode: "incremental" });
    // the guest has counted from 1 again: what it wrote before is still there where it has not come by
    expect(number).toBeGreaterThan(0);
    await guest.kill();
    await ok(vm.folder, ["run", "nightly"]);
    const crashed = manifests(vm.folder).at(-1) as Manifest;
    expect(disksOf(crashed)[0]).toMatchObject({ mode: "full", reason: expect.stringMatching(/is gone|not sound/) as string });
    const to = join(vm.folder, "crashed.raw");
    await ok(vm.folder, ["restore", crashed.id, "--to", to]);
    qemuImg("compare", "-q", "-f", "qcow2", "-F", "raw", vm.images[0]?.path as string, to);
  });

  it("is not fooled by images that were put back, exchanged, cut and grown again, or whose bitmaps were disabled", { timeout: 300_000 }, async () => {
    const vm = machine(["qcow2", "qcow2"]);
    const [a, b] = vm.images.map(({ path }) => path) as [string, string];
    const write = (path: string, value: number, at: string, length: string): void =>
      void execFileSync("qemu-io", ["-f", "qcow2", "-c", `write -q -P ${value} ${at} ${length}`, path]);
    const live = async (work: () => Promise<void> = async () => {}): Promise<void> => {
      const guest = await running(vm, ["-S"]);
      await ok(vm.folder, manifestsOrNone(vm.folder) === 0 ? ["apply", "--auto-approve"] : ["run", "nightly"]);
      await work();
      await guest.quit();
    };
    /** Exports the machine, which is off, and compares what comes back with what its images hold. */
    const isRight = async (what: string): Promise<readonly (string | undefined)[]> => {
      await ok(vm.folder, ["run", "nightly"]);
      const point = manifests(vm.folder).at(-1) as Manifest;
      const to = join(vm.folder, "right");
      await ok(vm.folder, ["restore", point.id, "--to", `${to}/`, "--format", "raw"]);
      for (const [i, path] of [a, b].entries()) {
        const raw = join(to, `disk-${i}.expected`);
        qemuImg("convert", "-O", "raw", path, raw);
        expect([what, i, readFileSync(raw).equals(readFileSync(join(to, `disk-${i}.raw`)))]).toEqual([what, i, true]);
      }
      rmSync(to, { recursive: true });
      return disksOf(point).map(({ mode }) => mode);
    };
    await live();
    const golden = join(vm.folder, "golden.qcow2");
    copyFileSync(a, golden);
    write(a, 0x22, "4M", "4M");
    expect(await isRight("written while off")).toEqual(["incremental", "incremental"]);
    copyFileSync(golden, a);
    expect(await isRight("put back from a copy")).toEqual(["incremental", "incremental"]);

    const aside = join(vm.folder, "aside.qcow2");
    renameSync(a, aside);
    renameSync(b, a);
    renameSync(aside, b);
    expect(await isRight("exchanged")).toEqual(["full", "full"]);
    await live();
    expect(await isRight("exchanged, and run")).toEqual(["incremental", "incremental"]);

    qemuImg("resize", "--shrink", "-f", "qcow2", a, "31M");
    qemuImg("resize", "-q", "-f", "qcow2", a, `${diskBytes}`);
    expect(await isRight("cut and grown again")).toEqual(["full", "incremental"]);
    await live();
    qemuImg("resize", "--shrink", "-f", "qcow2", a, "31M");
    qemuImg("resize", "-q", "-f", "qcow2", "--preallocation=full", a, `${diskBytes}`);
    expect(await isRight("cut, and grown again with room for all")).toEqual(["full", "incremental"]);
    await live();
    qemuImg("resize", "--shrink", "-f", "qcow2", a, "20M");
    qemuImg("resize", "-q", "-f", "qcow2", "--preallocation=metadata", a, `${diskBytes}`);
    write(a, 0x55, `${diskBytes - 65_536}`, "64K");
    expect(await isRight("cut, grown again with room for all, and its last block written, as by who moves a partition table")).toEqual(["full", "incremental"]);
    await live();
    const [base, other] = [".base.raw", ".other.raw"];
    writeFileSync(join(dirname(a), base), bytes(diskBytes, 71));
    writeFileSync(join(dirname(a), other), bytes(diskBytes, 72));
    qemuImg("rebase", "-u", "-F", "raw", "-b", base, a);
    expect(await isRight("put on a base")).toEqual(["full", "incremental"]);
    await live();
    expect(await isRight("as it was")).toEqual(["incremental", "incremental"]);
    qemuImg("rebase", "-u", "-F", "raw", "-b", other, a);
    expect(await isRight("put on another base")).toEqual(["full", "incremental"]);
    await live();

    const mark = disksOf(manifests(vm.folder).findLast(({ disks }) => (disks as ChunkedDisk[])[0]?.mark) as Manifest)[0]?.mark as string;
    qemuImg("bitmap", "--disable", a, mark);
    write(a, 0x33, "20M", "1M");
    expect(await isRight("bitmap disabled")).toEqual(["full", "incremental"]);
    await live();
    write(a, 0x44, "21M", "1M");
    expect(await isRight("and run")).toEqual(["incremental", "incremental"]);
  });

  it("that was cut and grew again, or goes on with another image, while it ran, is read as a whole", { timeout: 300_000 }, async () => {
    const vm = machine(["raw", "qcow2"]);
    for (const [i, { path, format }] of vm.images.entries()) {
      const raw = join(vm.folder, "full.raw");
      writeFileSync(raw, bytes(diskBytes, 80 + i));
      qemuImg("convert", "-f", "raw", "-O", format, raw, path);
    }
    const guest = await running(vm, ["-S"]);
    await ok(vm.folder, ["apply", "--auto-approve"]);
    const inMonitor = async (work: (qmp: Qmp, nodes: string[]) => Promise<void>): Promise<void> => {
      const qmp = await Qmp.connect(vm.monitor);
      const disks = (await qmp.list("query-block")).flatMap(({ inserted }) => (inserted ? [inserted as { "node-name": string }] : []));
      await work(
        qmp,
        disks.map((disk) => disk["node-name"]),
      );
      qmp.close();
    };
    const modes = async (images: readonly { path: string; format: string }[]): Promise<unknown[]> => {
      await ok(vm.folder, ["run", "nightly"]);
      const point = manifests(vm.folder).at(-1) as Manifest;
      const to = join(vm.folder, `of-${point.id}`);
      await ok(vm.folder, ["restore", point.id, "--to", `${to}/`, "--format", "raw"]);
      for (const [i, { path, format }] of images.entries())
        expect([i, qemuImg("compare", "-U", "-f", format, "-F", "raw", path, join(to, `disk-${i}.raw`))]).toEqual([i, expect.stringContaining("identical")]);
      return disksOf(point).map(({ mode, reason }) => (mode === "full" ? reason : mode));
    };
    expect(await modes(vm.images)).toEqual(["incremental", "incremental"]);
    // one in ten increments reads a sample, which may find out by chance: the bitmaps themselves have to tell each time
    for (let round = 0; round < 3; round++) {
      await inMonitor(async (qmp, nodes) => {
        for (const size of [diskBytes / 2, diskBytes]) for (const node of nodes) await qmp.execute("block_resize", { "node-name": node, size });
      });
      expect(await modes(vm.images)).toEqual([expect.stringContaining("was cut and grew"), expect.stringContaining("was cut and grew")]);
      expect(await modes(vm.images)).toEqual(["incremental", "incremental"]);
    }
    const [first, second] = vm.images as [{ path: string; format: string }, { path: string; format: string }];
    const other = join(vm.folder, "elsewhere", "disk-0.raw");
    mkdirSync(join(vm.folder, "elsewhere"));
    writeFileSync(other, bytes(diskBytes, 90));
    await inMonitor(async (qmp, [node]) => {
      await qmp.execute("blockdev-add", { driver: "file", filename: other, "node-name": "elsewhere" });
      await qmp.execute("blockdev-reopen", { options: [{ driver: first.format, file: "elsewhere", "node-name": node }] });
    });
    expect(await modes([{ path: other, format: "raw" }, second])).toEqual([expect.stringContaining("its image is another one"), "incremental"]);
    await guest.quit();
  });

  it("ends a server that a killed export left without an export, and says what to do about somebody else's", { timeout: 300_000 }, async () => {
    const vm = machine(["qcow2"]);
    const guest = await running(vm);
    await ok(vm.folder, ["apply", "--auto-approve"]);
    const inMonitor = async (...commands: [string, Record<string, unknown>][]): Promise<void> => {
      const qmp = await Qmp.connect(vm.monitor);
      for (const [command, options] of commands) await qmp.execute(command, options);
      qmp.close();
    };
    const addr = { type: "unix", data: { path: join(vm.folder, "left.sock") } };
    await inMonitor(["blockdev-add", { driver: "null-co", "node-name": "hypersdk-view-0", size: 65_536 }], ["nbd-server-start", { addr }]);
    await ok(vm.folder, ["run", "nightly"]);
    await inMonitor(["nbd-server-start", { addr }]);
    const refused = await hypersdk(vm.folder, ["run", "nightly"]);
    expect(refused).toMatchObject({ code: 7, stderr: expect.stringMatching(/NBD server already running[\s\S]*nbd-server-stop in its monitor/) as string });
    await inMonitor(["nbd-server-stop", {}]);
    await ok(vm.folder, ["run", "nightly"]);
    await guest.quit();
  });

  it("whose monitor is taken by another is not taken for gone; a raw disk that restarts is read as a whole", { timeout: 300_000 }, async () => {
    const vm = machine(["raw"]);
    let guest = await running(vm);
    await whileItWrites(300, guest);
    await ok(vm.folder, ["apply", "--auto-approve"]);
    const { createConnection } = await import("node:net");
    const taken = createConnection(vm.monitor);
    await sleep(200);
    const plan = await hypersdk(vm.folder, ["plan"]);
    expect(plan.stdout + plan.stderr).toContain("another program talks to its monitor");
    expect(plan.stdout).not.toContain("- /datacenter/vm/web");
    taken.destroy();
    await guest.quit();
    guest = await running(vm);
    await ok(vm.folder, ["run", "nightly"]);
    expect(disksOf(manifests(vm.folder).at(-1) as Manifest)[0]).toMatchObject({ mode: "full", reason: expect.stringContaining("is gone") as string });
    expect(diskBytes % (256 * KiB)).toBe(0);
  });
});
