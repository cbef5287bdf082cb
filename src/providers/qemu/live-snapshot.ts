import { createHash } from "node:crypto";
import { chownSync, mkdirSync, rmSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { writeImageFile } from "../../converters/image-file.ts";
import { HypersdkError } from "../../model/errors.ts";
import type { Clock } from "../../model/ports.ts";
import { connectNbd, type NbdClient } from "../../nbd/client.ts";
import { nbdSource, statusOf } from "../../nbd/nbd-source.ts";
import type { DiskTracking, SnapshotDisk, TrackRequest, VmSnapshot } from "../provider.ts";
import { bitmapName, isOurs, isOwnedBy, ourPrefix } from "./bitmaps.ts";
import { GuestAgent } from "./guest-agent.ts";
import type { LiveDisk, LiveVm } from "./live-vm.ts";
import type { Qmp } from "./qmp.ts";

/** Of the bitmaps that are set: a quarter of a chunk. */
const granularity = 65_536;
const jobEndMs = 30_000;
/** The bitmap on the frozen view that says what has changed; it lives as long as the view. */
const changesBitmap = `${ourPrefix}changes`;

export interface LiveOptions {
  readonly clock: Clock;
  /** The guest agent's socket, which need not be there. */
  readonly agentPath: string;
  /** Where what the guest overwrites meanwhile is kept: beside the first disk's image otherwise. */
  readonly scratch: string | undefined;
  readonly track: TrackRequest | undefined;
}

/** A disk with what was made for its snapshot. */
interface Frozen {
  readonly disk: LiveDisk;
  /** The node through which the disk is seen as it was. */
  readonly view: string;
  readonly bitmap: string | undefined;
  /** Bitmaps of the same owner that were there before. */
  readonly earlier: readonly string[];
  /** The one of them that was asked for; undefined where it is not there or not sound. */
  readonly since: string | undefined;
  /** Why there is none. */
  readonly reason: string;
}

/**
 * All disks of a running VM as of one instant: one transaction sets new bitmaps and starts a job for each disk that keeps what the guest
 * overwrites from then on in a scratch file, so that the view over both stays what it was; the views are read over NBD.
 * docs/guides/qemu.md says what QEMU must allow.
 */
export async function liveSnapshot(vm: LiveVm, qmp: Qmp, { clock, agentPath, scratch, track }: LiveOptions): Promise<VmSnapshot> {
  // what another export has left behind is that of one that died: nobody else can talk to the monitor now
  await takeDown(qmp);
  const folder = makeScratch(scratch ?? dirname(vm.disks[0]?.file ?? "/tmp/"), qmp.path, vm.disks[0]?.file);
  const frozen = vm.disks.map((disk, i): Frozen => ({ disk, view: `${ourPrefix}view-${i}`, ...bitmapsFor(disk, track) }));
  const clients: NbdClient[] = [];
  const done = { hasBegun: false, isKept: false, isReleased: false };
  const release = async (): Promise<void> => {
    if (done.isReleased) return;
    done.isReleased = true;
    await Promise.allSettled(clients.map((client) => client.close()));
    try {
      await takeDown(qmp);
      if (done.hasBegun) await settleBitmaps(qmp, frozen, done.isKept);
    } catch (error) {
      // a machine that is gone keeps what it has; the next snapshot clears up, and counts every bitmap that is left
      if (!(error instanceof HypersdkError)) throw error;
    } finally {
      qmp.close();
      rmSync(folder, { recursive: true, force: true });
    }
  };
  try {
    for (const { disk, view } of frozen) await addView(qmp, disk, view, join(folder, `${view}.qcow2`));
    const agent = await GuestAgent.connect(agentPath);
    let isFrozen = false;
    try {
      isFrozen = (await agent?.freeze()) ?? false;
      await qmp.execute("transaction", { actions: frozen.flatMap(actionsOf) });
      done.hasBegun = true;
    } finally {
      // a guest whose file systems stand still is worse than a backup that is not there
      await agent?.thaw();
      agent?.close();
    }
    const instant = clock.now();
    const socket = join(folder, "nbd.sock");
    await qmp.execute("nbd-server-start", { addr: { type: "unix", data: { path: socket } }, "max-connections": 32 });
    const disks: SnapshotDisk[] = [];
    for (const [i, each] of frozen.entries()) {
      const client = await exportView(qmp, each, `disk-${i}`, socket);
      clients.push(client);
      disks.push(diskOf(each, client));
    }
    return {
      instant,
      vm: vm.hardware,
      consistency: isFrozen ? "file systems" : "crash",
      disks,
      async confirm() {
        const jobs = new Set((await qmp.list("query-block-jobs")).map(({ device }) => device));
        for (const { disk, view } of frozen)
          if (!jobs.has(view))
            throw new HypersdkError("SourceChanged", `QEMU gave up keeping ${disk.name} as it was while it was read`, {
              hint: "its scratch space may have run full: name a larger place with `scratch` of the provider",
            });
      },
      async keepMarks() {
        done.isKept = true;
      },
      release,
    };
  } catch (error) {
    await release().catch(() => {});
    throw error;
  }
}

/** Ends exports, server, jobs and views of ours, in the order in which they hold one another. */
async function takeDown(qmp: Qmp): Promise<void> {
  const exports = (await qmp.list("query-block-exports")).filter(({ id }) => isOurs(id));
  for (const { id } of exports) await qmp.execute("block-export-del", { id, mode: "hard" });
  for (let tries = 0; (await qmp.list("query-block-exports")).some(({ id }) => isOurs(id)) && tries < 100; tries++) await pause();
  // a server that serves nothing else is the one that we started
  if (exports.length > 0 && (await qmp.list("query-block-exports")).length === 0) await qmp.execute("nbd-server-stop").catch(() => {});
  for (const { device } of (await qmp.list("query-block-jobs")).filter((job) => isOurs(job["device"]))) {
    await qmp.execute("block-job-cancel", { device, force: true }).catch(() => {});
    await qmp.event(({ event, data }) => /^BLOCK_JOB_(CANCELLED|COMPLETED)$/.test(event) && data["device"] === device, jobEndMs);
  }
  const nodes = (await qmp.list("query-named-block-nodes")).map((node) => node["node-name"]).filter(isOurs);
  for (const name of nodes) await qmp.execute("blockdev-del", { "node-name": name }).catch(() => {});
}

const pause = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 50));

