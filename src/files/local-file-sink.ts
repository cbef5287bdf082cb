import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { type ByteSink, type FillGap, maxGapBytes } from "../model/byte-sink.ts";
import { errnoOf, HypersdkError } from "../model/errors.ts";
import { StoredHash } from "./stored-hash.ts";

const stagingBytes = 1 << 20;
/** Larger pieces are written from where they are; smaller ones are gathered first. */
const copiedBelow = stagingBytes / 4;
const writesAtOnce = 3;
/** What is to survive a power cut goes to the disk in parts of so much while the next is made, and not all of it at the end. */
const syncBytes = 64 << 20;

/**
 * Writes one new local file, holes left as holes, and hashes it on the way. The file is made under the path given, which
 * must not exist; giving it its final name is the caller's work.
 */
export class LocalFileSink implements ByteSink {
  readonly #file: FileHandle;
  readonly #path: string;
  readonly #hash: StoredHash | undefined;
  readonly #durable: boolean;
  #staging: Buffer | undefined;
  #staged = 0;
  #stagedAt = 0;
  readonly #writing = new Set<Promise<void>>();
  #unsynced = 0;
  #syncing: Promise<void> | undefined;
  /**
   * A sync failed, and nobody knows what of the file is on the disk: the system says so once, and shows from memory what it could not write.
   * Nobody may go on with such a file.
   */
  isLost = false;
  position = 0;

  private constructor(file: FileHandle, path: string, { hashed, durable }: { readonly hashed: boolean; readonly durable: boolean }) {
    this.#file = file;
    this.#path = path;
    this.#hash = hashed ? new StoredHash() : undefined;
    this.#durable = durable;
  }

  /**
   * @param options.durable wait at the end until everything is on the disk, so that it survives a power cut
   * @param options.shownAs what messages call the file, where its present name is a temporary one
   * @param options.mode who may read it; only its owner otherwise
   * @param options.reopen takes a file over that is there already; what is skipped keeps what it has
   */
  static async create(
    path: string,
    options: { readonly hashed: boolean; readonly durable: boolean; readonly shownAs?: string; readonly mode?: number; readonly reopen?: boolean },
  ): Promise<LocalFileSink> {
    const flags = constants.O_CREAT | constants.O_RDWR | constants.O_NOFOLLOW | (options.reopen ? 0 : constants.O_EXCL);
    const shown = options.shownAs ?? path;
    return new LocalFileSink(await guard(shown, () => open(path, flags, options.mode ?? 0o600)), shown, options);
  }

