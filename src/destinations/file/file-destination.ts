import { existsSync, readdirSync, statSync } from "node:fs";
import { link, open, rm, rmdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { type ByteFile, openByteFile } from "../../converters/byte-file.ts";
import { makeFolder, partialEnding, partialName, publish, removePartial, syncFolder, writeContent, writeDurably } from "../../files/durable.ts";
import { fileError, LocalFileSink } from "../../files/local-file-sink.ts";
import type { FileContent } from "../../model/byte-sink.ts";
import type { DestinationAddress } from "../../model/desired.ts";
import { errnoOf, errnoText, HypersdkError } from "../../model/errors.ts";
import type { Random } from "../../model/ports.ts";
import type { Destination, NamedFile, Upload } from "../destination.ts";

/** A folder of this machine, or one that is mounted. Files appear by rename, after they were synced. */
export function fileDestination(spec: DestinationAddress, random: Random): Destination {
  const root = spec.url.slice("file://".length);
  const at = (path: string): string => {
    if (path === "" || path.startsWith("/") || path.split("/").some((part) => part === "" || part === "." || part === "..") || path.includes("\0")) {
      throw new HypersdkError("Failed", `${JSON.stringify(path)} is no path inside a destination`);
    }
    return join(root, path);
  };
  return {
    spec,
    async create(path) {
      const final = at(path);
      const partial = partialName(final, random.uuid());
      return uploadOver(await inFolder(root, final, () => LocalFileSink.create(partial, { hashed: true, durable: true })), partial, final);
    },
    async put(path, data, { exclusive = false } = {}) {
      const final = at(path);
      if (!exclusive) return inFolder(root, final, () => writeDurably(final, data, random.uuid()));
      try {
        await inFolder(root, final, () => putOnce(final, data, random.uuid()));
      } catch (error) {
        throw fileError(final, error);
      }
    },
    async get(path, maxBytes) {
      const file = await this.open(path);
      try {
        if (file.sizeBytes > maxBytes) throw new HypersdkError("ArtifactDamaged", `${path} has ${file.sizeBytes} bytes, more than ${maxBytes}`);
        const data = Buffer.alloc(file.sizeBytes);
        await file.read(0, data);
        return data;
      } finally {
        await file.close();
      }
    },
    async open(path): Promise<ByteFile> {
      try {
        return await openByteFile(at(path), path);
      } catch (error) {
        if (!(error instanceof HypersdkError) || error.code !== "SourceUnavailable" || errnoOf(error.cause) === "ENOENT") throw error;
        throw unreadable(at(path), error.cause);
      }
    },
    async list(prefix = "") {
      const files = namesBelow(root, prefix).sort((a, b) => (a.path < b.path ? -1 : 1));
      return files.flatMap((file) => {
        if (file.isLink) return { ...file, bytes: 0, modifiedMs: 0 };
        const stat = statSync(join(root, file.path), { throwIfNoEntry: false });
        // one that was removed meanwhile is not there
        return stat ? { ...file, bytes: stat.size, modifiedMs: stat.mtimeMs } : [];
      });
    },
    async names(prefix) {
      return namesBelow(root, prefix);
    },
    async remove(path) {
      const final = at(path);
      try {
        await rm(final, { force: true });
        // folders that became empty go with their last file; what is gone stays gone after a power cut
        let folder = dirname(final);
        for (; folder !== root && folder.startsWith(root); folder = dirname(folder)) {
          try {
            await rmdir(folder);
          } catch {
            break;
          }
        }
        await syncFolder(folder);
      } catch (error) {
        // a folder that is gone holds nothing
        if (errnoOf(error) !== "ENOENT") throw fileError(final, error);
      }
    },
  };
}

/** Makes the folder and works in it; again, where another process removed it in between because it was empty. */
async function inFolder<T>(root: string, final: string, work: () => Promise<T>): Promise<T> {
  for (let attempt = 0; ; attempt++) {
    try {
      // the folder itself is made; what it lies in must be there: a disk that is not mounted is not to be replaced by folders
      if (!existsSync(dirname(root)))
        throw new HypersdkError("DestinationUnreachable", `${root} cannot be made: ${dirname(root)} is not there`, { hint: "mount it, or make it" });
      await makeFolder(dirname(final));
      return await work();
    } catch (error) {
      const cause = error instanceof HypersdkError ? error.cause : error;
      if (errnoOf(cause) !== "ENOENT" || attempt === 50) throw error;
    }
  }
}

/** Whole from the first instant: a link gives the finished file its name, and fails where there is one. */
async function putOnce(final: string, data: FileContent, token: string): Promise<void> {
  const partial = partialName(final, token);
  try {
    const file = await open(partial, "wx", 0o600);
    await writeContent(file, partial, data).finally(() => file.sync().finally(() => file.close()));
    await link(partial, final).finally(() => syncFolder(dirname(final)));
  } finally {
    await removePartial(partial);
  }
}

function uploadOver(sink: LocalFileSink, partial: string, final: string): Upload {
  return {
    reserve: (bytes) => sink.reserve(bytes),
    append: (data) => sink.append(data),
    settled: () => sink.settled(),
    skip: (bytes) => sink.skip(bytes),
    get position() {
      return sink.position;
    },
    async finish() {
      const stored = await sink.finish();
      await publish(partial, final);
      return stored;
    },
    async abort() {
      await sink.abort();
      await removePartial(partial).catch(() => {});
    },
  };
}

function unreadable(path: string, cause: unknown): HypersdkError {
  const errno = errnoOf(cause);
  if (errno === "EACCES" || errno === "EPERM")
    return new HypersdkError("DestinationDenied", `no permission to read ${path}`, { cause, hint: "give this user the right to read and write there" });
  return new HypersdkError("DestinationUnreachable", `cannot read ${path}: ${errnoText(cause)}`, { cause });
}

function namesBelow(root: string, prefix: string): NamedFile[] {
  const files: NamedFile[] = [];
  addNames(files, root, prefix.replace(/\/$/, ""));
  return files;
}

/** A folder that is not there yet is an empty destination; one that cannot be read is unreachable. */
function addNames(files: NamedFile[], root: string, prefix: string): void {
  let entries: import("node:fs").Dirent[];
  try {
    entries = readdirSync(join(root, prefix), { withFileTypes: true });
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return;
    throw unreadable(join(root, prefix), error);
  }
  for (const entry of entries) {
    const path = prefix === "" ? entry.name : `${prefix}/${entry.name}`;
    const isPartial = entry.name.endsWith(partialEnding);
    if (entry.isFile()) files.push({ path, isPartial });
    else if (entry.isDirectory()) addNames(files, root, path);
    else if (entry.isSymbolicLink()) files.push({ path, isPartial, isLink: true });
  }
}