/** A folder of our own that QEMU can write to. What an export that died has left in it goes: there is one for each machine. */
function makeScratch(parent: string, monitor: string, image: string | undefined): string {
  const folder = join(parent, `.hypersdk-${createHash("sha256").update(monitor).digest("hex").slice(0, 8)}`);
  try {
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { mode: 0o700 });
    // QEMU runs as whoever its images belong to
    if (process.getuid?.() === 0 && image !== undefined) {
      const { uid, gid } = statSync(image);
      chownSync(folder, uid, gid);
    }
  } catch (error) {
    throw new HypersdkError("Failed", `no scratch space can be made in ${parent}: ${(error as NodeJS.ErrnoException).code}`, {
      cause: error,
      hint: "name a folder with `scratch` of the provider",
    });
  }
  return folder;
}

/** An empty overlay over the disk, which the job fills with what is overwritten. */
async function addView(qmp: Qmp, disk: LiveDisk, view: string, file: string): Promise<void> {
  const sizeBytes = Math.ceil(disk.virtualBytes / 512) * 512;
  await writeImageFile(file, "qcow2", sizeBytes, { compression: "none", overwrite: false, inputs: [], durable: false }, (sink) => sink.finish());
  if (process.getuid?.() === 0) {
    const { uid, gid } = statSync(dirname(file));
    chownSync(file, uid, gid);
  }
  await qmp.execute("blockdev-add", { driver: "qcow2", "node-name": view, file: { driver: "file", filename: file }, backing: disk.node });
}

