import { createHash } from "node:crypto";
import { chownSync, mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { HypersdkError } from "../../model/errors.ts";
import type { Clock } from "../../model/ports.ts";
import { connectNbd, type NbdClient } from "../../nbd/client.ts";
import { nbdSource, statusOf } from "../../nbd/nbd-source.ts";
import type { DiskTracking, SnapshotDisk, TrackRequest, VmSnapshot } from "../provider.ts";
import { bitmapName, isOwnedBy, ourPrefix } from "./bitmaps.ts";
import type { Domain, DomainDisk } from "./libvirt-provider.ts";
import { escaped, lines, virsh } from "./virsh.ts";

interface DomainOptions {
  readonly clock: Clock;
  readonly scratch: string | undefined;
  readonly track: TrackRequest | undefined;
}

/** A disk with what it is asked for. */
interface Wanted {
  readonly disk: DomainDisk;
  readonly exportName: string;
  /** The checkpoint that its changes are asked since; a text that says why there is none. */
  readonly since: { readonly checkpoint: string } | { readonly reason: string };
  /** Whether its format keeps a bitmap. */
  readonly isTracked: boolean;
}

/**
 * All disks of a machine that libvirt runs, as of one instant: `backup-begin` in pull mode, with a checkpoint where changes are tracked. libvirt
 * keeps the bitmaps; a checkpoint that is deleted gives its changes to the one before it, so that nothing is lost when an export fails.
 */
export async function domainSnapshot(uri: string, domain: Domain, { clock, scratch, track }: DomainOptions): Promise<VmSnapshot> {
  const { uuid, hardware } = domain;
  const parent = scratch ?? dirname(domain.disks[0]?.file ?? "/tmp/");
  await clearLeftovers(uri, uuid, parent);
  const folder = makeScratch(parent, uuid, domain.disks[0]?.file);
  const socket = join(folder, "nbd.sock");
  const checkpoints = track ? (await lines(uri, "checkpoint-list", uuid, "--name")).filter((name) => isOwnedBy(name, track.owner)) : [];
  const wanted = domain.disks.map(
    (disk, i): Wanted => ({
      disk,
      exportName: `disk-${i}`,
      isTracked: track !== undefined && disk.format === "qcow2",
      since: sinceOf(disk, track, checkpoints),
    }),
  );
  const checkpoint = track && wanted.some(({ isTracked }) => isTracked) ? bitmapName(track) : undefined;
  const clients: NbdClient[] = [];
  const done = { hasBegun: false, isKept: false, isReleased: false };
  const release = async (): Promise<void> => {
    if (done.isReleased) return;
    done.isReleased = true;
    await Promise.allSettled(clients.map((client) => client.close()));
    try {
      if (done.hasBegun) {
        await virsh(uri, "domjobabort", uuid).catch(() => {});
        if (checkpoint !== undefined) for (const name of done.isKept ? checkpoints : [checkpoint]) await virsh(uri, "checkpoint-delete", uuid, name);
      }
    } catch (error) {
      // a machine that is gone keeps what it has: every checkpoint of ours that is left counts next time
      if (!(error instanceof HypersdkError)) throw error;
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  };
  try {
    writeFileSync(join(folder, "backup.xml"), backupXml(wanted, socket, folder));
    if (checkpoint !== undefined) writeFileSync(join(folder, "checkpoint.xml"), checkpointXml(checkpoint, wanted));
    const isFrozen = await virsh(uri, "domfsfreeze", uuid).then(
      () => true,
      () => false,
    );
    try {
      await virsh(uri, "backup-begin", uuid, join(folder, "backup.xml"), ...(checkpoint === undefined ? [] : [join(folder, "checkpoint.xml")]));
      done.hasBegun = true;
    } finally {
      if (isFrozen) await virsh(uri, "domfsthaw", uuid);
    }
    const instant = clock.now();
    const disks: SnapshotDisk[] = [];
    for (const each of wanted) {
      const context = "checkpoint" in each.since ? [contextOf(each)] : [];
      const client = await connectNbd({ path: socket }, { exportName: each.exportName, contexts: context });
      clients.push(client);
      disks.push(diskOf(each, client, checkpoint));
    }
    return {
      instant,
      vm: hardware,
      consistency: isFrozen ? "file systems" : "crash",
      disks,
      async confirm() {
        await virsh(uri, "backup-dumpxml", uuid).catch((error: unknown) => {
          throw new HypersdkError("SourceChanged", `libvirt gave up keeping the disks of ${hardware.name} as they were while they were read`, {
            cause: error,
            hint: "its scratch space may have run full: name a larger place with `scratch` of the provider",
          });
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

function sinceOf({ name, format }: DomainDisk, track: TrackRequest | undefined, checkpoints: readonly string[]): Wanted["since"] {
  const mark = track?.since.get(name);
  if (mark === undefined) return { reason: "nothing was marked before" };
  if (format !== "qcow2") return { reason: `libvirt tracks no changes of a ${format} disk` };
  return checkpoints.includes(mark) ? { checkpoint: mark } : { reason: `its checkpoint ${mark} is gone` };
}

function backupXml(wanted: readonly Wanted[], socket: string, folder: string): string {
  const disks = wanted.map(({ disk, exportName, since }) => {
    const mode =
      "checkpoint" in since ? `backupmode='incremental' incremental='${escaped(since.checkpoint)}' exportbitmap='${changesBitmap}'` : "backupmode='full'";
    return `<disk name='${escaped(disk.target)}' backup='yes' type='file' exportname='${exportName}' ${mode}><scratch file='${escaped(join(folder, `${exportName}.qcow2`))}'/></disk>`;
  });
  return `<domainbackup mode='pull'><server transport='unix' socket='${escaped(socket)}'/><disks>${disks.join("")}</disks></domainbackup>\n`;
}

const changesBitmap = `${ourPrefix}changes`;

function contextOf(_: Wanted): string {
  return `qemu:dirty-bitmap:${changesBitmap}`;
}

function checkpointXml(name: string, wanted: readonly Wanted[]): string {
  const disks = wanted.map(({ disk, isTracked }) => `<disk name='${escaped(disk.target)}' checkpoint='${isTracked ? "bitmap" : "no"}'/>`);
  return `<domaincheckpoint><name>${escaped(name)}</name><disks>${disks.join("")}</disks></domaincheckpoint>\n`;
}

function diskOf(wanted: Wanted, client: NbdClient, checkpoint: string | undefined): SnapshotDisk {
  const { disk, since, isTracked } = wanted;
  const changes: DiskTracking["changes"] =
    "reason" in since
      ? since.reason
      : {
          async *ranges() {
            for await (const { offset, length, flags } of statusOf(client, contextOf(wanted), { offset: 0, length: client.sizeBytes }))
              if (flags & 1) yield { offset, length };
          },
        };
  return {
    name: disk.name,
    format: disk.format,
    variant: "live",
    source: nbdSource(client),
    ...(checkpoint !== undefined && isTracked ? { tracking: { mark: checkpoint, changes } } : {}),
  };
}

/**
 * A backup job whose scratch folder is that of a process of ours that has died is ended; one that lives, or is somebody else's, is left alone.
 * @throws ProviderUnreachable for those
 */
async function clearLeftovers(uri: string, uuid: string, parent: string): Promise<void> {
  const job = await virsh(uri, "backup-dumpxml", uuid).catch(() => undefined);
  const stem = stemOf(uuid);
  const folders = listed(parent).filter((name) => name.startsWith(stem));
  const isAlive = folders.some((name) => isProcess(Number(name.slice(stem.length))));
  if (isAlive || (job !== undefined && !folders.some((name) => job.includes(name))))
    throw new HypersdkError("ProviderUnreachable", `another backup of ${uuid} is under way`, { hint: "virsh domjobabort ends it" });
  if (job !== undefined) await virsh(uri, "domjobabort", uuid);
  for (const name of folders) rmSync(join(parent, name), { recursive: true, force: true });
}

/** `.hypersdk-<machine>-<process>` */
function stemOf(uuid: string): string {
  return `.hypersdk-${createHash("sha256").update(uuid).digest("hex").slice(0, 8)}-`;
}

function listed(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

function isProcess(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

function makeScratch(parent: string, uuid: string, image: string | undefined): string {
  const folder = join(parent, `${stemOf(uuid)}${process.pid}`);
  try {
    mkdirSync(folder, { mode: 0o711 });
    // QEMU runs as whoever its images belong to while it runs
    if (process.getuid?.() === 0 && image !== undefined) {
      const { uid, gid } = statSync(image);
      chownSync(folder, uid, gid);
    }
    return folder;
  } catch (error) {
    throw new HypersdkError("Failed", `no scratch space can be made in ${parent}: ${(error as NodeJS.ErrnoException).code}`, {
      cause: error,
      hint: "name a folder with `scratch` of the provider",
    });
  }
}
