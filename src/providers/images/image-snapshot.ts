import { type BigIntStats, statSync } from "node:fs";
import { openByteFile, sliceOf } from "../../converters/byte-file.ts";
import { isLockedByOther } from "../../converters/file-locks.ts";
import { tarMembers } from "../../converters/machine/tar-members.ts";
import { neighboursOf, noNeighbours } from "../../converters/neighbours.ts";
import { type OpenedImage, openImageFile } from "../../converters/open-image.ts";
import { HypersdkError } from "../../model/errors.ts";
import type { Clock } from "../../model/ports.ts";
import type { DiskTracking, SnapshotDisk, VmSnapshot } from "../provider.ts";
import type { FoundDisk, FoundVm } from "./discover.ts";

/**
 * The disks of a VM that does not run, as its files are: an export fails with `SourceChanged` when size, time or inode of one of them is
 * another after the last read than before the first, and with `SourceLocked` when somebody has it open for writing.
 * @param trackingOf what is known of the changes of a disk
 */
export async function imageSnapshot(
  vm: FoundVm,
  clock: Clock,
  trackingOf: (disk: FoundDisk) => Promise<DiskTracking | undefined> = async () => undefined,
): Promise<VmSnapshot> {
  const files = new Set<string>();
  const archive = vm.disks.find(({ within }) => within)?.path;
  // what was packed may have been damaged on its way here; nothing else would notice
  if (archive !== undefined) {
    const { checkArchive } = await import("../../converters/machine/open-machine.ts");
    await checkArchive(archive, tarMembers(archive));
  }
  const opened: { found: FoundDisk; image: OpenedImage }[] = [];
  const release = async (): Promise<void> => {
    await Promise.allSettled(opened.splice(0).map(({ image }) => image.source.close()));
  };
  try {
    for (const found of vm.disks) {
      files.add(found.path);
      const image = await openDisk(found);
      opened.push({ found, image });
      for (const path of image.otherFiles) files.add(path);
    }
    const before = new Map([...files].map((path) => [path, fingerprint(path)]));
    const { descriptor } = vm;
    const disks: SnapshotDisk[] = [];
    for (const { found, image } of opened) {
      const tracking = await trackingOf(found);
      disks.push({ name: found.name, format: image.format, variant: image.variant, source: image.source, ...(tracking ? { tracking } : {}) });
    }
    return {
      instant: clock.now(),
      vm: {
        name: descriptor?.name ?? (vm.names.at(-1) as string),
        ...(descriptor?.guestType ? { guestType: descriptor.guestType } : {}),
        ...(descriptor?.firmware ? { firmware: descriptor.firmware } : {}),
        ...(descriptor?.cpus ? { cpus: descriptor.cpus } : {}),
        ...(descriptor?.memoryBytes ? { memoryBytes: descriptor.memoryBytes } : {}),
      },
      disks,
      async confirm() {
        for (const [path, was] of before) {
          if (fingerprint(path) !== was)
            throw new HypersdkError("SourceChanged", `${path} changed while it was read`, { hint: "export it while nothing writes to it" });
        }
      },
      release,
    };
  } catch (error) {
    await release();
    throw error;
  }
}

/** The inventory has looked at the name, so a `.raw` that begins like another format never gets here as one. */
function openDisk({ path, name, within, peeked }: FoundDisk): Promise<OpenedImage> {
  const file = openByteFile(path, name);
  if (!within) return openImageFile(file, neighboursOf(path), peeked.format === "raw" ? "raw" : undefined);
  const member = sliceOf(file, within.offset, within.length, name);
  return openImageFile({ ...member, close: () => file.close() }, noNeighbours);
}

/** Size, time of change and inode; refuses a file that another process holds locked. */
function fingerprint(path: string): string {
  let stat: BigIntStats;
  try {
    stat = statSync(path, { bigint: true });
  } catch (error) {
    throw new HypersdkError("SourceChanged", `${path} is gone`, { cause: error });
  }
  const { size, mtimeNs, ino, dev } = stat;
  if (isLockedByOther({ dev, ino }))
    throw new HypersdkError("SourceLocked", `${path} is locked by another process: its VM is running`, {
      hint: "shut the VM down, or export it through a provider that can take a snapshot",
    });
  return `${size} ${mtimeNs} ${ino} ${dev}`;
}
