import type { ByteFile } from "../converters/byte-file.ts";
import type { ByteSink, FileContent } from "../model/byte-sink.ts";
import type { DestinationAddress } from "../model/desired.ts";

/**
 * Where exports go: a tree of immutable files with `/`-separated relative paths. What must hold of every implementation
 * (test/contract/destination.ts checks it):
 * - A file that `create` makes exists only after `finish`; before, or after `abort` or a crash, no reader sees it.
 * - `put` is whole or not at all, and survives a power cut once it has returned. With `exclusive` the second of two fails
 *   with `AlreadyExists`.
 * - `remove` of what is not there succeeds. Paths never lead out of the destination.
 * - A store that cannot be reached throws `DestinationUnreachable`, one without room `DestinationFull`; both are transient.
 */
export interface Destination {
  readonly spec: DestinationAddress;
  /** How a repository there is sealed and opened; undefined where no key is known. */
  readonly encryption?: Encryption;
  create(path: string): Promise<Upload>;
  put(path: string, data: FileContent, options?: { readonly exclusive?: boolean }): Promise<void>;
  /** A small file. @throws NotFound when it is not there */
  get(path: string, maxBytes: number): Promise<Buffer>;
  open(path: string): Promise<ByteFile>;
  /** Every file below `prefix`, sorted by path; leftovers of uploads that never finished are marked. */
  list(prefix?: string): Promise<StoredFile[]>;
  /** The same in no order, and without what a folder has to be asked for file by file: most of what listing it takes. */
  names(prefix: string): Promise<NamedFile[]>;
  remove(path: string): Promise<void>;
}

interface Encryption {
  /** What a new repository is sealed with. Without it, what is there is opened, and nothing sealed. */
  readonly sealing?: Key;
  /** Further ones that may open what is there, tried in turn. */
  readonly others: readonly Key[];
}

export interface Key {
  /** A passphrase or an age identity. @throws KeyRefused when it cannot be had */
  secret(): string;
  /** age recipients that shall be able to open what it seals as well. */
  readonly recipients: readonly string[];
}

export interface NamedFile {
  readonly path: string;
  readonly isPartial: boolean;
  /** A symbolic link, which is not followed. */
  readonly isLink?: true;
}

export interface StoredFile extends NamedFile {
  readonly bytes: number;
  /** When it was written, by the clock of the store. */
  readonly modifiedMs: number;
}

export interface Upload extends ByteSink {
  /** @returns the bytes stored and their tree hash over pieces of 8 MiB, taken before they left */
  finish(): Promise<{ readonly bytes: number; readonly hash: string }>;
  abort(): Promise<void>;
}
