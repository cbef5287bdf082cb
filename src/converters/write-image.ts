import type { ByteSink } from "../model/byte-sink.ts";
import { HypersdkError } from "../model/errors.ts";
import { compressionsOf, type ImageCompression, type ImageFormat, subformats } from "../model/image-formats.ts";
import type { DiskSink } from "./disk-sink.ts";
import { qcow2Sink } from "./qcow2/qcow2-sink.ts";
import { rawSink } from "./raw/raw-sink.ts";
import { vdiSink, vdiSize } from "./vdi/vdi-sink.ts";
import { dynamicVhdSink, fixedVhdSink, vhdSize } from "./vhd/vhd-sink.ts";
import { vhdxSink, vhdxSize } from "./vhdx/vhdx-sink.ts";
import { monolithicSparseSink } from "./vmdk/sparse-sink.ts";
import { streamOptimizedSink } from "./vmdk/stream-sink.ts";

/** Both grain directories are in the head of the file, which holds 8 MiB. */
const maxMonolithicBytes = 30 * 2 ** 40;

export interface ImageOptions {
  readonly compression: ImageCompression;
  /** One of {@link subformats}; a compressed VMDK is stream-optimized. */
  readonly subformat?: string;
  /** Holes are written as zeros, so that the file has all of its blocks. */
  readonly preallocated?: boolean;
  /** The name that the file will have: some formats hold it. */
  readonly fileName?: string;
}

/**
 * What the options of an image cannot be, before anything is written: an unknown subformat, a compression that the format has not, a
 * disk that it cannot hold.
 * @returns the size that the format gives the disk: a multiple of its sector
 */
export function checkImageOptions(format: ImageFormat, sizeBytes: number, { compression, subformat }: ImageOptions): number {
  if (!compressionsOf[format].includes(compression))
    throw new HypersdkError("Usage", `${format} images cannot be compressed${compressionsOf[format].length > 1 ? ` with ${compression}` : ""}`, {
      hint: compressionsOf[format].length > 1 ? `${compressionsOf[format].slice(1).join(" or ")}` : "use qcow2, or vmdk with zlib",
    });
  if (subformat !== undefined && !subformats[format].includes(subformat))
    throw new HypersdkError("Usage", `${format} has no subformat ${JSON.stringify(subformat)}`, { hint: `one of: ${subformats[format].join(", ")}` });
  if (format === "vmdk" && compression === "zlib" && subformat === "monolithicSparse")
    throw new HypersdkError("Usage", "a monolithicSparse VMDK is not compressed", { hint: "use streamOptimized" });
  if (sizeBytes === 0 && format !== "raw" && format !== "qcow2")
    throw new HypersdkError("Usage", `a disk of 0 bytes cannot be a ${format} image: no tool opens it`);
  if (format === "vmdk" && sizeBytes > maxMonolithicBytes && compression === "none" && subformat !== "streamOptimized")
    throw new HypersdkError("Usage", `a monolithicSparse VMDK of more than ${maxMonolithicBytes} bytes is not written, the disk has ${sizeBytes}`, {
      hint: "use --subformat streamOptimized",
    });
  switch (format) {
    case "raw":
      return sizeBytes;
    case "vhd":
      return vhdSize(sizeBytes);
    case "vhdx":
      return vhdxSize(sizeBytes);
    case "vdi":
      return vdiSize(sizeBytes);
    case "qcow2":
    case "vmdk":
      return Math.ceil(sizeBytes / 512) * 512;
  }
}

/** A disk of `sizeBytes` in `format`, over a file that is written from front to back. */
export function imageSink(format: ImageFormat, out: ByteSink, sizeBytes: number, options: ImageOptions): DiskSink {
  checkImageOptions(format, sizeBytes, options);
  const { compression, subformat, fileName = "disk.vmdk" } = options;
  const to = options.preallocated ? withoutHoles(out) : out;
  switch (format) {
    case "qcow2":
      return qcow2Sink(to, sizeBytes, { compression });
    case "raw":
      return rawSink(to, sizeBytes);
    case "vmdk":
      return subformat === "streamOptimized" || compression === "zlib"
        ? streamOptimizedSink(to, sizeBytes, fileName)
        : monolithicSparseSink(to, sizeBytes, fileName);
    case "vhd":
      return subformat === "fixed" ? fixedVhdSink(to, sizeBytes) : dynamicVhdSink(to, sizeBytes);
    case "vhdx":
      return vhdxSink(to, sizeBytes, subformat === "fixed" ? "fixed" : "dynamic");
    case "vdi":
      return vdiSink(to, sizeBytes);
  }
}

const zeros = Buffer.alloc(2 ** 20);

function withoutHoles(out: ByteSink): ByteSink {
  return {
    reserve: (bytes) => out.reserve(bytes),
    append: (data) => out.append(data),
    settled: () => out.settled(),
    async skip(bytes) {
      for (let left = bytes; left > 0; left -= zeros.length) await out.append(left >= zeros.length ? zeros : zeros.subarray(0, left));
    },
    get position() {
      return out.position;
    },
  };
}
