import { createHash, randomBytes } from "node:crypto";
import { HypersdkError } from "../model/errors.ts";
import { contentPieceBytes } from "../model/tree-hash.ts";

/**
 * The objects of a repository, version 1. All numbers are little-endian; `docs/formats/repository.md` says the same in words.
 *
 *     pack      chunks, one behind the other · directory: an entry for each · trailer
 *     entry     0 id (32) · 32 offset u32 · 36 stored bytes u32 · 40 raw bytes u32 · 44 method u8 · 45 zero (3)
 *     trailer   0 "HSPACK\0\1" · 8 entries u32 · 12 CRC-32 of everything before the directory u32 · 16 salt (8)
 *     index     0 "HSINDX\0\1" · 8 packs u32 · 12 zero u32 · 16 salt (8) · then for each: name (32) · entries u32 · zero u32 · its directory
 *     segment   zstd over: 0 "HSSEGM\0\1" · 8 chunk bytes u32 · 12 chunks u32 · 16 salt (8) · an id (32) for each, zeros for a chunk of zeros
 *
 * A pack is named by the SHA-256 of its directory and trailer, which name its chunks by theirs; an index and a segment by that of their
 * bytes. No bit of any of them can change unnoticed. The salt is random: no name is
 * ever given twice, so that whoever decided to delete an object can never meet another one under its name.
 */
export const repositoryVersion = 1;
/** Of the manifests of restore points, in either layout. */
export const manifestVersion = 1;

export const idBytes = 32;
export const entryBytes = 48;
/** Where in an entry its fields are; the id comes first. */
const fieldAt = { offset: 32, storedBytes: 36, rawBytes: 40, method: 44 } as const;
/** The same in words of four bytes, for loops over thousands of them: {@link wordsOf}. */
export const idWords: number = idBytes / 4;
export const entryWords: number = entryBytes / 4;
const wordAt = { offset: 8, storedBytes: 9, rawBytes: 10, method: 11 } as const;
export const trailerBytes = 24;
export const methods = { stored: 0, zstd: 1 } as const;

/** Chunks of a disk: 64 KiB to 4 MiB, a power of two. */
export const minChunkBytes: number = 64 * 1024;
export const maxChunkBytes: number = 4 * 2 ** 20;
/** docs/decisions/013 says why. */
export const defaultChunkBytes: number = contentPieceBytes;
/** What a segment covers of a disk. */
export const segmentBytes: number = 2 ** 30;
/** A pack is closed when it holds this much; offsets in it are 32 bits. */
export const packBytes: number = 16 * 2 ** 20;
export const maxPackBytes: number = 64 * 2 ** 20;
const maxIndexBytes = 64 * 2 ** 20;
const saltBytes = 8;
/** In front of an index and of a segment. */
const headBytes = 24;

export const packsFolder = "packs";
export const indexFolder = "index";
export const segmentsFolder = "segments";
export const pointsFolder = "points";
export const condemnedFolder = "condemned";
export const locksFolder = "locks";
export const keysFolder = "keys";

/** Whether a path is one that a repository writes at once, an object or a leftover of one. */
export function isOfRepository(path: string): boolean {
  return [packsFolder, indexFolder, segmentsFolder, pointsFolder, condemnedFolder, locksFolder, keysFolder].includes(path.slice(0, path.indexOf("/")));
}

const magics = { pack: Buffer.from("HSPACK\0\x01", "latin1"), index: Buffer.from("HSINDX\0\x01", "latin1"), segment: Buffer.from("HSSEGM\0\x01", "latin1") };

export interface ChunkEntry {
  readonly id: Buffer;
  readonly offset: number;
  readonly storedBytes: number;
  readonly rawBytes: number;
  readonly method: number;
}

const isLittleEndian = new Uint8Array(Uint32Array.of(1).buffer)[0] === 1;

/**
 * Bytes as words of four, the lowest first. They are seen in place where they begin on a multiple of four, as all that is read here does;
 * others are copied. A program that has just begun walks over words ten times as fast as over `readUInt32LE`.
 */
export function wordsOf(bytes: Buffer): Uint32Array {
  const aligned = isLittleEndian && bytes.byteOffset % 4 === 0 ? bytes : Buffer.from(bytes);
  return new Uint32Array(isLittleEndian ? aligned.buffer : aligned.swap32().buffer, aligned.byteOffset, aligned.length >>> 2);
}

export function nameOf(...parts: readonly Uint8Array[]): string {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest("hex");
}

export function encodeEntry({ id, offset, storedBytes, rawBytes, method }: ChunkEntry): Buffer {
  const entry = Buffer.alloc(entryBytes);
  id.copy(entry);
  entry.writeUInt32LE(offset, fieldAt.offset);
  entry.writeUInt32LE(storedBytes, fieldAt.storedBytes);
  entry.writeUInt32LE(rawBytes, fieldAt.rawBytes);
  entry.writeUInt8(method, fieldAt.method);
  return entry;
}

/** How long the file of a pack with this directory is. @param overheadBytes by how much sealing makes the directory longer */
export function packFileBytes(directory: Buffer, overheadBytes: number): number {
  const words = wordsOf(directory);
  let end = 0;
  for (let at = 0; at < words.length; at += entryWords) {
    const chunkEnd = (words[at + wordAt.offset] as number) + (words[at + wordAt.storedBytes] as number);
    if (chunkEnd > end) end = chunkEnd;
  }
  return end + directory.length + overheadBytes + trailerBytes;
}

/** The entry at `at` of a directory that {@link checkDirectory} has seen. */
export function entryAt(directory: Buffer, at: number): ChunkEntry {
  return {
    id: directory.subarray(at, at + idBytes),
    offset: directory.readUInt32LE(at + fieldAt.offset),
    storedBytes: directory.readUInt32LE(at + fieldAt.storedBytes),
    rawBytes: directory.readUInt32LE(at + fieldAt.rawBytes),
    method: directory.readUInt8(at + fieldAt.method),
  };
}

