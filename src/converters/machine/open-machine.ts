import { basename, dirname, extname, join } from "node:path";
import { HypersdkError } from "../../model/errors.ts";
import { type ByteFile, openByteFile, sliceOf } from "../byte-file.ts";
import { type Neighbours, neighboursOf, noNeighbours } from "../neighbours.ts";
import { type OpenedImage, openImage, openImageFile } from "../open-image.ts";
import { checkManifest } from "./ovf-manifest.ts";
import { type TarMember, tarMembers } from "./tar-members.ts";
import { readVmDescriptor, type VmDescriptor } from "./vm-descriptor.ts";

/** A VM that one file describes: its hardware as far as it says, and its disks in boot order. */
export interface Machine {
  readonly descriptor: VmDescriptor;
  readonly disks: readonly MachineDisk[];
}

interface MachineDisk {
  readonly name: string;
  /** The file that holds it: its own, or the archive. */
  readonly path: string;
  open(): Promise<OpenedImage>;
}

/** Whether a path is that of a VM and not of a disk. */
export function isMachine(path: string): boolean {
  return /\.(ova|ovf|vmx)$/i.test(path);
}

/**
 * Opens an `.ova` in place, an `.ovf` or a `.vmx`, and checks the hashes of the manifest where there is one.
 * @throws ImageDamaged for a file that is missing or is not the one that was packed
 */
export async function openMachine(path: string, signal?: AbortSignal, allowBacking: readonly string[] = []): Promise<Machine> {
  if (/\.ova$/i.test(path)) return openArchive(path, signal);
  const descriptor = readVmDescriptor(path);
  if (descriptor.disks.length === 0) throw new HypersdkError("ImageDamaged", `${path} names no disk`);
  const neighbours = neighboursOf(path);
  const manifest = `${basename(path, extname(path))}.mf`;
  if (/\.ovf$/i.test(path) && neighbours.list().includes(manifest)) {
    const file = neighbours.open(manifest);
    try {
      await checkManifest(file, (name) => besides(neighbours, name), signal);
    } finally {
      await file.close();
    }
  }
  return { descriptor, disks: descriptor.disks.map((name) => ({ name, path: join(dirname(path), name), open: () => openDisk(path, name, allowBacking) })) };
}

/** Through its neighbours, so that a descriptor cannot name a file elsewhere. */
async function openDisk(path: string, name: string, allowBacking: readonly string[]): Promise<OpenedImage> {
  if (allowBacking.length === 0) await neighboursOf(path).open(name).close();
  else {
    const { file, neighbours } = neighboursOf(path, allowBacking).openParent(name);
    return openImageFile(file, neighbours);
  }
  return openImage(join(dirname(path), name));
}

function besides(neighbours: Neighbours, name: string): ByteFile | undefined {
  return neighbours.list().includes(name) ? neighbours.open(name) : undefined;
}

async function openArchive(path: string, signal?: AbortSignal): Promise<Machine> {
  const members = tarMembers(path);
  const ovf = members.find(({ name }) => /\.ovf$/i.test(name));
  if (!ovf) throw new HypersdkError("ImageDamaged", `${path}: the archive holds no .ovf`);
  await checkArchive(path, members, signal);
  const descriptor = readVmDescriptor(path, ovf);
  if (descriptor.disks.length === 0) throw new HypersdkError("ImageDamaged", `${path}: ${ovf.name} names no disk`);
  const disks = descriptor.disks.map((name) => {
    const member = members.find((each) => each.name === name);
    if (!member) throw new HypersdkError("ImageDamaged", `${path}: ${ovf.name} names the disk ${JSON.stringify(name)}, which the archive does not hold`);
    return {
      name,
      path,
      open: () => openImageFile(memberFile(path, member), noNeighbours),
    };
  });
  return { descriptor, disks };
}

/** Holds an archive's members against its manifest, where it has one. */
export async function checkArchive(path: string, members: readonly TarMember[], signal?: AbortSignal): Promise<void> {
  const manifest = members.find(({ name }) => /\.mf$/i.test(name));
  if (!manifest) return;
  const file = memberFile(path, manifest);
  try {
    await checkManifest(
      file,
      (name) => {
        const member = members.find((each) => each.name === name);
        return member && memberFile(path, member);
      },
      signal,
    );
  } finally {
    await file.close();
  }
}

function memberFile(path: string, { name, offset, length }: TarMember): ByteFile {
  const whole = openByteFile(path, name);
  return { ...sliceOf(whole, offset, length, name), close: () => whole.close() };
}
