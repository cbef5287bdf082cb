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
  readonly blocks?: BlocksInFile;
  /** What else can be checked, beyond reading everything. */
  readonly crossCheck?: () => AsyncIterable<CheckFinding>;
  readonly details: ImageDetails;
}

/** A sentence about what is wrong, or how many blocks of the file belong to nothing. */
export type CheckFinding = { readonly problem: string } | { readonly orphans: number };

export interface BlocksInFile {
  placed(): AsyncIterable<PlacedBlock>;
  /** How many the header says there are. */
  readonly counted?: number;
  /** Bytes of the file that only blocks may take, and how many each takes: what is left over is an orphan. */
  readonly space?: { readonly bytes: number; readonly eachBytes: number };
}

/** What else is known of an image, for `image info`. */
export interface ImageDetails {
  /** The program that made it, as it says. */
  readonly creator?: string;
  readonly blockBytes?: number;
  readonly sectorBytes?: number;
  readonly features?: readonly string[];
  /** Copies that a format keeps for safety, and that are damaged: the disk is read without them. */
  readonly defects?: readonly string[];
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
