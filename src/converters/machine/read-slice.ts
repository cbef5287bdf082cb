import { closeSync, constants, openSync, readSync } from "node:fs";

/** Bytes of a file from `offset`, fewer where it ends before. */
export function readSlice(path: string, offset: number, length: number): Buffer {
  const descriptor = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const buffer = Buffer.alloc(length);
    return buffer.subarray(0, readSync(descriptor, buffer, 0, length, offset));
  } finally {
    closeSync(descriptor);
  }
}
