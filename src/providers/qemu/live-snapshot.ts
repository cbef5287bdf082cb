import { join } from "node:path";
import { HypersdkError } from "../../model/errors.ts";
import type { Clock } from "../../model/ports.ts";
import { connectNbd, type NbdClient } from "../../nbd/client.ts";
import { nbdSource, setRanges } from "../../nbd/nbd-source.ts";
import type { DiskTracking, SnapshotDisk, TrackRequest, VmSnapshot } from "../provider.ts";
import { bitmapName, granularity, guardsOf, imageIdentity, isMarkOf, isOurs, isOwnedBy, ourPrefix, wasCut, wasExchanged } from "./bitmaps.ts";
import { GuestAgent } from "./guest-agent.ts";
import { type LiveBitmap, type LiveDisk, lookAt, settledDevices } from "./live-vm.ts";
import type { Qmp } from "./qmp.ts";
import { makeScratch, type Scratch, scratchStem } from "./scratch.ts";

const jobEndMs = 30_000;
/** The bitmap on the frozen view that says what has changed; it lives as long as the view. */
const changesBitmap = `${ourPrefix}changes`;
const guardBitmap = `${ourPrefix}guard`;

export interface LiveOptions {
  readonly clock: Clock;
  /** The guest agent's socket, which need not be there. */
  readonly agentPath: string;
  /** Where what the guest overwrites meanwhile is kept: beside the first disk's image otherwise. */
  readonly scratch: string | undefined;
  readonly ready: Promise<unknown> | undefined;
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
 * docs/guides/qemu.md says what QEMU must allow. The monitor is closed with the snapshot, or when there is none.
 */
export async function liveSnapshot(name: string, qmp: Qmp, { clock, agentPath, scratch: scratchParent, ready, track }: LiveOptions): Promise<VmSnapshot> {
  const clients: NbdClient[] = [];
  const frozen: Frozen[] = [];
  const done = { hasBegun: false, isServed: false, isKept: false, isReleased: false };
  let scratch: Scratch | undefined;
  const release = async (): Promise<void> => {
    if (done.isReleased) return;
    done.isReleased = true;
    await Promise.allSettled(clients.map((client) => client.close()));
    try {
      await takeDown(qmp, done.isServed);
      if (done.hasBegun) await settleBitmaps(qmp, frozen, done.isKept);
    } catch (error) {
      // a machine that is gone keeps what it has; the next snapshot clears up, and counts every bitmap that is left
      if (!(error instanceof HypersdkError)) throw error;
    } finally {
      qmp.close();
      scratch?.remove();
    }
  };
  try {
    // what another export has left behind is that of one that died: nobody else can talk to the monitor now. Its jobs hide what is below them
    await takeDown(qmp);
    const vm = await lookAt(qmp, name, () => settledDevices(qmp));
    const image = vm.disks[0]?.file;
    scratch = makeScratch(scratchParent, scratchStem(qmp.path), image);
    for (const [i, disk] of vm.disks.entries()) frozen.push({ disk, view: `${ourPrefix}view-${i}`, ...bitmapsFor(disk, i, track) });
    for (const { disk, view } of frozen) await addView(qmp, disk, view, scratch);
    await ready;
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
    const socket = join(scratch.shared, "nbd.sock");
    await startServer(qmp, socket);
    done.isServed = true;
    const disks: SnapshotDisk[] = [];
    for (const [i, each] of frozen.entries()) {
      await markGuards(qmp, each, i, socket);
      const client = await exportView(qmp, each, `disk-${i}`, socket);
      clients.push(client);
      disks.push(diskOf(each, client, await isCut(each, client)));
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

/**
 * Ends exports, server, jobs and views of ours, in the order in which they hold one another.
 * @param isServed whether the server is ours; left out by those who find what is there: it lives between the first view and the end of the last
 */
async function takeDown(qmp: Qmp, isServed?: boolean): Promise<void> {
  const exports = (await qmp.list("query-block-exports")).filter(({ id }) => isOurs(id));
  const views = (await qmp.list("query-named-block-nodes")).filter((node) => isOurs(node["node-name"]));
  for (const { id } of exports) await qmp.execute("block-export-del", { id, mode: "hard" });
  for (let tries = 0; (await qmp.list("query-block-exports")).some(({ id }) => isOurs(id)) && tries < 100; tries++) await pause();
  // and what serves somebody else too stays
  if ((isServed ?? exports.length + views.length > 0) && (await qmp.list("query-block-exports")).length === 0)
    await qmp.execute("nbd-server-stop").catch(() => {});
  for (const { device } of (await qmp.list("query-block-jobs")).filter((job) => isOurs(job["device"]))) {
    await qmp.execute("block-job-cancel", { device, force: true }).catch(() => {});
    await qmp.event(({ event, data }) => /^BLOCK_JOB_(CANCELLED|COMPLETED)$/.test(event) && data["device"] === device, jobEndMs);
  }
  const nodes = (await qmp.list("query-named-block-nodes")).map((node) => node["node-name"]).filter(isOurs);
  for (const name of nodes) await qmp.execute("blockdev-del", { "node-name": name }).catch(() => {});
}

async function startServer(qmp: Qmp, path: string): Promise<void> {
  try {
    await qmp.execute("nbd-server-start", { addr: { type: "unix", data: { path } }, "max-connections": 32 });
  } catch (error) {
    if (!(error instanceof HypersdkError) || !error.message.includes("already running")) throw error;
    throw new HypersdkError(error.code, error.message, {
      cause: error,
      hint: "somebody else serves its disks over NBD: nbd-server-stop in its monitor ends that",
    });
  }
}

const pause = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 50));

/** An empty overlay over the disk, which the job fills with what is overwritten. */
async function addView(qmp: Qmp, disk: LiveDisk, view: string, { folder, give }: Scratch): Promise<void> {
  const file = join(folder, `${view}.qcow2`);
  const sizeBytes = Math.ceil(disk.virtualBytes / 512) * 512;
  const { writeImageFile } = await import("../../converters/image-file.ts");
  await writeImageFile(file, "qcow2", sizeBytes, { compression: "none", overwrite: false, inputs: [], durable: false }, (sink) => sink.finish());
  give(file);
  await qmp.execute("blockdev-add", { driver: "qcow2", "node-name": view, file: { driver: "file", filename: file }, backing: disk.node });
}

function bitmapsFor(disk: LiveDisk, index: number, track: TrackRequest | undefined): Pick<Frozen, "bitmap" | "earlier" | "since" | "reason"> {
  if (!track) return { bitmap: undefined, earlier: [], since: undefined, reason: "" };
  const earlier = disk.bitmaps.filter(({ name }) => isOwnedBy(name, track.owner));
  const wanted = track.since.get(disk.name);
  const image = imageIdentity(disk.file, disk.format);
  const reason = whyNot(wanted, earlier, image);
  return {
    bitmap: bitmapName(track, index, image),
    earlier: earlier.map(({ name }) => name),
    since: reason === undefined ? wanted : undefined,
    reason: reason ?? "",
  };
}

/** Why the changes since a mark cannot be told; undefined where they can. An export that was cut off has left its own bitmap, which records. */
function whyNot(wanted: string | undefined, bitmaps: readonly LiveBitmap[], image: string): string | undefined {
  if (wanted === undefined) return "nothing was marked before";
  if (!bitmaps.some(({ name }) => name === wanted)) return `its bitmap ${wanted} is gone`;
  if (!isMarkOf(wanted, image)) return wasExchanged;
  if (!bitmaps.every(({ isSound }) => isSound)) return `its bitmap ${wanted} is not sound: QEMU did not end well`;
  if (!bitmaps.some(({ isRecording }) => isRecording)) return `its bitmap ${wanted} was disabled by somebody`;
  return undefined;
}

/** What happens to a disk in the one instant. */
function actionsOf({ disk, view, bitmap, earlier, since }: Frozen): object[] {
  const { node } = disk;
  return [
    ...(bitmap === undefined ? [] : [{ type: "block-dirty-bitmap-add", data: { node, name: bitmap, granularity, persistent: disk.keepsBitmaps } }]),
    // what is written from now on stands in the new one; those that are not believed go, so that nobody ever believes them
    ...earlier.map((name) => ({ type: since === undefined ? "block-dirty-bitmap-remove" : "block-dirty-bitmap-disable", data: { node, name } })),
    { type: "blockdev-backup", data: { "job-id": view, device: node, target: view, sync: "none" } },
  ];
}

/**
 * Puts the guards of a disk into its new mark. QEMU sets bits for what is written, and for what another bitmap has: this one's are of a node of
 * the same size that holds nothing.
 */
async function markGuards(qmp: Qmp, { disk: { node, virtualBytes }, bitmap }: Frozen, index: number, socket: string): Promise<void> {
  if (bitmap === undefined || virtualBytes === 0) return;
  const nothing = `${ourPrefix}guard-${index}`;
  await qmp.execute("blockdev-add", { driver: "null-co", "node-name": nothing, size: virtualBytes, "read-zeroes": true });
  await qmp.execute("block-dirty-bitmap-add", { node: nothing, name: guardBitmap, granularity });
  await qmp.execute("block-export-add", { type: "nbd", id: nothing, "node-name": nothing, name: nothing, writable: true });
  const client = await connectNbd({ path: socket }, { exportName: nothing });
  try {
    for (const { offset, length } of guardsOf(virtualBytes)) await client.writeZeroes(offset, length);
  } finally {
    await client.close();
  }
  await qmp.execute("block-dirty-bitmap-merge", { node, target: bitmap, bitmaps: [{ node: nothing, name: guardBitmap }] });
}

/** Whether one of the disk's guards is in none of the bitmaps that tell of its changes. */
async function isCut({ disk: { virtualBytes }, since }: Frozen, client: NbdClient): Promise<boolean> {
  if (since === undefined || virtualBytes === 0) return false;
  for (const { offset, length } of guardsOf(virtualBytes)) {
    const [first] = await client.status(changesContext, offset, length);
    if (((first?.flags ?? 0) & 1) === 0) return true;
  }
  return false;
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

function diskOf({ disk, bitmap, since, reason }: Frozen, client: NbdClient, isCutShort: boolean): SnapshotDisk {
  const changes: DiskTracking["changes"] = since === undefined ? reason : isCutShort ? wasCut : { ranges: () => setRanges(client, changesContext) };
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
    if (isKept) for (const name of since === undefined ? [] : earlier) await remove(name);
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
