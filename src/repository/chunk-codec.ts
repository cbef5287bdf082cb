import * as zlib from "node:zlib";

/** Room that a frame of so many bytes needs at most: what cannot be compressed grows by a 256th and its head. */
export function frameRoom(chunkBytes: number): number {
  return chunkBytes + Math.ceil(chunkBytes / 256) + 64;
}

/** Writes one zstd frame of level 1 to the beginning of `into`, which has room for any, and returns its length. */
export type Compress = (chunk: Uint8Array, into: Uint8Array) => number;

/**
 * `zstdCompressSync` makes a context and a buffer for each chunk, and what the collector does about them takes as much CPU as compressing: here
 * one context is kept, through what `node:zlib` itself has of a stream. Its first frames are compared with those of the public call, which is
 * taken from then on should they differ, or Node have no such thing any more. This is also taken as text, by a thread.
 */
export function compressor({ createZstdCompress, zstdCompressSync }: Pick<typeof zlib, "createZstdCompress" | "zstdCompressSync">): Compress {
  interface Inside {
    readonly _handle?: { writeSync?(flush: number, from: Uint8Array, at: number, length: number, into: Uint8Array, intoAt: number, room: number): void };
    /** What is left of the room, and of what came in. */
    readonly _writeState?: Uint32Array;
  }
  // ZSTD_c_compressionLevel, ZSTD_e_end
  const [options, end] = [{ params: { 100: 1 } }, 2];
  let stream: (Inside & { readonly destroyed: boolean }) | undefined = createZstdCompress(options) as object as Inside & { readonly destroyed: boolean };
  let unseen = 2;
  return (chunk, into) => {
    if (stream?._handle?.writeSync && stream._writeState) {
      stream._handle.writeSync(end, chunk, 0, chunk.length, into, 0, into.length);
      const [room = 0, rest] = stream._writeState;
      const length = into.length - room;
      const isWhole = rest === 0 && room > 0 && !stream.destroyed;
      if (isWhole && (unseen === 0 || zstdCompressSync(chunk, { ...options, chunkSize: into.length }).equals(into.subarray(0, length)))) {
        unseen = Math.max(0, unseen - 1);
        return length;
      }
      stream = undefined;
    }
    const frame = zstdCompressSync(chunk, options);
    into.set(frame);
    return frame.length;
  };
}

let onThis: Compress | undefined;

/** {@link Compress}, on this thread. */
export const compress: Compress = (chunk, into) => (onThis ??= compressor(zlib))(chunk, into);

/** One zstd frame; null where it is no shorter than the chunk. */
export function compressChunk(chunk: Buffer): Buffer | null {
  const room = Buffer.allocUnsafeSlow(frameRoom(chunk.length));
  const length = compress(chunk, room);
  return length < chunk.length ? room.subarray(0, length) : null;
}
