import { constants, rmSync } from "node:fs";
import { type FileHandle, lstat, mkdir, open, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { FileContent } from "../model/byte-sink.ts";
import { errnoOf } from "../model/errors.ts";
import { wholePagesOf } from "../model/page-memory.ts";
import { fileError, guard } from "./local-file-sink.ts";

/** Makes a folder entry (a new name, a renamed file) survive a power cut. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, constants.O_RDONLY);
  try {
    await folder.sync();
  } catch (error) {
    // some file systems cannot sync a folder; then there is nothing more to be had
    if (!["EINVAL", "ENOTSUP"].includes((error as NodeJS.ErrnoException).code ?? "")) throw error;
  } finally {
    await folder.close();
  }
}

/** Others that make and remove the same folder cannot be unlucky for us more often. */
const mostAttempts = 50;

/**
 * Creates the missing folders down to `path` and syncs each parent. Not by `recursive`, which never ends where a file system says ENOENT
 * to every new name, as /proc does.
 */
export async function makeFolder(path: string): Promise<void> {
  if (await isFolder(path)) return;
  await makeFolder(dirname(path));
  await guard(path, async () => {
    for (let attempt = 0; ; attempt++) {
      try {
        return await mkdir(path);
      } catch (error) {
        // another process may have been faster, and may have removed it again since: then it is made once more
        if (await isFolder(path)) return;
        if (errnoOf(error) !== "EEXIST" || attempt === mostAttempts || (await isThere(path))) throw error;
      }
    }
  });
  await syncFolder(dirname(path));
}

async function isThere(path: string): Promise<boolean> {
  return lstat(path).then(
    () => true,
    () => false,
  );
}

async function isFolder(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory();
  } catch {
    return dirname(path) === path;
  }
}

/** The temporary neighbour of a file that is being written. Leftovers are known by the ending. */
export function partialName(path: string, token: string): string {
  const partial = join(dirname(path), `.${basename(path)}.${token}${partialEnding}`);
  if (!isListening) process.on("exit", removeUnfinished);
  isListening = true;
  unfinished.add(partial);
  return partial;
}

/** Removes the temporary neighbour of a file, if it is still there. */
export async function removePartial(partial: string): Promise<void> {
  await rm(partial, { force: true });
  unfinished.delete(partial);
}

/** Partial files of this process that may still be there: a process that leaves at once takes them with it. */
const unfinished = new Set<string>();
let isListening = false;

function removeUnfinished(): void {
  for (const path of unfinished) {
    try {
      rmSync(path, { recursive: true, force: true });
    } catch {
      // a leftover is known by its ending
    }
  }
}

/** The temporary neighbour of a file that is written in several goes: it stays when a process leaves, and the next one knows it. */
export function resumableName(path: string, token: string): string {
  return join(dirname(path), `.${basename(path)}.${token}${partialEnding}`);
}

export const partialEnding = ".partial";

/**
 * Gives a finished file its name; an old one is replaced in the same instant.
 * @param durable wait until the name survives a power cut; on a journaling file system that waits for the file's data too
 */
export async function publish(partial: string, path: string, durable: boolean = true): Promise<void> {
  await guard(path, async () => {
    await rename(partial, path);
    unfinished.delete(partial);
    if (durable) await syncFolder(dirname(path));
  });
}

/** Writes what is the whole content of a new file, which is open. */
export async function writeContent(file: FileHandle, path: string, content: FileContent): Promise<void> {
  if (typeof content === "string" || content instanceof Uint8Array) return file.writeFile(content);
  let done = await writePages(path, wholePagesOf(content));
  for (let rest = behind(content, done); rest.length > 0; rest = behind(content, done)) done += (await file.writev(rest, done)).bytesWritten;
}

/** From so many bytes on, memory and file are put past the page cache: a second way to open the file costs more than it saves for fewer. */
const worthBytes = 2 ** 20;

/**
 * Writes the beginning of a file past the page cache: what is stored is not read again soon, and pages of the cache would be taken for it from
 * what runs on the machine. It is synced as any other.
 * @returns the bytes that were written: none where the file system knows no such writing, or fails
 */
async function writePages(path: string, pages: readonly Uint8Array[]): Promise<number> {
  if (lengthOf(pages) < worthBytes || constants.O_DIRECT === undefined) return 0;
  try {
    const file = await open(path, constants.O_WRONLY | constants.O_NOFOLLOW | constants.O_DIRECT);
    return await file
      .writev(pages, 0)
      .then(({ bytesWritten }) => bytesWritten)
      .finally(() => file.close());
  } catch {
    // whatever it was, those who write through the cache and sync have the last word on it
    return 0;
  }
}

function behind(content: readonly Uint8Array[], bytes: number): Uint8Array[] {
  const rest: Uint8Array[] = [];
  let at = 0;
  for (const data of content) {
    if (at + data.length > bytes) rest.push(data.subarray(Math.max(0, bytes - at)));
    at += data.length;
  }
  return rest;
}

function lengthOf(content: readonly Uint8Array[]): number {
  return content.reduce((sum, { length }) => sum + length, 0);
}

/** Writes a small file whole or not at all. */
export async function writeDurably(path: string, data: FileContent, token: string): Promise<void> {
  const partial = partialName(path, token);
  try {
    const file = await open(partial, "wx", 0o600);
    try {
      await writeContent(file, partial, data);
      await file.sync();
    } finally {
      await file.close();
    }
    await publish(partial, path);
  } catch (error) {
    await removePartial(partial);
    throw fileError(path, error);
  }
}
