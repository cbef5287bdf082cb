/** The public API of the package: reading disk images and planning. Everything else may change without notice. */
export type { BlockSource, ByteRange, Extent, Piece } from "./converters/block-source.ts";
export { compareDisks, type Difference } from "./converters/compare.ts";
export type { DiskSink } from "./converters/disk-sink.ts";
export { type OpenedImage, openImage } from "./converters/open-image.ts";
export { type Poured, type PourOptions, pour } from "./converters/pour.ts";
export type { Manifest, ManifestDisk } from "./exports/manifest.ts";
export { type ErrorCode, HypersdkError } from "./model/errors.ts";
export type { ImageFormat } from "./model/image-formats.ts";
export type { Plan } from "./plan/plan.ts";
