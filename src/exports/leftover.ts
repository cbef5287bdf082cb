import { constants, lstatSync, readdirSync, rmSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { isZero } from "../converters/block-source.ts";
import { partialEnding, resumableName } from "../files/durable.ts";
import { HypersdkError } from "../model/errors.ts";
import { type ChunkList, chunksOf, type IsPresent } from "../repository/disk-source.ts";
import type { Repository } from "../repository/repository.ts";
import { sha256 } from "../repository/sha256.ts";

/** A restore into raw that is cut off leaves its file under this ending, with the restore point's id in front of it. */
const tokenOf = (pointId: string): string => `restore-${pointId.slice(0, 8)}`;

/**
 * What an earlier restore of the same disk left beside `path`: chunks of it that have the right hash are not read from the store again.
 * Only of a raw file is known where each chunk lies.
 */
export class Leftover {
  readonly path: string;
  readonly #target: string;
  #file: FileHandle | undefined;
  #repository: Repository | undefined;
  #disk: ChunkList | undefined;
  /** Bytes that were there already. */
  presentBytes = 0;

  private constructor(target: string, path: string, file: FileHandle | undefined) {
    this.#target = target;
    this.path = path;
    this.#file = file;
  }

  static async at(target: string, pointId: string): Promise<Leftover> {
    const path = resumableName(target, tokenOf(pointId));
    const stat = lstatSync(path, { throwIfNoEntry: false });
    // what is no plain file with one name, or another user's, is none of ours: whoever has it open would read the disk
    const isOurs = stat?.isFile() && stat.nlink === 1 && stat.uid === process.getuid?.();
    if (stat && !isOurs) rmSync(path, { recursive: true, force: true });
    const file = isOurs ? await open(path, constants.O_RDONLY | constants.O_NOFOLLOW) : undefined;
    return new Leftover(target, path, file);
  }

  isOf(repository: Repository, disk: ChunkList): void {
    this.#repository = repository;
    this.#disk = disk;
  }

  readonly has: IsPresent = async (offset, length, id) => {
    if (!this.#file) return false;
    const bytes = Buffer.alloc(length);
    const { bytesRead } = await this.#file.read(bytes, 0, length, offset);
    if (bytesRead < length || !(await sha256(bytes)).equals(id)) return false;
    this.presentBytes += length;
    return true;
  };

  /** Compares the whole file with the restore point, holes included. @throws ArtifactDamaged when it is another disk */
  async confirm(): Promise<void> {
    if (!this.#file || !this.#repository || !this.#disk) return;
    const buffer = Buffer.alloc(this.#disk.chunkBytes);
    for await (const { offset, length, id } of chunksOf(this.#repository, this.#disk)) {
      const bytes = buffer.subarray(0, length);
      const { bytesRead } = await this.#file.read(bytes, 0, length, offset);
      bytes.fill(0, bytesRead);
      if (id ? !(await sha256(bytes)).equals(id) : !isZero(bytes, 0, length))
        throw new HypersdkError("ArtifactDamaged", `what an earlier restore left beside ${this.#target} is not of this disk`, {
          hint: "it is removed: the same command starts anew",
        });
    }
  }

  /** The restore is done: nothing of earlier ones is of use, whichever point they were of. */
  async done(): Promise<void> {
    await this.close();
    const folder = dirname(this.#target);
    const start = `.${basename(this.#target)}.restore-`;
    for (const name of readdirSync(folder)) if (name.startsWith(start) && name.endsWith(partialEnding)) rmSync(join(folder, name), { force: true });
  }

  async close(): Promise<void> {
    await this.#file?.close();
    this.#file = undefined;
  }
}
