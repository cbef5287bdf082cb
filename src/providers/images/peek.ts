import { closeSync, constants, fstatSync, openSync, readSync } from "node:fs";
import { detectHead, isVhdFooter } from "../../converters/detect.ts";
import { itemIds, readGuid, regionIds, regionOffsets } from "../../converters/vhdx/layout.ts";
import { parseDescriptor } from "../../converters/vmdk/descriptor.ts";
import { errnoOf, HypersdkError } from "../../model/errors.ts";

/** What the first bytes of an image tell, for an inventory: cheap, and never trusted by the reader that follows. */
export interface Peeked {
  readonly format: string;
  readonly virtualBytes: number;
  /** Allocated bytes of the file or member. */
  readonly dataBytes: number;
  /** Other files have a say in it. */
  readonly hasExtents?: true;
}

/** One buffer for all heads: an inventory looks at ten thousand. Nothing keeps a view of it. */
const scratch = Buffer.alloc(512);

export function peek(path: string, name: string, within?: { readonly offset: number; readonly length: number }): Peeked {
  let descriptor: number;
  try {
    descriptor = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    throw new HypersdkError("SourceUnavailable", `${name} cannot be opened: ${(error as NodeJS.ErrnoException).code}`, { cause: error });
  }
  try {
    const stat = fstatSync(descriptor);
    const sizeBytes = within?.length ?? stat.size;
    const head = scratch.subarray(0, Math.min(sizeBytes, 512));
    readSync(descriptor, head, 0, head.length, within?.offset ?? 0);
    const dataBytes = within?.length ?? Math.min(stat.size, stat.blocks * 512);
    const found = detectHead(head);
    if (found.kind === "unread") return { format: found.name, virtualBytes: 0, dataBytes };
    if (found.kind === "nothing") {
      if (/\.vhd$/i.test(name)) return { format: "vhd", virtualBytes: fixedVhdBytes(descriptor, name, (within?.offset ?? 0) + sizeBytes), dataBytes };
      if (/\.(vmdk|qcow2?|vhdx|vdi)$/i.test(name))
        throw new HypersdkError("ImageDamaged", `${name} holds no ${name.split(".").at(-1)} image: its header is missing`);
      return { format: "raw", virtualBytes: sizeBytes, dataBytes };
    }
    if (/\.raw$/i.test(name)) {
      throw new HypersdkError("ImageUnsafe", `${name} is named raw, but begins like a ${found.format.split("-")[0]} image: a guest may have written that`, {
        hint: "give the file the extension of what it really is",
      });
    }
    switch (found.format) {
      case "qcow2":
        return { format: "qcow2", virtualBytes: head.length >= 32 ? Number(head.readBigUInt64BE(24)) : 0, dataBytes };
      case "vhd":
        return { format: "vhd", virtualBytes: head.length >= 56 ? Number(head.readBigUInt64BE(48)) : 0, dataBytes };
      case "vdi":
        return { format: "vdi", virtualBytes: head.length >= 376 ? Number(head.readBigUInt64LE(368)) : 0, dataBytes };
      case "vhdx":
        return { format: "vhdx", virtualBytes: vhdxBytes(descriptor, within?.offset ?? 0), dataBytes };
      case "vmdk-cowd":
        return { format: "vmdk", virtualBytes: head.length >= 16 ? head.readUInt32LE(12) * 512 : 0, dataBytes };
      case "vmdk-sesparse":
        return { format: "vmdk", virtualBytes: head.length >= 24 ? Number(head.readBigUInt64LE(16)) * 512 : 0, dataBytes };
      case "vmdk-sparse":
        return { format: "vmdk", virtualBytes: head.length >= 20 ? Number(head.readBigUInt64LE(12)) * 512 : 0, dataBytes };
      case "vmdk-descriptor": {
        const text = Buffer.alloc(Math.min(sizeBytes, 1 << 20));
        readSync(descriptor, text, 0, text.length, within?.offset ?? 0);
        const virtualBytes = parseDescriptor(name, text.toString("utf8")).extents.reduce((sum, extent) => sum + extent.sizeBytes, 0);
        return { format: "vmdk", virtualBytes, dataBytes: Math.min(virtualBytes, extentBytes(path, name, text.toString("utf8"))), hasExtents: true };
      }
    }
  } finally {
    closeSync(descriptor);
  }
}

/** A fixed VHD has nothing but its footer at the end. */
function fixedVhdBytes(descriptor: number, name: string, end: number): number {
  const footer = Buffer.alloc(512);
  if (end < 512 || readSync(descriptor, footer, 0, 512, end - 512) < 512 || !isVhdFooter(footer))
    throw new HypersdkError("ImageDamaged", `${name} holds no vhd image: its footer is missing`);
  return Number(footer.readBigUInt64BE(48));
}

/** The virtual size stands in the metadata, which the region table finds; 0 where they cannot be found. */
function vhdxBytes(descriptor: number, start: number): number {
  const find = (tableAt: number, first: number, id: string): Buffer | undefined => {
    const table = Buffer.alloc(4096);
    readSync(descriptor, table, 0, table.length, start + tableAt);
    for (let at = first; at + 32 <= table.length; at += 32) if (readGuid(table, at) === id) return table.subarray(at, at + 32);
    return undefined;
  };
  const region = find(regionOffsets[0], 16, regionIds.metadata);
  if (!region) return 0;
  const metadataAt = Number(region.readBigUInt64LE(16));
  const item = find(metadataAt, 32, itemIds.virtualSize);
  if (!item) return 0;
  const size = Buffer.alloc(8);
  readSync(descriptor, size, 0, 8, start + metadataAt + item.readUInt32LE(16));
  return Number(size.readBigUInt64LE(0));
}

/** Allocated bytes of the extents beside a descriptor. @throws ImageDamaged where one is missing */
function extentBytes(path: string, name: string, text: string): number {
  const folder = path.slice(0, path.length - name.length);
  let bytes = 0;
  for (const { fileName } of parseDescriptor(name, text).extents) {
    if (!fileName || /[/\\]/.test(fileName)) continue;
    try {
      const descriptor = openSync(folder + fileName, constants.O_RDONLY | constants.O_NONBLOCK);
      bytes += fstatSync(descriptor).blocks * 512;
      closeSync(descriptor);
    } catch (error) {
      throw new HypersdkError(
        "ImageDamaged",
        `${name}: the file ${fileName} that belongs to it ${errnoOf(error) === "ENOENT" ? "is missing" : "cannot be opened"}`,
        {
          cause: error,
        },
      );
    }
  }
  return bytes;
}
