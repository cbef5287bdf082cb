import { statSync } from "node:fs";
import { basename } from "node:path";
import type { ProviderSpec } from "../../model/desired.ts";
import { HypersdkError } from "../../model/errors.ts";
import type { ObservedVm } from "../../model/observed.ts";
import type { Clock } from "../../model/ports.ts";
import { vmPathUnder } from "../../model/vm-path.ts";
import type { FoundDisk, FoundVm } from "../images/discover.ts";
import { imageSnapshot } from "../images/image-snapshot.ts";
import { peek } from "../images/peek.ts";
import type { Provider, TrackRequest, VmHardware } from "../provider.ts";
import { checkpointMark, exportOf, isOurs } from "./bitmaps.ts";
import { domainSnapshot } from "./domain-snapshot.ts";
import { marksOf, storedTracking } from "./stored-bitmaps.ts";
import { elementOf, elementsOf, lines, parseXml, textOf, virsh } from "./virsh.ts";

/** A machine that libvirt knows, running or not. */
export interface Domain {
  readonly uuid: string;
  readonly isRunning: boolean;
  readonly hardware: VmHardware;
  readonly disks: readonly DomainDisk[];
}

export interface DomainDisk {
  /** The image's name; with the target's where two disks have one. */
  readonly name: string;
  /** What the guest sees it as: `vda`. */
  readonly target: string;
  readonly file: string;
  readonly format: string;
}

/** Machines of a libvirt. A VM is its UUID; it stands under its name, below the provider's root. */
export function libvirtProvider(spec: ProviderSpec, uri: string, clock: Clock): Provider {
  return {
    name: spec.name,
    type: "qemu",
    tracksChanges: true,
    async inventory() {
      const running = new Set(await lines(uri, "list", "--state-running", "--state-paused", "--uuid"));
      const vms: ObservedVm[] = [];
      const problems: string[] = [];
      const unknown: { identity: string; reason: string }[] = [];
      for (const uuid of await lines(uri, "list", "--all", "--uuid")) {
        try {
          const domain = await domainOf(uri, uuid, running.has(uuid));
          const path = vmPathUnder(spec.root, [domain.hardware.name]);
          if (!path) problems.push(`${JSON.stringify(domain.hardware.name)} cannot be a VM path`);
          else if (vms.some((vm) => vm.path === path)) problems.push(`two machines are called ${domain.hardware.name}`);
          else if (domain.disks.length > 0) vms.push(await observed(spec.name, uri, path, domain));
        } catch (error) {
          if (!(error instanceof HypersdkError) || error.code === "ProviderUnreachable") throw error;
          // libvirt has it: it is not gone, whatever is wrong with it
          unknown.push({ identity: uuid, reason: error.message });
        }
      }
      return { vms: vms.sort((a, b) => (a.path < b.path ? -1 : 1)), problems: problems.sort(), unknown };
    },
    async snapshot(identity, { ready, track } = {}) {
      const all = await lines(uri, "list", "--all", "--uuid");
      if (!all.includes(identity)) throw new HypersdkError("NotFound", `provider ${spec.name} has no VM ${JSON.stringify(identity)}`);
      const isRunning = (await lines(uri, "list", "--state-running", "--state-paused", "--uuid")).includes(identity);
      const domain = await domainOf(uri, identity, isRunning);
      if (isRunning) return domainSnapshot(uri, domain, { clock, scratch: spec.scratch, ready, track });
      // checkpoints of others may hold what ours do not: whatever a bitmap has noted counts
      return imageSnapshot(foundVm(domain), clock, async (disk) => (track ? storedTracking(disk, asBitmaps(track, domain), () => true, false) : undefined));
    },
  };
}

