import { statSync } from "node:fs";
import { HypersdkError } from "../model/errors.ts";
import type { ImageFormat } from "../model/image-formats.ts";
import type { BlockSource } from "./block-source.ts";
import { type ByteFile, openByteFile } from "./byte-file.ts";
import { damaged, unsupported } from "./checked.ts";
import { concatSource } from "./concat-source.ts";
import { detect } from "./detect.ts";
import type { ImageDetails, Layer, ParentReference } from "./layer.ts";
import { type Neighbours, neighboursOf } from "./neighbours.ts";
import { overlaySource } from "./overlay-source.ts";
import { openRaw } from "./raw/raw-source.ts";

export interface OpenedImage {
  readonly format: ImageFormat;
  /** What kind of that format: `v3`, `streamOptimized`, `sparse`; for people. */
  readonly variant: string;
  /** The disk, its parents included. */
  readonly source: BlockSource;
  /** Absolute paths of the other files it is made of: extents and parents. */
  readonly otherFiles: readonly string[];
  /** The image and the ones that it is a difference to, nearest first. */
  readonly chain: readonly { readonly file: string; readonly format: ImageFormat; readonly variant: string }[];
  readonly details: ImageDetails;
  /** Why its parents are not there, where it was opened without them. */
  readonly problem?: HypersdkError;
  readonly blocks?: Layer["blocks"];
  readonly crossCheck?: Layer["crossCheck"];
}

export interface OpenOptions {
  /** Open it also when a parent cannot be: for looking at it, its content is not that of the disk. */
  readonly mayLackParents?: boolean;
  /** That it is raw, whatever its first bytes are, or that it must be the named format. */
  readonly from?: ImageFormat;
  /** Folders outside the image's own that may hold its parents. */
  readonly allowBacking?: readonly string[];
}

/** No tool that makes chains makes them this deep. */
const maxChain = 64;

/**
 * Opens a disk image by its content, with the whole chain of images that it is a difference to.
 * @throws ImageUnsupported for a format that is not read, ImageDamaged for one that contradicts itself, ImageUnsafe for one that
 * names files it may not name
 */
export async function openImage(path: string, options: OpenOptions = {}): Promise<OpenedImage> {
  for (const folder of options.allowBacking ?? [])
    if (!statSync(folder, { throwIfNoEntry: false })?.isDirectory()) throw new HypersdkError("Usage", `--allow-backing ${folder} is no folder`);
  return openImageFile(openByteFile(path), neighboursOf(path, options.allowBacking), options.from, options.mayLackParents);
}

export async function openImageFile(file: ByteFile, neighbours: Neighbours, from?: ImageFormat, mayLackParents: boolean = false): Promise<OpenedImage> {
  const opened = await openChain(file, neighbours, from, new Set(), mayLackParents);
  return { ...opened, otherFiles: [...new Set(neighbours.opened)] };
}

async function openChain(
  file: ByteFile,
  neighbours: Neighbours,
  from: ImageFormat | undefined,
  seen: Set<string>,
  mayLackParents: boolean = false,
): Promise<Omit<OpenedImage, "otherFiles">> {
  if (file.id !== undefined && seen.has(file.id)) {
    await file.close();
    throw damaged(file.name, "the chain of parents comes back to this image");
  }
  if (file.id !== undefined) seen.add(file.id);
  if (seen.size > maxChain) {
    await file.close();
    throw damaged(file.name, `the chain of parents is longer than ${maxChain} images`);
  }
  const layer = await openLayer(file, neighbours, from, seen.size > 1);
  const { format, variant, source, details } = layer;
  const link = { file: file.name, format, variant };
  const own = { format, variant, details, ...(layer.blocks ? { blocks: layer.blocks } : {}), ...(layer.crossCheck ? { crossCheck: layer.crossCheck } : {}) };
  if (!layer.parent) return { ...own, source, chain: [link] };
  try {
    const found = await openParent(file.name, layer.parent, neighbours, seen);
    if (found.source.sizeBytes > source.sizeBytes && format !== "qcow2")
      throw damaged(file.name, `its parent is larger: ${found.source.sizeBytes} bytes, not ${source.sizeBytes}`);
    return { ...own, source: overlaySource(source, found.source), chain: [link, ...found.chain] };
  } catch (error) {
    if (mayLackParents && error instanceof HypersdkError) return { ...own, source, chain: [link], problem: error };
    await source.close().catch(() => {});
    throw error;
  }
}

