import { type Dirent, existsSync, readdirSync, realpathSync, statSync } from "node:fs";
import { basename, dirname, extname, join, relative, resolve, sep } from "node:path";
import { readSlice } from "../../converters/machine/read-slice.ts";
import { tarMembers } from "../../converters/machine/tar-members.ts";
import { readVmDescriptor, type VmDescriptor } from "../../converters/machine/vm-descriptor.ts";
import { parseDescriptor } from "../../converters/vmdk/descriptor.ts";
import { errnoOf, errnoText, HypersdkError } from "../../model/errors.ts";
import { type Peeked, peek } from "./peek.ts";

/** A VM as its files in a folder tree. */
export interface FoundVm {
  /** Relative to the provider's folder: the VM's folder, or the image itself. */
  readonly identity: string;
  /** Names below the provider's root, from which the VM path is made. */
  readonly names: readonly string[];
  /** In boot order. */
  readonly disks: readonly FoundDisk[];
  readonly descriptor: VmDescriptor | undefined;
}

export interface FoundDisk {
  /** The image's name in its folder, or in its archive. */
  readonly name: string;
  /** The absolute path of the file that holds it. */
  readonly path: string;
  /** Where the image lies in an `.ova`; the whole file otherwise. */
  readonly within?: { readonly offset: number; readonly length: number };
  readonly peeked: Peeked;
}

export interface Discovery {
  readonly vms: readonly FoundVm[];
  readonly problems: readonly string[];
  /** What is there and cannot be read: a VM, or a folder with VMs below. */
  readonly unknown: readonly { readonly identity: string; readonly reason: string }[];
}

const imageExtensions: ReadonlySet<string> = new Set([".vmdk", ".qcow2", ".qcow", ".raw", ".img", ".vhd", ".vhdx", ".vdi", ".ova"]);
const maxDepth = 32;

/**
 * Walks a folder tree. A folder that directly holds images is one VM; an image directly at the top is one VM, and so is an
 * `.ova` anywhere. Links are followed only to files inside the tree. Synchronous on purpose: for ten thousand folders the calls
 * themselves are cheaper than waiting for each.
 * @param look what tells of an image by its head
 */
