import type { BlockSource } from "../block-source.ts";
import { type ByteFile, readBytes } from "../byte-file.ts";
import { checkVirtualSize, damaged } from "../checked.ts";
import { concatSource, partOf, zeroSource } from "../concat-source.ts";
import type { ImageDetails, Layer, ParentReference } from "../layer.ts";
import type { Neighbours } from "../neighbours.ts";
import { openRaw } from "../raw/raw-source.ts";
import { checkSparse } from "./check-sparse.ts";
import { readCowdHeader } from "./cowd.ts";
import { maxDescriptorBytes, parseDescriptor, type VmdkDescriptor, type VmdkExtent } from "./descriptor.ts";
import { openSeSparse } from "./se-sparse.ts";
import { readSparseHeader } from "./sparse-header.ts";
import { sparseSource } from "./sparse-source.ts";

/** A VMDK that is one sparse file: header, grains, and a descriptor inside that may be missing. */
export async function openSparseVmdk(file: ByteFile): Promise<Layer> {
  const header = await readSparseHeader(file);
  const details: ImageDetails = { blockBytes: header.grainBytes, ...(header.isCompressed ? { features: ["deflated grains"] } : {}) };
  const unnamed: Layer = {
    format: "vmdk",
    variant: header.isCompressed ? "streamOptimized" : "monolithicSparse",
    source: sparseSource(file, header),
    ...(header.isCompressed ? {} : { crossCheck: () => checkSparse(file, header) }),
    details,
  };
  if (header.descriptorOffset === 0 || header.descriptorBytes === 0) return unnamed;
  const text = await readBytes(file, header.descriptorOffset, header.descriptorBytes, maxDescriptorBytes);
  // a zero-filled descriptor area is that of an extent of a split disk
  if (!text.includes("createType")) return unnamed;
  const descriptor = parseDescriptor(file.name, text.toString("latin1"));
  if (descriptor.createType === "streamOptimized" && !header.isCompressed)
    throw damaged(file.name, "the descriptor says streamOptimized, but the flags say that grains are not compressed");
  return { ...unnamed, ...described(descriptor), variant: descriptor.createType || unnamed.variant };
}

/** A VMDK whose descriptor is a text file of its own and names the extents, which must lie beside it. */
export async function openDescribedVmdk(file: ByteFile, neighbours: Neighbours): Promise<Layer> {
  const text = (await readBytes(file, 0, file.sizeBytes, maxDescriptorBytes)).toString("utf8");
  const descriptor = parseDescriptor(file.name, text);
  const parts: BlockSource[] = [];
  try {
    for (const extent of descriptor.extents) parts.push(await openExtent(file.name, extent, neighbours));
    const source = concatSource(parts);
    checkVirtualSize(file.name, source.sizeBytes);
    await file.close();
    return { format: "vmdk", variant: descriptor.createType, source, details: {}, ...described(descriptor) };
  } catch (error) {
    await Promise.allSettled(parts.map((part) => part.close()));
    throw error;
  }
}

/** A lone extent of ESX, without its descriptor. */
export async function openBareExtent(file: ByteFile, kind: "COWD" | "seSparse"): Promise<Layer> {
  const source = kind === "COWD" ? sparseSource(file, await readCowdHeader(file)) : await openSeSparse(file);
  return {
    format: "vmdk",
    variant: kind === "COWD" ? "vmfsSparse" : "seSparse",
    source,
    details: { notes: ["an extent without its descriptor: whether it is a difference to a parent is not known"] },
  };
}

function described({ cid, parent }: VmdkDescriptor): { readonly identity?: string; readonly parent?: ParentReference } {
  return {
    ...(cid === undefined ? {} : { identity: cid }),
    ...(parent ? { parent: { names: parent.fileName === "" ? [] : [parent.fileName], identity: parent.cid, format: "vmdk" as const } } : {}),
  };
}

async function openExtent(image: string, extent: VmdkExtent, neighbours: Neighbours): Promise<BlockSource> {
  if (extent.fileName === undefined || extent.access === "NOACCESS") return zeroSource(extent.sizeBytes);
  const file = neighbours.open(extent.fileName);
  try {
    if (extent.type === "FLAT" || extent.type === "VMFS") {
      if (extent.offsetBytes + extent.sizeBytes > file.sizeBytes)
        throw damaged(image, `the extent ${extent.fileName} has ${file.sizeBytes} bytes, the descriptor needs ${extent.offsetBytes + extent.sizeBytes}`);
      return partOf(await openRaw(file), extent.offsetBytes, extent.sizeBytes);
    }
    const source = await sparseExtent(extent.type, file);
    if (source.sizeBytes < extent.sizeBytes)
      throw damaged(image, `the extent ${extent.fileName} holds ${source.sizeBytes} bytes, the descriptor says ${extent.sizeBytes}`);
    return source.sizeBytes === extent.sizeBytes ? source : partOf(source, 0, extent.sizeBytes);
  } catch (error) {
    await file.close();
    throw error;
  }
}

async function sparseExtent(type: VmdkExtent["type"], file: ByteFile): Promise<BlockSource> {
  if (type === "SESPARSE") return openSeSparse(file);
  return sparseSource(file, type === "VMFSSPARSE" ? await readCowdHeader(file) : await readSparseHeader(file));
}