/** One image without its parents. */
async function openLayer(file: ByteFile, neighbours: Neighbours, from: ImageFormat | undefined, isParent: boolean): Promise<Layer> {
  try {
    if (from === "raw") return isParent ? await wholeRaw(file) : await rawLayer(file, neighbours);
    if (file.sizeBytes === 0) throw new HypersdkError("ImageDamaged", `${file.name}: the file is empty`);
    const found = await detect(file);
    if (found.kind === "unread")
      throw unsupported(file.name, `this is ${found.name}, which is not read`, /^(gzip|xz|zstd|bzip2|ZIP)$/.test(found.name) ? "unpack it first" : undefined);
    const format = found.kind === "nothing" ? "raw" : (found.format.split("-")[0] as ImageFormat);
    if (from && from !== format) throw new HypersdkError("ImageDamaged", `${file.name}: this is no ${from} image, its content says ${format}`);
    const [, named] = /\.(qcow2|vmdk|vhdx?|vdi)$/i.exec(file.name) ?? [];
    if (found.kind === "nothing" && from === undefined && !isParent && named !== undefined)
      throw new HypersdkError("ImageDamaged", `${file.name} holds no ${named.toLowerCase()} image: its header is missing`, {
        hint: "where the disk's content lies in it as it is, say --from raw",
      });
    if (found.kind === "nothing") return isParent ? await wholeRaw(file) : await rawLayer(file, neighbours);
    if (from === undefined && !isParent && /\.raw$/i.test(file.name))
      throw new HypersdkError("ImageUnsafe", `${file.name} is named raw, but begins like a ${format} image: a guest may have written that`, {
        hint: `say what it is: --from raw, or --from ${format}`,
      });
    // an export reads one format or two: the others' readers are not loaded
    switch (found.format) {
      case "qcow2":
        return await (await import("./qcow2/qcow2-source.ts")).openQcow2(file);
      case "vmdk-sparse":
        return await (await import("./vmdk/open-vmdk.ts")).openSparseVmdk(file);
      case "vmdk-descriptor":
        return await (await import("./vmdk/open-vmdk.ts")).openDescribedVmdk(file, neighbours);
      case "vmdk-cowd":
        return await (await import("./vmdk/open-vmdk.ts")).openBareExtent(file, "COWD");
      case "vmdk-sesparse":
        return await (await import("./vmdk/open-vmdk.ts")).openBareExtent(file, "seSparse");
      case "vhd":
        return await (await import("./vhd/vhd-source.ts")).openVhd(file);
      case "vhdx":
        return await (await import("./vhdx/vhdx-source.ts")).openVhdx(file);
      case "vdi":
        return await (await import("./vdi/vdi-source.ts")).openVdi(file);
    }
  } catch (error) {
    await file.close().catch(() => {});
    throw error;
  }
}

async function wholeRaw(file: ByteFile): Promise<Layer> {
  const variant = (file.allocatedBytes ?? file.sizeBytes) < file.sizeBytes ? "sparse" : "full";
  return { format: "raw", variant, source: await openRaw(file), details: {} };
}

