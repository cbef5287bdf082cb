import type { BlockSource } from "../block-source.ts";
import { type ByteFile, readBytes } from "../byte-file.ts";
import { checkVirtualSize, damaged } from "../checked.ts";
import { concatSource, partOf, zeroSource } from "../concat-source.ts";
import type { Neighbours } from "../neighbours.ts";
import { openRaw } from "../raw/raw-source.ts";
import { maxDescriptorBytes, parseDescriptor, type VmdkExtent } from "./descriptor.ts";
import { readSparseHeader } from "./sparse-header.ts";
import { sparseSource } from "./sparse-source.ts";

export interface OpenedVmdk {
  readonly source: BlockSource;
  /** monolithicSparse, streamOptimized, twoGbMaxExtentFlat, … as the descriptor says. */
  readonly variant: string;
  /** The other files of the disk, as the descriptor names them. */
  readonly extentFiles: readonly string[];
}

/** A VMDK that is one sparse file: header, grains, and a descriptor inside that may be missing. */
export async function openSparseVmdk(file: ByteFile): Promise<OpenedVmdk> {
  const header = await readSparseHeader(file);
  let variant = header.isCompressed ? "streamOptimized" : "monolithicSparse";
  if (header.descriptorOffset > 0 && header.descriptorBytes > 0) {
    const text = await readBytes(file, header.descriptorOffset, header.descriptorBytes, maxDescriptorBytes);
    // a zero-filled descriptor area is an extent of a split disk
    if (text.includes("createType")) variant = parseDescriptor(file.name, text.toString("latin1")).createType || variant;
  }
  return { source: sparseSource(file, header), variant, extentFiles: [] };
}

/** A VMDK whose descriptor is a text file of its own and names the extents, which must lie beside it. */
export async function openDescribedVmdk(file: ByteFile, neighbours: Neighbours): Promise<OpenedVmdk> {
  const text = (await readBytes(file, 0, file.sizeBytes, maxDescriptorBytes)).toString("utf8");
  const { createType, extents } = parseDescriptor(file.name, text);
  const parts: BlockSource[] = [];
  try {
    for (const extent of extents) parts.push(await openExtent(file.name, extent, neighbours));
    const source = concatSource(parts);
    checkVirtualSize(file.name, source.sizeBytes);
    await file.close();
    return { source, variant: createType, extentFiles: extents.flatMap((extent) => extent.fileName ?? []) };
  } catch (error) {
    await Promise.allSettled(parts.map((part) => part.close()));
    throw error;
  }
}

async function openExtent(image: string, extent: VmdkExtent, neighbours: Neighbours): Promise<BlockSource> {
  if (extent.fileName === undefined || extent.access === "NOACCESS") return zeroSource(extent.sizeBytes);
  const file = neighbours.open(extent.fileName);
  try {
    if (extent.type === "SPARSE") {
      const source = sparseSource(file, await readSparseHeader(file));
      if (source.sizeBytes < extent.sizeBytes)
        throw damaged(image, `the extent ${extent.fileName} holds ${source.sizeBytes} bytes, the descriptor says ${extent.sizeBytes}`);
      return source.sizeBytes === extent.sizeBytes ? source : partOf(source, 0, extent.sizeBytes);
    }
    if (extent.offsetBytes + extent.sizeBytes > file.sizeBytes) {
      throw damaged(image, `the extent ${extent.fileName} has ${file.sizeBytes} bytes, the descriptor needs ${extent.offsetBytes + extent.sizeBytes}`);
    }
    return partOf(await openRaw(file), extent.offsetBytes, extent.sizeBytes);
  } catch (error) {
    await file.close();
    throw error;
  }
}
