import { readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { errnoOf, HypersdkError } from "../../model/errors.ts";
import type { Clock } from "../../model/ports.ts";
import { connectNbd, type NbdClient } from "../../nbd/client.ts";
import { nbdSource, setRanges } from "../../nbd/nbd-source.ts";
import type { DiskTracking, SnapshotDisk, TrackRequest, VmSnapshot } from "../provider.ts";
import { checkpointMark, exportName, exportOf, isOwnedBy, ourPrefix } from "./bitmaps.ts";
import type { Domain, DomainDisk } from "./libvirt-provider.ts";
import { makeScratch, scratchStem } from "./scratch.ts";
import { elementOf, elementsOf, escaped, lines, parseXml, textOf, virsh } from "./virsh.ts";

interface DomainOptions {
  readonly clock: Clock;
  readonly scratch: string | undefined;
  readonly ready: Promise<unknown> | undefined;
  readonly track: TrackRequest | undefined;
}

/** A disk with what it is asked for. */
interface Wanted {
  readonly disk: DomainDisk;
  readonly exportName: string;
  /** The checkpoint that its changes are asked since; a text that says why there is none. */
  readonly since: { readonly checkpoint: string } | { readonly reason: string };
  /** Its mark from now on; undefined where its format keeps none. */
  readonly mark: string | undefined;
}

/**
 * All disks of a machine that libvirt runs, as of one instant: `backup-begin` in pull mode, with a checkpoint where changes are tracked. libvirt
 * keeps the bitmaps; a checkpoint that is deleted gives its changes to the one before it, so that nothing is lost when an export fails.
 */
export async function domainSnapshot(uri: string, domain: Domain, { clock, scratch: named, ready, track }: DomainOptions): Promise<VmSnapshot> {
  const { uuid, hardware } = domain;
  const image = domain.disks[0]?.file;
  const parent = named ?? (image === undefined ? undefined : dirname(image));
  await clearLeftovers(uri, uuid, parent);
  const scratch = makeScratch(parent, `${scratchStem(uuid)}-${process.pid}`, image);
  const socket = join(scratch.shared, "nbd.sock");
  const clients: NbdClient[] = [];
  const done = { checkpoint: undefined as string | undefined, hasBegun: false, isKept: false, isReleased: false };
  let earlier: readonly string[] = [];
  const release = async (): Promise<void> => {
    if (done.isReleased) return;
    done.isReleased = true;
    await Promise.allSettled(clients.map((client) => client.close()));
    try {
      if (done.hasBegun) {
        await virsh(uri, "domjobabort", uuid).catch(() => {});
        const gone = done.isKept ? earlier : [done.checkpoint];
        if (done.checkpoint !== undefined) for (const name of gone) if (name !== undefined) await virsh(uri, "checkpoint-delete", uuid, name);
      }
    } catch (error) {
      // a machine that is gone keeps what it has: every checkpoint of ours that is left counts next time
      if (!(error instanceof HypersdkError)) throw error;
    } finally {
      scratch.remove();
    }
  };
  try {
    earlier = track ? (await lines(uri, "checkpoint-list", uuid, "--name")).filter((name) => isOwnedBy(name, track.owner)) : [];
    const marks = await marksIn(uri, uuid, earlier);
    let wanted = domain.disks.map((disk, i): Wanted => {
      const mark = track && disk.format === "qcow2" ? checkpointMark(exportName(track), disk.file) : undefined;
      return { disk, exportName: `disk-${i}`, mark, since: sinceOf(disk, track, marks) };
    });
    const checkpoint = track && wanted.some(({ mark }) => mark !== undefined) ? exportName(track) : undefined;
    await ready;
    const isFrozen = await virsh(uri, "domfsfreeze", uuid).then(
      () => true,
      () => false,
    );
    try {
      const begin = async (): Promise<void> => {
        writeFileSync(join(scratch.folder, "backup.xml"), backupXml(wanted, socket, scratch.shared));
        if (checkpoint !== undefined) writeFileSync(join(scratch.folder, "checkpoint.xml"), checkpointXml(checkpoint, wanted));
        await virsh(
          uri,
          "backup-begin",
          uuid,
          join(scratch.folder, "backup.xml"),
          ...(checkpoint === undefined ? [] : [join(scratch.folder, "checkpoint.xml")]),
        );
      };
      await begin().catch((error: unknown) => {
        // bitmaps that are not in the images that libvirt has them in: images were exchanged, or put back from somewhere
        if (!(error instanceof HypersdkError) || error.code !== "Failed" || !wanted.some(({ since }) => "checkpoint" in since)) throw error;
        wanted = wanted.map((each) => ({ ...each, since: { reason: error.message } }));
        return begin();
      });
      done.hasBegun = true;
      done.checkpoint = checkpoint;
    } finally {
      if (isFrozen) await virsh(uri, "domfsthaw", uuid);
    }
    const instant = clock.now();
    const disks: SnapshotDisk[] = [];
    for (const each of wanted) {
      const context = "checkpoint" in each.since ? [changesContext] : [];
      const client = await connectNbd({ path: socket }, { exportName: each.exportName, contexts: context });
      clients.push(client);
      disks.push(diskOf(each, client));
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

/** Which disk has which of our checkpoints: `vda hypersdk-…`. */
async function marksIn(uri: string, uuid: string, checkpoints: readonly string[]): Promise<Set<string>> {
  const marks = new Set<string>();
  for (const name of checkpoints) {
    const { disks } = parseXml(await virsh(uri, "checkpoint-dumpxml", uuid, name, "--no-domain"), "domaincheckpoint");
    for (const disk of elementsOf(elementOf(disks)["disk"])) if (textOf(disk["@checkpoint"]) === "bitmap") marks.add(`${textOf(disk["@name"])} ${name}`);
  }
  return marks;
}

function sinceOf({ name, target, file, format }: DomainDisk, track: TrackRequest | undefined, marks: ReadonlySet<string>): Wanted["since"] {
  const mark = track?.since.get(name);
  if (mark === undefined) return { reason: "nothing was marked before" };
  if (format !== "qcow2") return { reason: `libvirt tracks no changes of a ${format} disk` };
  const checkpoint = exportOf(mark);
  const isThere = marks.has(`${target} ${checkpoint}`) && checkpointMark(checkpoint, file) === mark;
  return isThere ? { checkpoint } : { reason: `its bitmap ${mark} is gone` };
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

const changesContext = `qemu:dirty-bitmap:${changesBitmap}`;

function checkpointXml(name: string, wanted: readonly Wanted[]): string {
  const disks = wanted.map(({ disk, mark }) => `<disk name='${escaped(disk.target)}' checkpoint='${mark === undefined ? "no" : "bitmap"}'/>`);
  return `<domaincheckpoint><name>${escaped(name)}</name><disks>${disks.join("")}</disks></domaincheckpoint>\n`;
}

function diskOf({ disk, since, mark }: Wanted, client: NbdClient): SnapshotDisk {
  const changes: DiskTracking["changes"] = "reason" in since ? since.reason : { ranges: () => setRanges(client, changesContext) };
  return {
    name: disk.name,
    format: disk.format,
    variant: "live",
    source: nbdSource(client),
    ...(mark === undefined ? {} : { tracking: { mark, changes } }),
  };
}

/**
 * A backup job whose scratch folder is that of a process of ours that has died is ended; one that lives, or is somebody else's, is left alone.
 * @throws ProviderUnreachable for those
 */
async function clearLeftovers(uri: string, uuid: string, parent: string | undefined): Promise<void> {
  const job = await virsh(uri, "backup-dumpxml", uuid).catch(() => undefined);
  const stem = `${scratchStem(uuid)}-`;
  const folders = parent === undefined ? [] : listed(parent).filter((name) => name.startsWith(stem));
  const isAlive = folders.some((name) => isProcess(Number(name.slice(stem.length))));
  if (isAlive || (job !== undefined && !folders.some((name) => job.includes(name))))
    throw new HypersdkError("ProviderUnreachable", `another backup of ${uuid} is under way`, { hint: "virsh domjobabort ends it" });
  if (job !== undefined) await virsh(uri, "domjobabort", uuid);
  for (const name of folders) rmSync(join(parent as string, name), { recursive: true, force: true });
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
    return errnoOf(error) === "EPERM";
  }
}