export function discover(top: string, look: typeof peek = peek): Discovery {
  const vms: FoundVm[] = [];
  const problems: string[] = [];
  const unknown: { identity: string; reason: string }[] = [];
  const root = rootOf(top);
  walk(root, []);
  return { vms: vms.sort((a, b) => (a.identity < b.identity ? -1 : 1)), problems: problems.sort(), unknown };

  function cannotBeRead(identity: string, reason: string): void {
    unknown.push({ identity, reason });
    problems.push(`${shown(join(root, identity))}: ${reason}`);
  }

  function walk(folder: string, names: readonly string[]): void {
    const entries = listOf(folder, names);
    if (!entries) return;
    const images: string[] = [];
    const descriptors: string[] = [];
    for (const entry of entries) {
      if (entry.name.startsWith(".")) continue;
      // no path.join here: this runs for every file of every machine
      const path = `${folder}/${entry.name}`;
      if (entry.isDirectory()) {
        if (names.length >= maxDepth) problems.push(`${shown(path)}: folders are nested deeper than ${maxDepth}`);
        else walk(path, [...names, entry.name]);
        continue;
      }
      const extension = extensionOf(entry.name);
      const isImage = imageExtensions.has(extension);
      if (entry.isSymbolicLink() && leadsToFolder(path)) problems.push(`${shown(path)} is a link to a folder: only folders themselves are looked into`);
      if (!isImage && extension !== ".vmx" && extension !== ".ovf") continue;
      if (entry.isSymbolicLink() && !leadsInside(path)) continue;
      if (!entry.isSymbolicLink() && !entry.isFile()) {
        problems.push(`${shown(path)} is no regular file, and is not read`);
        continue;
      }
      (isImage ? images : descriptors).push(entry.name);
    }
    const archives = images.filter((name) => extensionOf(name) === ".ova");
    for (const name of archives) add(folder, names, [name], undefined, true);
    const disks = images.filter((name) => !archives.includes(name)).sort();
    if (names.length === 0) for (const name of singleDisks(folder, disks)) add(folder, names, [name], undefined, true);
    else if (disks.length > 0) add(folder, names, disks, descriptorOf(folder, descriptors), false);
    if (descriptors.length > 0 && (names.length === 0 || disks.length === 0)) withoutDisks(folder, names, descriptors);
  }

  /** A VM whose descriptor is here and whose disks are not is told of: nobody would miss it otherwise. */
  function withoutDisks(folder: string, names: readonly string[], descriptors: readonly string[]): void {
    const descriptor = descriptorOf(folder, descriptors);
    const [disk] = descriptor?.disks ?? [];
    if (!descriptor || disk === undefined) return;
    if (names.length > 0) cannotBeRead(names.join("/"), notBeside(descriptor, disk));
    else problems.push(`${shown(join(folder, descriptor.file))} names disks, and has no folder: give it one of its own, with them`);
  }

  function add(folder: string, names: readonly string[], files: readonly string[], descriptor: VmDescriptor | undefined, isSingle: boolean): void {
    const first = files[0] as string;
    const identity = [...names, ...(isSingle ? [first] : [])].join("/");
    try {
      if (isSingle && extensionOf(first) === ".ova") {
        const { disks, descriptor: inside } = readArchive(join(folder, first));
        vms.push({ identity, names: [...names, stem(first)], disks, descriptor: inside });
        return;
      }
      const ordered = orderOf(files, descriptor, folder);
      const disks = ordered.map((name): FoundDisk => ({ name, path: `${folder}/${name}`, peeked: look(`${folder}/${name}`, name) }));
      vms.push({ identity, names: isSingle ? [...names, stem(first)] : names, disks, descriptor });
    } catch (error) {
      cannotBeRead(identity, reasonOf(error));
    }
  }

  /** An image that cannot be read, so that nobody knows what belongs to it, is told of when it is looked at. */
  function singleDisks(folder: string, files: readonly string[]): string[] {
    try {
      return disksOf(folder, files);
    } catch (error) {
      reasonOf(error);
      return [...files];
    }
  }

  /** The images that are disks, in the descriptor's order where there is one; extents belong to their descriptor. */
  function orderOf(files: readonly string[], descriptor: VmDescriptor | undefined, folder: string): string[] {
    const disks = disksOf(folder, files);
    if (!descriptor || descriptor.disks.length === 0) return disks;
    for (const name of descriptor.disks) if (!files.includes(name)) throw new HypersdkError("ImageDamaged", notBeside(descriptor, name));
    return [...descriptor.disks];
  }

  function disksOf(folder: string, files: readonly string[]): string[] {
    const parts = new Set<string>();
    for (const name of files) {
      const extension = extensionOf(name);
      const named = extension === ".vmdk" ? partsNamedBy(join(folder, name)) : extension === ".qcow2" ? backingNamedBy(join(folder, name)) : [];
      for (const part of named) if (part !== name) parts.add(part);
    }
    return files.filter((name) => !parts.has(name));
  }

  function descriptorOf(folder: string, names: readonly string[]): VmDescriptor | undefined {
    const sorted = [...names].sort((a, b) => Number(a.endsWith(".ovf")) - Number(b.endsWith(".ovf")) || (a < b ? -1 : 1));
    const chosen = sorted[0];
    if (chosen === undefined) return undefined;
    try {
      return readVmDescriptor(join(folder, chosen));
    } catch (error) {
      problems.push(`${shown(join(folder, chosen))}: ${reasonOf(error)}; the disks are taken in the order of their names`);
      return undefined;
    }
  }

  function listOf(folder: string, names: readonly string[]): Dirent[] | undefined {
    try {
      return readdirSync(folder, { withFileTypes: true });
    } catch (error) {
      if (folder === root) throw new HypersdkError("ProviderUnreachable", `cannot read the folder ${top}: ${errnoText(error)}`, { cause: error });
      cannotBeRead(names.join("/"), reasonOf(error));
      return undefined;
    }
  }

  function leadsToFolder(path: string): boolean {
    try {
      return statSync(path).isDirectory();
    } catch {
      return false;
    }
  }

  function leadsInside(path: string): boolean {
    try {
      const real = realpathSync(path);
      if (!statSync(real).isFile()) return false;
      if (real.startsWith(root + sep)) return true;
      problems.push(`${shown(path)} is a link that leads out of ${top}: refused`);
    } catch {
      problems.push(`${shown(path)} is a link that leads nowhere`);
    }
    return false;
  }

  function shown(path: string): string {
    return JSON.stringify(relative(root, path).split(sep).join("/")).slice(1, -1);
  }
}

