import { constants } from "node:fs";
import type { FileHandle } from "node:fs/promises";
import { dirname } from "node:path";

/**
 * What the file system was asked to do, in order. Files are known by a number, so that a rename does not lose them.
 * `node:fs/promises` is replaced by {@link recording} in the tests that use it: real work on a real folder, and a note of it.
 */
export type Operation =
  | { readonly kind: "create"; readonly path: string; readonly file: number }
  | { readonly kind: "write"; readonly file: number; readonly at: number; readonly data: Buffer }
  | { readonly kind: "truncate"; readonly file: number; readonly bytes: number }
  | { readonly kind: "sync"; readonly file: number }
  | { readonly kind: "syncFolder"; readonly path: string }
  | { readonly kind: "link" | "rename"; readonly from: string; readonly to: string }
  | { readonly kind: "remove"; readonly path: string }
  | { readonly kind: "makeFolder" | "removeFolder"; readonly path: string };

type Fs = typeof import("node:fs/promises");

export const operations: Operation[] = [];
let files = 0;
/** By the path that each was created under. */
const opened = new Map<string, number>();

export function recording(real: Fs): Fs {
  const note = (operation: Operation): void => void operations.push(operation);
  return {
    ...real,
    async open(path: string, flags?: string | number, mode?: number) {
      const handle = await real.open(path, flags, mode);
      const isFolder = (await handle.stat()).isDirectory();
      const writes = flags === "wx" || (typeof flags === "number" && (flags & 3) !== 0);
      if (!isFolder && !writes) return handle;
      // a second way to open a file that is being written
      const there = typeof flags === "number" && (flags & constants.O_CREAT) === 0 ? opened.get(path) : undefined;
      const file = isFolder ? 0 : (there ?? ++files);
      if (!isFolder && there === undefined) {
        opened.set(path, file);
        note({ kind: "create", path, file });
      }
      return noting(handle, (operation) => note(operation(file)), path, isFolder);
    },
    async mkdir(path: string) {
      await real.mkdir(path);
      note({ kind: "makeFolder", path });
    },
    async rename(from: string, to: string) {
      await real.rename(from, to);
      note({ kind: "rename", from, to });
    },
    async link(from: string, to: string) {
      await real.link(from, to);
      note({ kind: "link", from, to });
    },
    async rm(path: string, options: object) {
      await real.rm(path, options);
      note({ kind: "remove", path });
    },
    async rmdir(path: string) {
      await real.rmdir(path);
      note({ kind: "removeFolder", path });
    },
  } as Fs;
}

function noting(handle: FileHandle, note: (make: (file: number) => Operation) => void, path: string, isFolder: boolean): FileHandle {
  return new Proxy(handle, {
    get(target, key) {
      const value = Reflect.get(target, key) as unknown;
      if (typeof value !== "function") return value;
      const call = value.bind(target) as (...args: unknown[]) => Promise<unknown>;
      switch (key) {
        case "write":
          return async (data: Buffer, from: number, length: number, at: number) => {
            const copy = Buffer.from(data.subarray(from, from + length));
            const written = await call(data, from, length, at);
            note((file) => ({ kind: "write", file, at, data: copy }));
            return written;
          };
        case "writeFile":
          return async (data: string | Uint8Array) => {
            await call(data);
            note((file) => ({ kind: "write", file, at: 0, data: Buffer.from(data as string) }));
          };
        case "writev":
          return async (parts: Uint8Array[], at: number) => {
            const data = Buffer.concat(parts);
            const written = await call(parts, at);
            note((file) => ({ kind: "write", file, at, data }));
            return written;
          };
        case "truncate":
          return async (bytes: number) => {
            await call(bytes);
            note((file) => ({ kind: "truncate", file, bytes }));
          };
        case "sync":
          return async () => {
            await call();
            note((file) => (isFolder ? { kind: "syncFolder", path } : { kind: "sync", file }));
          };
        default:
          return call;
      }
    },
  });
}

