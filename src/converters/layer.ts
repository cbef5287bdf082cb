import type { ImageFormat } from "../model/image-formats.ts";
import type { PlacedBlock } from "./block-map.ts";
import type { BlockSource } from "./block-source.ts";

/** One image file with its extents, without its parents. */
export interface Layer {
  readonly format: ImageFormat;
  /** What kind of that format: `v3`, `streamOptimized`, `differencing`; for people. */
  readonly variant: string;
  readonly source: BlockSource;
  /** What a child knows this image by: a CID, a UUID. */
  readonly identity?: string;
  readonly parent?: ParentReference;
  /** For checking a format whose blocks lie anywhere in the file. */
  readonly blocks?: { placed(): AsyncIterable<PlacedBlock> /** How many the header says there are. */; readonly counted?: number };
  readonly details: ImageDetails;
}

/** What else is known of an image, for `image info`. */
export interface ImageDetails {
  /** The program that made it, as it says. */
  readonly creator?: string;
  readonly blockBytes?: number;
  readonly sectorBytes?: number;
  readonly features?: readonly string[];
  /** What a person should know: snapshots that are not looked at, a log that was replayed. */
  readonly notes?: readonly string[];
}

/** How an image finds the one it is a difference to. */
export interface ParentReference {
  /** File names as they are written, the most trustworthy first. Empty where a format has none and its folder is searched. */
  readonly names: readonly string[];
  /** The parent's {@link Layer.identity}, where the format records it. */
  readonly identity?: string;
  /** The parent's format, where the child says it. */
  readonly format?: ImageFormat;
}