export function packTrailer(entries: number, crc: number): Buffer {
  const trailer = Buffer.alloc(trailerBytes);
  magics.pack.copy(trailer);
  trailer.writeUInt32LE(entries, 8);
  trailer.writeUInt32LE(crc, 12);
  randomBytes(saltBytes).copy(trailer, 16);
  return trailer;
}

/** @returns how many bytes of directory stand in front of the trailer */
export function decodeTrailer(path: string, trailer: Buffer, fileBytes: number, overheadBytes: number): number {
  if (!trailer.subarray(0, 8).equals(magics.pack)) throw damaged(path, "it does not end as a pack of version 1");
  const entries = trailer.readUInt32LE(8);
  const bytes = entries * entryBytes + overheadBytes;
  if (fileBytes > maxPackBytes || bytes + trailerBytes > fileBytes) throw damaged(path, `its trailer counts ${entries} chunks in ${fileBytes} bytes`);
  return bytes;
}

/** Every field of every entry, so that whoever looks one up may trust it. @param overheadBytes by how much sealing makes a chunk longer */
export function checkDirectory(path: string, directory: Buffer, overheadBytes: number): void {
  if (directory.length % entryBytes !== 0) throw damaged(path, `its directory has ${directory.length} bytes`);
  const words = wordsOf(directory);
  for (let at = 0; at < words.length; at += entryWords) {
    const offset = words[at + wordAt.offset] as number;
    const storedBytes = words[at + wordAt.storedBytes] as number;
    const rawBytes = words[at + wordAt.rawBytes] as number;
    const method = (words[at + wordAt.method] as number) & 0xff;
    if (offset + storedBytes > maxPackBytes || rawBytes === 0 || rawBytes > maxChunkBytes || storedBytes > maxChunkBytes + overheadBytes)
      throw damaged(path, `its entry ${at / entryWords} says ${storedBytes} bytes at ${offset} for ${rawBytes}`);
    if (method !== methods.zstd && !(method === methods.stored && storedBytes === rawBytes + overheadBytes))
      throw damaged(path, `its entry ${at / entryWords} has the method ${method}`);
  }
}

/** The directory of one pack, as an index holds it. */
export interface PackDirectory {
  readonly name: string;
  readonly directory: Buffer;
}

export function encodeIndex(packs: readonly PackDirectory[]): Buffer {
  const head = Buffer.alloc(headBytes);
  magics.index.copy(head);
  head.writeUInt32LE(packs.length, 8);
  randomBytes(saltBytes).copy(head, 16);
  return Buffer.concat([
    head,
    ...packs.flatMap(({ name, directory }) => {
      const lead = Buffer.alloc(40);
      lead.write(name, 0, "hex");
      lead.writeUInt32LE(directory.length / entryBytes, 32);
      return [lead, directory];
    }),
  ]);
}

export function decodeIndex(path: string, bytes: Buffer, overheadBytes: number): PackDirectory[] {
  if (bytes.length < headBytes || !bytes.subarray(0, 8).equals(magics.index)) throw damaged(path, "it does not begin as an index of version 1");
  const packs: PackDirectory[] = [];
  let at = headBytes;
  for (let left = bytes.readUInt32LE(8); left > 0; left--) {
    const directoryAt = at + 40;
    const end = directoryAt + (directoryAt <= bytes.length ? bytes.readUInt32LE(at + 32) * entryBytes : 0);
    if (end > bytes.length || directoryAt > bytes.length) throw damaged(path, `it ends at ${bytes.length}, in its pack ${packs.length}`);
    const directory = bytes.subarray(directoryAt, end);
    checkDirectory(path, directory, overheadBytes);
    packs.push({ name: bytes.toString("hex", at, at + idBytes), directory });
    at = end;
  }
  if (at !== bytes.length) throw damaged(path, `${bytes.length - at} bytes follow its last pack`);
  return packs;
}

export const maxObjectBytes: { readonly index: number; readonly segment: number; readonly point: number } = {
  point: 32 * 2 ** 20,
  index: maxIndexBytes,
  segment: 2 * (segmentBytes / minChunkBytes) * idBytes,
};

/** @param ids 32 bytes for each chunk */
export function encodeSegment(chunkBytes: number, ids: Buffer): Buffer {
  const head = Buffer.alloc(headBytes);
  magics.segment.copy(head);
  head.writeUInt32LE(chunkBytes, 8);
  head.writeUInt32LE(ids.length / idBytes, 12);
  randomBytes(saltBytes).copy(head, 16);
  return Buffer.concat([head, ids]);
}

/** @returns 32 bytes for each chunk */
export function decodeSegment(path: string, bytes: Buffer, chunkBytes: number, chunks: number): Buffer {
  if (bytes.length < headBytes || !bytes.subarray(0, 8).equals(magics.segment)) throw damaged(path, "it does not begin as a segment of version 1");
  if (bytes.readUInt32LE(8) !== chunkBytes || bytes.readUInt32LE(12) !== chunks || bytes.length !== headBytes + chunks * idBytes)
    throw damaged(path, `it lists ${bytes.readUInt32LE(12)} chunks of ${bytes.readUInt32LE(8)} bytes, wanted are ${chunks} of ${chunkBytes}`);
  return bytes.subarray(headBytes);
}

export function isZeroId(ids: Buffer, at: number): boolean {
  for (let i = at; i < at + idBytes; i++) if (ids[i] !== 0) return false;
  return true;
}

export function damaged(path: string, why: string): HypersdkError {
  return new HypersdkError("ArtifactDamaged", `${path}: ${why}`);
}