function notBeside({ file }: VmDescriptor, disk: string): string {
  return `${file} names the disk ${JSON.stringify(disk)}, which is not beside it`;
}

function rootOf(top: string): string {
  try {
    return realpathSync(top);
  } catch (error) {
    throw new HypersdkError("ProviderUnreachable", `the folder ${top} is not there`, { cause: error, hint: "create it, or correct the provider's path" });
  }
}

/** Of an expected failure; anything else is a bug and goes on. */
function reasonOf(error: unknown): string {
  if (error instanceof HypersdkError) return error.message;
  if (errnoOf(error) === undefined) throw error;
  return `cannot be read: ${errnoText(error)}`;
}

/** `.vmdk` of `Web.VMDK`; not by path.extname, as this runs for every file of every machine. */
function extensionOf(name: string): string {
  const dot = name.lastIndexOf(".");
  return dot > 0 ? name.slice(dot).toLowerCase() : "";
}

function stem(name: string): string {
  return basename(name, extname(name));
}

/** The extents and the parent that a text descriptor names; nothing for any other file. */
function partsNamedBy(path: string): string[] {
  const size = statSync(path).size;
  if (size > 1 << 20) return [];
  const text = readSlice(path, 0, size).toString("utf8");
  if (!/^\uFEFF?\s*#\s*Disk\s*Descriptor\s*File/i.test(text)) return [];
  try {
    const { extents, parent } = parseDescriptor(path, text);
    return [...extents.flatMap(({ fileName }) => fileName ?? []), ...(parent ? [basename(parent.fileName)] : [])];
  } catch {
    return [];
  }
}

/** The backing file beside a QCOW2 image: it is part of that disk, not one of its own. @throws ImageDamaged where it is missing */
function backingNamedBy(path: string): string[] {
  const head = readSlice(path, 0, 32);
  if (head.length < 32 || head.readUInt32BE(0) !== 0x514649fb || head.readBigUInt64BE(8) === 0n) return [];
  const length = head.readUInt32BE(16);
  const name = length > 0 && length <= 1023 ? readSlice(path, Number(head.readBigUInt64BE(8) & 0xffffffffffffn), length).toString("utf8") : "";
  const isFile = name !== "" && !/^[A-Za-z][A-Za-z0-9+.-]+:|[\u0000-\u001f]/.test(name);
  if (isFile && !existsSync(resolve(dirname(path), name)))
    throw new HypersdkError("ImageDamaged", `${basename(path)}: the file ${JSON.stringify(name)} that it is based on is missing`);
  const beside = isFile ? relative(dirname(path), resolve(dirname(path), name)) : "";
  return beside === "" || beside.includes("/") ? [] : [beside];
}

function readArchive(path: string): { disks: FoundDisk[]; descriptor: VmDescriptor | undefined } {
  const members = tarMembers(path);
  const ovf = members.find(({ name }) => name.toLowerCase().endsWith(".ovf"));
  if (!ovf) throw new HypersdkError("ImageDamaged", "the archive holds no .ovf");
  const descriptor = readVmDescriptor(path, ovf);
  const disks = descriptor.disks.map((name): FoundDisk => {
    const member = members.find((each) => each.name === name);
    if (!member) throw new HypersdkError("ImageDamaged", `${ovf.name} names the disk ${JSON.stringify(name)}, which the archive does not hold`);
    const within = { offset: member.offset, length: member.length };
    return { name, path, within, peeked: peek(path, name, within) };
  });
  if (disks.length === 0) throw new HypersdkError("ImageDamaged", `${ovf.name} names no disk`);
  return { disks, descriptor };
}
