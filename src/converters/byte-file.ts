import { closeSync, constants, fstatSync, openSync, read as readCallback } from "node:fs";
import { HypersdkError } from "../model/errors.ts";

/** Bytes that can be read anywhere: a local file, or a member of an archive in place. */
export interface ByteFile {
  /** For messages: the file's name as people know it. */
  readonly name: string;
  readonly sizeBytes: number;
  /** The same for the same file under whatever name; undefined for what is no file of its own. */
  readonly id?: string;
  /** Allocated bytes where the file is sparse; undefined when unknown. */
  readonly allocatedBytes?: number;
  /** The descriptor, where holes can be asked for. */
  readonly descriptor?: number;
  /** Fills `into` from `offset`. @throws ImageDamaged when the file ends before */
  read(offset: number, into: Buffer): Promise<void>;
  close(): Promise<void>;
}

/** Opens a regular file for reading; anything else (device, pipe, folder) is refused without waiting for it. */
export function openByteFile(path: string, name: string = path): ByteFile {
  let descriptor: number;
  try {
    // O_NONBLOCK: opening a named pipe must not wait for a writer
    descriptor = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    throw new HypersdkError(
      code === "ENOENT" ? "NotFound" : "SourceUnavailable",
      `cannot open ${name}: ${code === "ENOENT" ? "there is no such file" : code}`,
      { cause: error },
    );
  }
  const stat = fstatSync(descriptor);
  if (!stat.isFile()) {
    closeSync(descriptor);
    throw new HypersdkError("ImageUnsupported", `${name} is not a regular file`, { hint: "only files are read, no devices, pipes or folders" });
  }
  return {
    name,
    descriptor,
    id: `${stat.dev} ${stat.ino}`,
    sizeBytes: stat.size,
    allocatedBytes: stat.blocks * 512,
    read: (offset, into) => readFully(descriptor, name, offset, into),
    close: async () => closeSync(descriptor),
  };
}

/** A part of a file as a file of its own. Closing it leaves the whole open. */
export function sliceOf(file: ByteFile, offset: number, length: number, name: string): ByteFile {
  return {
    name,
    sizeBytes: length,
    read(at, into) {
      if (at + into.length > length) return Promise.reject(endsEarly(name, at, into.length, length));
      return file.read(offset + at, into);
    },
    close: async () => {},
  };
}

/** Reads `length` bytes into a new buffer, refusing a length over `limit`, so that a header cannot ask for all memory. */
export async function readBytes(file: ByteFile, offset: number, length: number, limit: number = 32 * 2 ** 20): Promise<Buffer> {
  if (length > limit) throw new HypersdkError("ImageDamaged", `${file.name}: a structure of ${length} bytes is over the limit of ${limit}`);
  if (offset < 0 || length < 0 || offset + length > file.sizeBytes) throw endsEarly(file.name, offset, length, file.sizeBytes);
  const buffer = Buffer.allocUnsafe(length);
  await file.read(offset, buffer);
  return buffer;
}

function endsEarly(name: string, offset: number, length: number, sizeBytes: number): HypersdkError {
  return new HypersdkError("ImageDamaged", `${name}: ${length} bytes at offset ${offset} are needed, but the file ends at ${sizeBytes}`);
}

function readFully(descriptor: number, name: string, offset: number, into: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    let done = 0;
    const next = (): void => {
      readCallback(descriptor, into, done, into.length - done, offset + done, (error, count) => {
        if (error) return reject(new HypersdkError("SourceUnavailable", `cannot read ${name}: ${error.code}`, { cause: error }));
        if (count === 0) return reject(endsEarly(name, offset, into.length, offset + done));
        done += count;
        if (done === into.length) resolve();
        else next();
      });
    };
    if (into.length === 0) resolve();
    else next();
  });
}