function bitmapsFor(disk: LiveDisk, track: TrackRequest | undefined): Pick<Frozen, "bitmap" | "earlier" | "since" | "reason"> {
  if (!track) return { bitmap: undefined, earlier: [], since: undefined, reason: "" };
  const earlier = disk.bitmaps.filter(({ name }) => isOwnedBy(name, track.owner));
  const wanted = track.since.get(disk.name);
  const since = earlier.find(({ name }) => name === wanted);
  const reason =
    wanted === undefined
      ? "nothing was marked before"
      : !since
        ? `its bitmap ${wanted} is gone`
        : since.isSound
          ? ""
          : `its bitmap ${wanted} is not sound: QEMU did not end well`;
  // a bitmap that is not sound is removed at the end, and counts for nothing
  const isUsable = since?.isSound === true && earlier.every(({ isSound }) => isSound);
  return {
    bitmap: bitmapName(track),
    earlier: earlier.map(({ name }) => name),
    since: isUsable ? wanted : undefined,
    reason: isUsable ? "" : reason || "a bitmap of an export that was cut off is not sound",
  };
}

/** What happens to a disk in the one instant. */
function actionsOf({ disk, view, bitmap, earlier, since }: Frozen): object[] {
  const { node } = disk;
  return [
    ...(bitmap === undefined ? [] : [{ type: "block-dirty-bitmap-add", data: { node, name: bitmap, granularity, persistent: disk.keepsBitmaps } }]),
    // what is written from now on stands in the new one
    ...(since === undefined ? [] : earlier.map((name) => ({ type: "block-dirty-bitmap-disable", data: { node, name } }))),
    { type: "blockdev-backup", data: { "job-id": view, device: node, target: view, sync: "none" } },
  ];
}

/** Everything that has changed since the bitmap that was asked for: that one, and those of exports that were cut off after it. */
async function exportView(qmp: Qmp, { disk, view, earlier, since }: Frozen, name: string, socket: string): Promise<NbdClient> {
  const isTold = since !== undefined;
  if (isTold) {
    await qmp.execute("block-dirty-bitmap-add", { node: view, name: changesBitmap, granularity, disabled: true });
    await qmp.execute("block-dirty-bitmap-merge", { node: view, target: changesBitmap, bitmaps: earlier.map((each) => ({ node: disk.node, name: each })) });
  }
  await qmp.execute("block-export-add", {
    type: "nbd",
    id: `${ourPrefix}${name}`,
    "node-name": view,
    name,
    writable: false,
    ...(isTold ? { bitmaps: [changesBitmap] } : {}),
  });
  return connectNbd({ path: socket }, { exportName: name, contexts: isTold ? [changesContext] : [] });
}

const changesContext = `qemu:dirty-bitmap:${changesBitmap}`;

function diskOf({ disk, bitmap, since, reason }: Frozen, client: NbdClient): SnapshotDisk {
  const changes: DiskTracking["changes"] =
    since === undefined
      ? reason
      : {
          async *ranges() {
            for await (const { offset, length, flags } of statusOf(client, changesContext, { offset: 0, length: client.sizeBytes }))
              if (flags & 1) yield { offset, length };
          },
        };
  return {
    name: disk.name,
    format: disk.format,
    variant: "live",
    source: nbdSource(client, disk.dataBytes),
    ...(bitmap === undefined ? {} : { tracking: { mark: bitmap, changes } }),
  };
}

/** Published: the new bitmap takes the place of those before. Not published: what it has seen goes back into the one before it. */
async function settleBitmaps(qmp: Qmp, frozen: readonly Frozen[], isKept: boolean): Promise<void> {
  for (const { disk, bitmap, earlier, since } of frozen) {
    if (bitmap === undefined) continue;
    const { node } = disk;
    const remove = (name: string): Promise<unknown> => qmp.execute("block-dirty-bitmap-remove", { node, name });
    if (isKept) for (const name of earlier) await remove(name);
    else if (since !== undefined) {
      const others = [...earlier, bitmap].filter((name) => name !== since);
      await qmp.execute("transaction", {
        actions: [
          { type: "block-dirty-bitmap-merge", data: { node, target: since, bitmaps: others } },
          { type: "block-dirty-bitmap-enable", data: { node, name: since } },
        ],
      });
      for (const name of others) await remove(name);
    } else await remove(bitmap);
  }
}