/** The file is the disk; `disk.001` with `disk.002` beside it is one that was split, and no part of it may be missing. */
async function rawLayer(file: ByteFile, neighbours: Neighbours): Promise<Layer> {
  const whole = await wholeRaw(file);
  const [, stem, number] = /^(.*\.)(0{2,}1)$/.exec(file.name.split("/").at(-1) ?? "") ?? [];
  if (stem === undefined || number === undefined) return whole;
  const named = (i: number): string => stem + String(i).padStart(number.length, "0");
  const parts = [whole.source];
  try {
    for (let i = 2; neighbours.has(named(i)); i++) parts.push(await openRaw(neighbours.open(named(i))));
    const missing = named(parts.length + 1);
    if (neighbours.has(named(parts.length + 2))) throw damaged(file.name, `the disk was split, and its part ${missing} is missing`);
  } catch (error) {
    await Promise.allSettled(parts.map((part) => part.close()));
    throw error;
  }
  return parts.length === 1 ? whole : { ...whole, variant: `split in ${parts.length}`, source: concatSource(parts) };
}

async function openParent(child: string, parent: ParentReference, neighbours: Neighbours, seen: Set<string>): Promise<Omit<OpenedImage, "otherFiles">> {
  const { names, identity } = parent;
  if (identity !== undefined && parent.format === "vdi" && names.length === 0) return openById(child, identity, neighbours, seen);
  if (names.length === 0) throw damaged(child, "it is a difference to another image, and does not say to which");
  let missing: unknown;
  for (const name of names.flatMap((each) => localNames(each, identity !== undefined))) {
    let found: ReturnType<Neighbours["openParent"]>;
    try {
      found = neighbours.openParent(name);
    } catch (error) {
      missing ??= error;
      continue;
    }
    await checkIdentity(child, found.file, found.neighbours, parent);
    return openChain(found.file, found.neighbours, parent.format, seen);
  }
  throw missing ?? damaged(child, `the image ${JSON.stringify(names[0])} that it is a difference to cannot be found`);
}

/** The parent must be the very image that the child was made over; a CID, a UUID or a write id tells. */
async function checkIdentity(child: string, file: ByteFile, neighbours: Neighbours, { identity, format }: ParentReference): Promise<void> {
  if (identity === undefined) return;
  // looked at through a view that cannot close the file
  const layer = await openLayer({ ...file, close: async () => {} }, neighbours, format, true).catch(async (error: unknown) => {
    await file.close();
    throw error;
  });
  await layer.source.close();
  if (layer.identity === identity) return;
  await file.close();
  throw damaged(child, `its parent ${file.name} was changed or is another one: it is ${layer.identity ?? "without an id"}, wanted is ${identity}`);
}

/** A VDI knows its parent by id: the folder is searched. */
async function openById(child: string, identity: string, neighbours: Neighbours, seen: Set<string>): Promise<Omit<OpenedImage, "otherFiles">> {
  const { openVdi } = await import("./vdi/vdi-source.ts");
  for (const name of neighbours.list().filter((each) => /\.vdi$/i.test(each))) {
    const file = neighbours.probe(name);
    if (!file) continue;
    let id: string | undefined;
    try {
      id = (await detect(file)).kind === "format" ? (await openVdi({ ...file, close: async () => {} })).identity : undefined;
    } catch (error) {
      if (!(error instanceof HypersdkError)) throw error;
    }
    await file.close();
    if (id !== identity) continue;
    const parent = neighbours.openParent(`./${name}`);
    return openChain(parent.file, parent.neighbours, "vdi", seen);
  }
  throw damaged(child, `the image ${identity} that it is a difference to is not in its folder`);
}

/**
 * A path as other systems write it, then its last part beside the image: absolute paths are those of the machine that made it. The
 * latter only where an identity proves that it is the right file.
 */
function localNames(name: string, hasIdentity: boolean): string[] {
  const isWindows = /^[A-Za-z]:[\\/]|\\/.test(name);
  const slashed = isWindows ? name.replaceAll("\\", "/") : name;
  const isForeign = isWindows && /^([A-Za-z]:)?\//.test(slashed);
  return [...new Set([...(isForeign ? [] : [slashed]), ...(hasIdentity ? [`./${slashed.split("/").at(-1)}`] : [])])].filter((each) => !/^(\.\/)?$/.test(each));
}
