import type { ByteSink } from "../model/byte-sink.ts";
import type { DiskSink } from "./disk-sink.ts";
import { qcow2Sink } from "./qcow2/qcow2-sink.ts";
import { rawSink } from "./raw/raw-sink.ts";

/** Formats that are written. */
export type WritableFormat = "qcow2" | "raw";
export const writableFormats: readonly WritableFormat[] = ["qcow2", "raw"];

export interface ImageOptions {
  readonly compression: "none" | "zlib";
}

/** A disk of `sizeBytes` in `format`, over a file that is written from front to back. */
export function imageSink(format: WritableFormat, out: ByteSink, sizeBytes: number, options: ImageOptions): DiskSink {
  switch (format) {
    case "qcow2":
      return qcow2Sink(out, sizeBytes, options);
    case "raw":
      return rawSink(out, sizeBytes);
  }
}
