import { readdirSync } from "node:fs";
import { basename, join } from "node:path";
import type { ProviderSpec } from "../../model/desired.ts";
import { errnoOf, errnoText, HypersdkError } from "../../model/errors.ts";
import type { ObservedVm } from "../../model/observed.ts";
import type { Clock } from "../../model/ports.ts";
import { vmPathUnder } from "../../model/vm-path.ts";
import { discover, type FoundDisk, type FoundVm } from "../images/discover.ts";
import { observedVm } from "../images/observed-vm.ts";
import type { Provider } from "../provider.ts";
import { isOurs, isOwnedBy } from "./bitmaps.ts";
import { liveSnapshot } from "./live-snapshot.ts";
import { type LiveVm, lookAt } from "./live-vm.ts";
import { Qmp } from "./qmp.ts";
import { marksOf, storedTracking } from "./stored-bitmaps.ts";

const monitorEnding = ".qmp";

/**
 * QEMU machines of this host. A VM is NAME, where `sockets` holds its monitor NAME.qmp; while nobody listens there it is off, and its
 * disks are the images in `path`/NAME, as those of a local provider are.
 */
export function qemuProvider(spec: ProviderSpec, clock: Clock): Provider {
  const sockets = spec.sockets ?? spec.path;
  const socketOf = (name: string, ending: string): string => join(sockets, `${name}${ending}`);

  /** The machines that run, by name, and those whose monitors do not answer. */
  async function running(names: readonly string[]): Promise<{ readonly live: Map<string, LiveVm>; readonly unknown: { identity: string; reason: string }[] }> {
    const live = new Map<string, LiveVm>();
    const unknown: { identity: string; reason: string }[] = [];
    const ask = async (name: string): Promise<void> => {
      let qmp: Qmp | undefined;
      try {
        qmp = await connected(socketOf(name, monitorEnding));
        if (qmp) live.set(name, await lookAt(qmp, name));
      } catch (error) {
        if (!(error instanceof HypersdkError)) throw error;
        unknown.push({ identity: name, reason: error.message });
      } finally {
        qmp?.close();
      }
    };
    // side by side: one that does not answer costs its time once
    await Promise.all(names.map(ask));
    return { live, unknown: unknown.sort((a, b) => (a.identity < b.identity ? -1 : 1)) };
  }

  return {
    name: spec.name,
    type: "qemu",
    tracksChanges: true,
    async inventory() {
      const names = monitorsIn(sockets);
      const { live, unknown } = await running(names);
      const off = imagesIn(spec.path);
      const vms: ObservedVm[] = [];
      const problems = [...off.problems];
      for (const [name, vm] of live) {
        const path = vmPathUnder(spec.root, [name]);
        if (!path) problems.push(`${JSON.stringify(name)} cannot be a VM path`);
        else vms.push(observedLive(spec.name, path, name, vm));
      }
      for (const vm of off.vms) {
        const path = vmPathUnder(spec.root, vm.names);
        if (!path || live.has(vm.identity) || unknown.some(({ identity }) => identity === vm.identity)) continue;
        vms.push({ ...(await withMarks(observedVm(spec.name, path, vm), vm)), isRunning: false });
      }
      const unread = off.unknown.filter(({ identity }) => !live.has(identity) && !unknown.some((each) => each.identity === identity));
      return { vms: vms.sort((a, b) => (a.path < b.path ? -1 : 1)), problems: problems.sort(), unknown: [...unknown, ...unread] };
    },
    async snapshot(identity, { ready, track } = {}) {
      if (!identity.includes("/")) {
        const qmp = await connected(socketOf(identity, monitorEnding));
        if (qmp) {
          return liveSnapshot(identity, qmp, { clock, agentPath: socketOf(identity, ".qga"), scratch: spec.scratch, ready, track });
        }
      }
      const vm = imagesIn(spec.path).vms.find((each) => each.identity === identity);
      if (!vm) throw new HypersdkError("NotFound", `provider ${spec.name} has no VM ${JSON.stringify(identity)}`);
      const { imageSnapshot } = await import("../images/image-snapshot.ts");
      return imageSnapshot(vm, clock, async (disk) => (track ? storedTracking(disk, track, (name) => isOwnedBy(name, track.owner), true) : undefined));
    },
  };
}

/** Undefined where nobody listens: the machine is off. @throws ProviderUnreachable for one that does not answer: it is not to be taken for gone */
async function connected(path: string): Promise<Qmp | undefined> {
  try {
    return await Qmp.connect(path);
  } catch (error) {
    const errno = error instanceof HypersdkError ? errnoOf(error.cause) : undefined;
    if (errno === "ECONNREFUSED" || errno === "ENOENT") return undefined;
    throw error;
  }
}

function monitorsIn(folder: string): string[] {
  try {
    return readdirSync(folder)
      .filter((name) => name.endsWith(monitorEnding) && !name.startsWith("."))
      .map((name) => basename(name, monitorEnding))
      .sort();
  } catch (error) {
    throw new HypersdkError("ProviderUnreachable", `cannot read the folder of monitors ${folder}: ${errnoText(error)}`, {
      cause: error,
      hint: "create it, or correct the provider's `sockets`",
    });
  }
}

/** Images of machines that are off; there need be none. */
function imagesIn(path: string): ReturnType<typeof discover> {
  try {
    return discover(path);
  } catch (error) {
    if (error instanceof HypersdkError && errnoOf(error.cause) === "ENOENT") return { vms: [], problems: [], unknown: [] };
    throw error;
  }
}

function observedLive(provider: string, path: ObservedVm["path"], identity: string, { hardware, disks }: LiveVm): ObservedVm {
  return {
    provider,
    path,
    identity,
    name: hardware.name,
    isRunning: true,
    disks: disks.map(({ name, format, virtualBytes, dataBytes, bitmaps }) => ({
      name,
      format,
      virtualBytes,
      dataBytes,
      marks: bitmaps.filter((bitmap) => bitmap.isSound && isOurs(bitmap.name)).map((bitmap) => ({ name: bitmap.name, changedBytes: bitmap.dirtyBytes })),
    })),
  };
}

/** What the images keep of marks while the VM is off. */
async function withMarks(observed: ObservedVm, { disks }: FoundVm): Promise<ObservedVm> {
  const withThem: ObservedVm["disks"][number][] = [];
  for (const [i, disk] of observed.disks.entries()) {
    const marks = await marksOf(disks[i] as FoundDisk);
    withThem.push({ ...disk, ...(marks ? { marks } : {}) });
  }
  return { ...observed, disks: withThem };
}