/** What a power cut leaves of work that was not synced. */
export type Loss =
  /** Nothing is lost: the process was killed, the machine was not. */
  | "nothing"
  /** Neither names nor contents that were not synced. */
  | "all"
  /** Names reached the disk, contents did not. */
  | "contents"
  /** Names that were not synced are lost in one folder of those that have some, counted from 0, and reached the disk in the others. */
  | { readonly namesOf: number }
  /** Contents reached the disk up to so many bytes of the last write, names did. */
  | { readonly tornAt: 512 | 4096 };

interface File {
  now: Buffer;
  synced: Buffer;
  last: { at: number; data: Buffer } | undefined;
}

/** The folder tree as it would be found after a crash behind the first `count` operations: paths relative to `root`. */
export function afterCrash(
  all: readonly Operation[],
  count: number,
  loss: Loss,
  root: string,
): { readonly folders: string[]; readonly files: Map<string, Buffer> } {
  const contents = new Map<number, File>();
  const names = new Map<string, number | "folder">();
  const synced = new Map<string, number | "folder">();
  for (const operation of all.slice(0, count)) {
    switch (operation.kind) {
      case "create":
        contents.set(operation.file, { now: Buffer.alloc(0), synced: Buffer.alloc(0), last: undefined });
        names.set(operation.path, operation.file);
        break;
      case "write": {
        const file = contents.get(operation.file) as File;
        const grown = Buffer.alloc(Math.max(file.now.length, operation.at + operation.data.length));
        file.now.copy(grown);
        operation.data.copy(grown, operation.at);
        file.now = grown;
        file.last = operation;
        break;
      }
      case "truncate": {
        const file = contents.get(operation.file) as File;
        const sized = Buffer.alloc(operation.bytes);
        file.now.copy(sized);
        file.now = sized;
        break;
      }
      case "sync": {
        const file = contents.get(operation.file) as File;
        file.synced = file.now;
        file.last = undefined;
        break;
      }
      case "syncFolder":
        for (const path of [...synced.keys()]) if (dirname(path) === operation.path) synced.delete(path);
        for (const [path, what] of names) if (dirname(path) === operation.path) synced.set(path, what);
        break;
      case "link":
        names.set(operation.to, names.get(operation.from) as number);
        break;
      case "rename":
        names.set(operation.to, names.get(operation.from) as number);
        names.delete(operation.from);
        break;
      case "remove":
      case "removeFolder":
        names.delete(operation.path);
        break;
      case "makeFolder":
        names.set(operation.path, "folder");
        break;
    }
  }
  const found = loss === "all" ? synced : typeof loss === "object" && "namesOf" in loss ? withoutOneFolder(names, synced, loss.namesOf) : names;
  const reachable = (path: string): boolean => path === root || (found.get(path) === "folder" && reachable(dirname(path)));
  const folders: string[] = [];
  const files = new Map<string, Buffer>();
  for (const [path, what] of [...found].sort(([a], [b]) => (a < b ? -1 : 1))) {
    if (!reachable(dirname(path))) continue;
    if (what === "folder") folders.push(path.slice(root.length + 1));
    else files.set(path.slice(root.length + 1), contentOf(contents.get(what) as File, loss));
  }
  return { folders, files };
}

type Names = ReadonlyMap<string, number | "folder">;

function withoutOneFolder(names: Names, synced: Names, which: number): Names {
  const dirty = new Set([...new Set([...names.keys(), ...synced.keys()])].filter((path) => names.get(path) !== synced.get(path)).map((path) => dirname(path)));
  const lost = [...dirty].sort()[which % Math.max(1, dirty.size)];
  const inLost = ([path]: readonly [string, unknown]): boolean => dirname(path) === lost;
  return new Map([...[...names].filter((each) => !inLost(each)), ...[...synced].filter(inLost)]);
}

function contentOf({ now, synced, last }: File, loss: Loss): Buffer {
  if (loss === "nothing" || (typeof loss === "object" && "namesOf" in loss)) return now;
  if (typeof loss === "string" || !last) return synced;
  const cut = Math.min(last.data.length, Math.floor((last.data.length - 1) / loss.tornAt) * loss.tornAt);
  const torn = Buffer.alloc(Math.max(synced.length, last.at + cut));
  now.copy(torn, 0, 0, Math.min(now.length, last.at));
  last.data.copy(torn, last.at, 0, cut);
  return torn;
}