async function domainOf(uri: string, uuid: string, isRunning: boolean): Promise<Domain> {
  const domain = parseXml(await virsh(uri, "dumpxml", uuid), "domain");
  const disks: DomainDisk[] = [];
  for (const disk of elementsOf(elementOf(domain["devices"])["disk"])) {
    const source = elementOf(disk["source"]);
    const file = textOf(source["@file"]) ?? textOf(source["@dev"]);
    const target = textOf(elementOf(disk["target"])["@dev"]);
    // media that can be removed and disks that are only read are no part of the machine's state
    if (!["disk", "lun", undefined].includes(textOf(disk["@device"])) || disk["readonly"] !== undefined || target === undefined) continue;
    if (file === undefined) throw new HypersdkError("Failed", `disk ${target} of ${textOf(domain["name"])} is neither a file nor a device of this machine`);
    const name = basename(file);
    disks.push({
      name: disks.some((other) => other.name === name) ? `${name} (${target})` : name,
      target,
      file,
      format: textOf(elementOf(disk["driver"])["@type"]) ?? "raw",
    });
  }
  const cpus = Number(textOf(domain["vcpu"]));
  const memory = Number(textOf(domain["memory"])) * 1024;
  const os = elementOf(domain["os"]);
  const isEfi = textOf(os["@firmware"]) === "efi" || /OVMF|AAVMF|edk2/i.test(textOf(os["loader"]) ?? "");
  return {
    uuid,
    isRunning,
    hardware: {
      name: textOf(domain["name"]) ?? uuid,
      firmware: isEfi ? "efi" : "bios",
      ...(cpus > 0 ? { cpus } : {}),
      ...(memory > 0 ? { memoryBytes: memory } : {}),
    },
    disks,
  };
}

async function observed(provider: string, uri: string, path: ObservedVm["path"], domain: Domain): Promise<ObservedVm> {
  const { uuid, hardware, disks, isRunning } = domain;
  // libvirt's own words: Target, Capacity, Allocation, Physical, in bytes
  const sizes = new Map(
    (await lines(uri, "domblkinfo", uuid, "--all")).map((line) => {
      const [target = "", capacity, allocation] = line.split(/\s+/);
      return [target, { capacity: Number(capacity), allocation: Number(allocation) }] as const;
    }),
  );
  const checkpoints = isRunning ? await checkpointsOf(uri, uuid) : undefined;
  const list: ObservedVm["disks"][number][] = [];
  for (const disk of disks) {
    const { capacity: virtualBytes = 0, allocation = 0 } = sizes.get(disk.target) ?? {};
    // libvirt keeps bitmaps of QCOW2 alone
    const found = disk.format !== "qcow2" ? undefined : isRunning ? (checkpoints?.get(disk.target) ?? []) : await marksOf(foundDisk(disk));
    list.push({
      name: disk.name,
      format: disk.format,
      virtualBytes,
      dataBytes: Math.min(virtualBytes, allocation),
      ...(found ? { marks: found.map(({ name, changedBytes }) => ({ name: checkpointMark(name, disk.file), changedBytes })) } : {}),
    });
  }
  return { provider, path, identity: uuid, name: hardware.name, isRunning, disks: list, ...(hardware.firmware ? { firmware: hardware.firmware } : {}) };
}

/** Our checkpoints of a running machine, with what has changed since each, by the disk's target. */
async function checkpointsOf(uri: string, uuid: string): Promise<Map<string, { readonly name: string; readonly changedBytes: number }[]>> {
  const marks = new Map<string, { name: string; changedBytes: number }[]>();
  for (const name of (await lines(uri, "checkpoint-list", uuid, "--name")).filter(isOurs)) {
    const checkpoint = parseXml(await virsh(uri, "checkpoint-dumpxml", uuid, name, "--size", "--no-domain"), "domaincheckpoint");
    for (const disk of elementsOf(elementOf(checkpoint["disks"])["disk"])) {
      const target = textOf(disk["@name"]);
      if (target === undefined || textOf(disk["@checkpoint"]) !== "bitmap") continue;
      marks.set(target, [...(marks.get(target) ?? []), { name, changedBytes: Number(textOf(disk["@size"]) ?? 0) }]);
    }
  }
  return marks;
}

/** The marks of images that are where they were, as the bitmaps in them are called. */
function asBitmaps(track: TrackRequest, { disks }: Domain): TrackRequest {
  const since = new Map<string, string>();
  for (const { name, file } of disks) {
    const mark = track.since.get(name);
    if (mark === undefined) continue;
    const checkpoint = exportOf(mark);
    since.set(name, checkpointMark(checkpoint, file) === mark ? checkpoint : mark);
  }
  return { ...track, since };
}

function foundVm({ uuid, hardware, disks }: Domain): FoundVm {
  return { identity: uuid, names: [hardware.name], disks: disks.map(foundDisk), descriptor: { file: "libvirt", ...hardware, disks: [] } };
}

/** libvirt says what format a disk has; its content alone is not believed. */
function foundDisk({ name, file, format }: DomainDisk): FoundDisk {
  if (format === "raw") return { name, path: file, peeked: { format: "raw", virtualBytes: statSync(file).size, dataBytes: statSync(file).blocks * 512 } };
  return { name, path: file, peeked: peek(file, basename(file)) };
}