  reserve(bytes: number): FillGap {
    if (bytes > maxGapBytes) throw new Error(`a gap of ${bytes} bytes is more than ${maxGapBytes}`);
    // what it waits for, whoever appends next waits for as well
    this.#flush().catch(() => {});
    const at = this.position;
    this.position = this.#stagedAt = at + bytes;
    const fillHash = this.#hash?.reserve(bytes);
    return async (data) => {
      if (data.length !== bytes) throw new Error(`a gap of ${bytes} bytes was left, ${data.length} came`);
      await guard(this.#path, () => writeAll(this.#file, data, at));
      fillHash?.(data);
    };
  }

  async append(data: Uint8Array): Promise<void> {
    if (data.length >= copiedBelow) {
      await this.#flush();
      await this.#write(data, this.position);
      this.#stagedAt = this.position + data.length;
    } else {
      if (this.#staged + data.length > stagingBytes) await this.#flush();
      this.#staging ??= Buffer.allocUnsafeSlow(stagingBytes);
      this.#staging.set(data, this.#staged);
      this.#staged += data.length;
    }
    this.position += data.length;
  }

  async settled(): Promise<void> {
    await Promise.all(this.#writing);
  }

  async skip(bytes: number): Promise<void> {
    await this.#flush();
    this.#hash?.updateZeros(bytes);
    this.position += bytes;
    this.#stagedAt = this.position;
  }

  /** @returns the size, and the hash where one was asked for */
  async finish(): Promise<{ readonly bytes: number; readonly hash: string }> {
    await this.#flush();
    await this.settled();
    await this.#syncing;
    await guard(this.#path, async () => {
      await this.#file.truncate(this.position);
      if (this.#durable) await this.#sync(() => this.#file.sync());
      await this.#file.close();
    });
    return { bytes: this.position, hash: this.#hash?.digest() ?? "" };
  }

  /** Closes the file and leaves removing it to the caller. Never throws. */
  async abort(): Promise<void> {
    await Promise.allSettled([...this.#writing, this.#syncing]);
    await this.#file.close().catch(() => {});
  }

  async #flush(): Promise<void> {
    if (!this.#staging) return;
    const full = this.#staging.subarray(0, this.#staged);
    const at = this.#stagedAt;
    // it is being written: what comes next is gathered elsewhere
    this.#staging = undefined;
    this.#staged = 0;
    this.#stagedAt = at + full.length;
    await this.#write(full, at);
  }

  /** Begins to write, hashes meanwhile, and waits for an earlier write while too many are on their way. */
  async #write(data: Uint8Array, at: number): Promise<void> {
    const writing = guard(this.#path, () => writeAll(this.#file, data, at));
    this.#writing.add(writing);
    // a failed write stays in the set: whoever settles, or writes next, meets it
    writing.then(() => this.#writing.delete(writing)).catch(() => {});
    this.#hash?.update(data);
    this.#unsynced += data.length;
    if (this.#durable && this.#unsynced >= syncBytes && !this.#syncing) this.#beginSync();
    if (this.#writing.size > writesAtOnce) await Promise.race(this.#writing);
  }

  async #sync(sync: () => Promise<void>): Promise<void> {
    try {
      await sync();
    } catch (error) {
      this.isLost = true;
      throw error;
    }
  }

  #beginSync(): void {
    this.#unsynced = 0;
    const syncing = guard(this.#path, () => this.#sync(() => this.#file.datasync()));
    this.#syncing = syncing;
    syncing.then(() => (this.#syncing = undefined)).catch(() => this.#writing.add(syncing));
  }
}

async function writeAll(file: FileHandle, data: Uint8Array, at: number): Promise<void> {
  for (let done = 0; done < data.length; ) done += (await file.write(data, done, data.length - done, at + done)).bytesWritten;
}

/** Turns what the system says about a local path into an error with a code and a way out. */
export async function guard<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw fileError(path, error);
  }
}

export function fileError(path: string, error: unknown): unknown {
  const details = { cause: error };
  switch (errnoOf(error)) {
    case "ENOSPC":
    case "EDQUOT":
      return new HypersdkError("DestinationFull", `no space left for ${path}`, { ...details, hint: "make room and run the command again" });
    case "EEXIST":
      return new HypersdkError("AlreadyExists", `${path} exists already`, details);
    case "EROFS":
      return new HypersdkError("DestinationDenied", `${path} cannot be written: its file system is read-only`, { ...details, hint: "mount it to be written" });
    case "EACCES":
    case "EPERM":
      return new HypersdkError("DestinationDenied", `no permission to write ${path}`, { ...details, hint: "give this user the right to write there" });
    case "ENOENT":
      return new HypersdkError("DestinationUnreachable", `cannot write ${path}: its folder is not there`, { ...details, hint: "make the folder first" });
    case "ENOTDIR":
    case "ELOOP":
    case "EIO":
    case "ESTALE":
    case "EUCLEAN":
      return new HypersdkError("DestinationUnreachable", `cannot write ${path}: ${errnoOf(error)}`, details);
    case "EISDIR":
    case "ERR_FS_EISDIR":
      return new HypersdkError("Failed", `${path} is a folder, in the place of a file`, { ...details, hint: "look at what it holds, and move it away" });
    // no second attempt would go better
    case "EFBIG":
    case "ENAMETOOLONG":
      return new HypersdkError("Failed", `cannot write ${path}: ${errnoOf(error)}`, details);
    default:
      return error;
  }
}
