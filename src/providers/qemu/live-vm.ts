import { basename } from "node:path";
import { HypersdkError } from "../../model/errors.ts";
import { monotonicMs } from "../../model/monotonic.ts";
import type { VmHardware } from "../provider.ts";
import { isOurs } from "./bitmaps.ts";
import { objectIn } from "./json-socket.ts";
import type { Qmp } from "./qmp.ts";

/** A running machine, as its monitor shows it. */
export interface LiveVm {
  readonly hardware: VmHardware;
  /** In the order in which QEMU lists them. */
  readonly disks: readonly LiveDisk[];
}

export interface LiveDisk {
  /** The file's name, as it is when the VM is off; with the node's where two disks have one. */
  readonly name: string;
  /** The image's path. */
  readonly file: string;
  readonly node: string;
  readonly format: string;
  readonly virtualBytes: number;
  readonly dataBytes: number;
  /** Whether its format keeps bitmaps while the VM is off. */
  readonly keepsBitmaps: boolean;
  readonly bitmaps: readonly LiveBitmap[];
}

export interface LiveBitmap {
  readonly name: string;
  /** False after a QEMU that did not end well. */
  readonly isSound: boolean;
  /** False for one that somebody has disabled: what is written meanwhile is not in it. */
  readonly isRecording: boolean;
  readonly dirtyBytes: number;
}

/** Asks the monitor for everything. Media that can be removed, and disks that are only read, are no part of the machine's state. */
export async function lookAt(qmp: Qmp, fallbackName: string, devices: () => Promise<Record<string, unknown>[]> = () => throughFilters(qmp)): Promise<LiveVm> {
  const { name } = objectIn(await qmp.execute("query-name"));
  const cpus = (await qmp.list("query-cpus-fast")).length;
  const memory = objectIn(await qmp.execute("query-memory-size-summary"))["base-memory"];
  const disks: LiveDisk[] = [];
  for (const device of await devices()) {
    if (device["inserted"] === undefined || device["removable"] === true) continue;
    const inserted = objectIn(device["inserted"]);
    if (inserted["ro"] === true) continue;
    disks.push(diskOf(inserted, disks));
  }
  return {
    hardware: {
      name: typeof name === "string" && name !== "" ? name : fallbackName,
      ...(cpus > 0 ? { cpus } : {}),
      ...(typeof memory === "number" ? { memoryBytes: memory } : {}),
    },
    disks,
  };
}

/** The node that a backup job puts over a disk for as long as it goes: bitmaps are those of the disk below it. */
const filters: readonly unknown[] = ["copy-before-write", "backup-top"];
const settleMs = 5_000;

/**
 * The devices once no job stands over a disk: one that was ended needs its time to go.
 * @throws ProviderUnreachable for one that stays: somebody else backs the machine up
 */
export async function settledDevices(qmp: Qmp): Promise<Record<string, unknown>[]> {
  const until = monotonicMs() + settleMs;
  for (;;) {
    const devices = await qmp.list("query-block");
    const covered = devices.find(({ inserted }) => inserted !== undefined && filters.includes(objectIn(inserted)["drv"]));
    if (!covered) return devices;
    if (monotonicMs() > until) throw new HypersdkError("ProviderUnreachable", `a backup job of another program goes on in QEMU at ${qmp.path}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** The devices with the disks themselves, where a job stands over them: that of an export, or what one that died has left. */
async function throughFilters(qmp: Qmp): Promise<Record<string, unknown>[]> {
  const devices = await qmp.list("query-block");
  const nodes = await qmp.list("query-named-block-nodes");
  return devices.map((device) => {
    if (device["inserted"] === undefined) return device;
    const inserted = objectIn(device["inserted"]);
    if (!filters.includes(inserted["drv"])) return device;
    const below = nodes.find(({ drv, file, "node-name": name }) => file === inserted["file"] && drv !== "file" && !filters.includes(drv) && !isOurs(name));
    return below ? { ...device, inserted: below } : device;
  });
}

function diskOf(inserted: Record<string, unknown>, others: readonly LiveDisk[]): LiveDisk {
  const image = objectIn(inserted["image"]);
  const { filename, format } = image;
  const node = inserted["node-name"];
  const virtualBytes = image["virtual-size"];
  if (
    typeof filename !== "string" ||
    typeof format !== "string" ||
    typeof node !== "string" ||
    typeof virtualBytes !== "number" ||
    !Number.isSafeInteger(virtualBytes) ||
    virtualBytes < 0
  )
    throw new HypersdkError("ProviderUnreachable", "QEMU describes a disk without file, format, node or size");
  const name = basename(filename);
  const specific = image["format-specific"] === undefined ? {} : objectIn(objectIn(image["format-specific"])["data"]);
  const dataBytes = image["actual-size"];
  const bitmaps = Array.isArray(inserted["dirty-bitmaps"]) ? inserted["dirty-bitmaps"].map(objectIn) : [];
  return {
    name: others.some((other) => other.name === name) ? `${name} (${node})` : name,
    file: filename,
    node,
    format,
    virtualBytes,
    dataBytes: typeof dataBytes === "number" ? Math.min(dataBytes, virtualBytes) : virtualBytes,
    keepsBitmaps: format === "qcow2" && specific["compat"] === "1.1",
    bitmaps: bitmaps.flatMap((bitmap): LiveBitmap[] =>
      typeof bitmap["name"] === "string"
        ? [
            {
              name: bitmap["name"],
              isSound: bitmap["inconsistent"] !== true && bitmap["busy"] !== true,
              isRecording: bitmap["recording"] === true,
              dirtyBytes: Number(bitmap["count"] ?? 0),
            },
          ]
        : [],
    ),
  };
}
