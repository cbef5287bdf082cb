import { HypersdkError } from "../model/errors.ts";
import type { BlockSource } from "./block-source.ts";
import type { ByteFile } from "./byte-file.ts";
import { openByteFile } from "./byte-file.ts";
import { unsupported } from "./checked.ts";
import { detect, type ImageFormat } from "./detect.ts";
import { type Neighbours, neighboursOf } from "./neighbours.ts";
import { openQcow2 } from "./qcow2/qcow2-source.ts";
import { openRaw } from "./raw/raw-source.ts";
import { openDescribedVmdk, openSparseVmdk } from "./vmdk/open-vmdk.ts";

export interface OpenedImage {
  readonly format: ImageFormat;
  /** What kind of that format: `v3`, `streamOptimized`, `sparse`; for people. */
  readonly variant: string;
  readonly source: BlockSource;
  /** Other files of the image, beside it. */
  readonly extentFiles: readonly string[];
}

/**
 * Opens a disk image by its content. `from` says that it is raw, whatever its first bytes are, or that it must be the named
 * format.
 * @throws ImageUnsupported for a format that is not read, ImageDamaged for one that contradicts itself
 */
export async function openImage(path: string, options: { readonly from?: ImageFormat } = {}): Promise<OpenedImage> {
  return openImageFile(openByteFile(path), neighboursOf(path), options.from);
}

export async function openImageFile(file: ByteFile, neighbours: Neighbours, from?: ImageFormat): Promise<OpenedImage> {
  try {
    if (from === "raw") return { format: "raw", variant: rawVariant(file), source: await openRaw(file), extentFiles: [] };
    if (file.sizeBytes === 0) throw new HypersdkError("ImageDamaged", `${file.name}: the file is empty`);
    const found = await detect(file);
    if (found.kind === "unread")
      throw unsupported(
        file.name,
        `this is ${found.name}, which is not read yet`,
        found.name === "gzip" || found.name === "xz" || found.name === "zstd" ? "unpack it first" : undefined,
      );
    const format = found.kind === "nothing" ? "raw" : found.format === "qcow2" ? "qcow2" : "vmdk";
    if (from && from !== format) throw new HypersdkError("ImageDamaged", `${file.name}: this is no ${from} image, its content says ${format}`);
    if (found.kind === "nothing") return { format, variant: rawVariant(file), source: await openRaw(file), extentFiles: [] };
    switch (found.format) {
      case "qcow2": {
        const source = await openQcow2(file);
        return { format: "qcow2", variant: `v${source.header.version}`, source, extentFiles: [] };
      }
      case "vmdk-sparse":
        return { format: "vmdk", ...(await openSparseVmdk(file)) };
      case "vmdk-descriptor":
        return { format: "vmdk", ...(await openDescribedVmdk(file, neighbours)) };
    }
  } catch (error) {
    await file.close().catch(() => {});
    throw error;
  }
}

function rawVariant(file: ByteFile): string {
  return (file.allocatedBytes ?? file.sizeBytes) < file.sizeBytes ? "sparse" : "full";
}
