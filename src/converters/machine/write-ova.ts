import { createHash, randomUUID } from "node:crypto";
import { rm } from "node:fs/promises";
import { basename, dirname, extname, join, resolve } from "node:path";
import { partialName, publish, writeDurably } from "../../files/durable.ts";
import { LocalFileSink } from "../../files/local-file-sink.ts";
import type { ByteSink } from "../../model/byte-sink.ts";
import type { BlockSource } from "../block-source.ts";
import { openByteFile } from "../byte-file.ts";
import { refuseTarget, writeImageFile } from "../image-file.ts";
import { pour } from "../pour.ts";
import { streamOptimizedSink } from "../vmdk/stream-sink.ts";
import { hashOf } from "./ovf-manifest.ts";
import { type OvfMachine, ovfText } from "./ovf-text.ts";
import { endMember, tarEnd, tarHeader } from "./tar-writer.ts";

export interface OvaOptions {
  readonly overwrite: boolean;
  /** Files that are read meanwhile: the output may be none of them. */
  readonly inputs: readonly string[];
  readonly signal?: AbortSignal;
  readonly onRead?: (bytes: number) => void;
}

/**
 * Writes a VM as one `.ova`: descriptor, manifest with SHA-256 hashes, disks as stream-optimized VMDKs. The descriptor comes first and
 * holds the sizes of the disks, so these are written beside the archive first and are gone when it has its name.
 */
export async function writeOva(
  path: string,
  machine: Omit<OvfMachine, "disks">,
  sources: readonly BlockSource[],
  confirm: () => void,
  options: OvaOptions,
): Promise<{ readonly bytes: number; readonly readBytes: number }> {
  const target = resolve(path);
  refuseTarget(path, target, options);
  const stem = basename(target, extname(target));
  const spools: { readonly path: string; readonly fileName: string; readonly fileBytes: number; readonly virtualBytes: number; readonly hash: string }[] = [];
  const partials: string[] = [];
  let readBytes = 0;
  try {
    for (const [i, source] of sources.entries()) {
      const fileName = `${stem}-disk${i + 1}.vmdk`;
      const spool = partialName(target, randomUUID());
      partials.push(spool);
      const file = await LocalFileSink.create(spool, { hashed: false, shownAs: path });
      const hashed = hashing(file);
      try {
        const poured = await pour(source, streamOptimizedSink(hashed.sink, source.sizeBytes, fileName), options);
        readBytes += poured.readBytes;
        const { bytes } = await file.finish(false);
        spools.push({ path: spool, fileName, fileBytes: bytes, virtualBytes: Math.ceil(source.sizeBytes / 512) * 512, hash: hashed.digest() });
      } catch (error) {
        await file.abort();
        throw error;
      }
    }
    confirm();
    const ovf = Buffer.from(ovfText({ ...machine, disks: spools }));
    const lines = [{ fileName: `${stem}.ovf`, hash: createHash("sha256").update(ovf).digest("hex") }, ...spools];
    const manifest = Buffer.from(lines.map(({ fileName, hash }) => `SHA256(${fileName})= ${hash}\n`).join(""));
    const partial = partialName(target, randomUUID());
    partials.push(partial);
    const out = await LocalFileSink.create(partial, { hashed: false, shownAs: path });
    try {
      const now = Math.floor(Date.now() / 1000);
      for (const [name, content] of [
        [`${stem}.ovf`, ovf],
        [`${stem}.mf`, manifest],
      ] as const) {
        await out.append(Buffer.concat([tarHeader(name, content.length, now), content]));
        await endMember(out, content.length);
      }
      for (const { path: spool, fileName, fileBytes } of spools) {
        await out.append(tarHeader(fileName, fileBytes, now));
        await copyInto(out, spool, options.signal);
        await endMember(out, fileBytes);
      }
      await out.append(tarEnd);
      const { bytes } = await out.finish(false);
      refuseTarget(path, target, options);
      await publish(partial, target, false);
      return { bytes, readBytes };
    } catch (error) {
      await out.abort();
      throw error;
    }
  } finally {
    for (const partial of partials) await rm(partial, { force: true });
  }
}

/** The same VM as a folder of files: the disks, then the manifest, and the descriptor that makes it a package last. */
export async function writeOvf(
  path: string,
  machine: Omit<OvfMachine, "disks">,
  sources: readonly BlockSource[],
  confirm: () => void,
  options: OvaOptions,
): Promise<{ readonly bytes: number; readonly readBytes: number }> {
  const target = resolve(path);
  const stem = basename(target, extname(target));
  const beside = (name: string): string => join(dirname(target), name);
  const names = sources.map((_, i) => `${stem}-disk${i + 1}.vmdk`);
  for (const name of [`${stem}.ovf`, `${stem}.mf`, ...names]) refuseTarget(name, beside(name), options);
  const made: string[] = [];
  let [bytes, readBytes] = [0, 0];
  try {
    const disks: { fileName: string; fileBytes: number; virtualBytes: number; hash: string }[] = [];
    for (const [i, source] of sources.entries()) {
      const fileName = names[i] as string;
      const written = await writeImageFile(beside(fileName), "vmdk", source.sizeBytes, { compression: "zlib", durable: false, ...options }, async (sink) => {
        readBytes += (await pour(source, sink, options)).readBytes;
      });
      made.push(beside(fileName));
      const file = openByteFile(beside(fileName));
      const hash = await hashOf(file, "sha256", options.signal).finally(() => file.close());
      disks.push({ fileName, fileBytes: written.bytes, virtualBytes: Math.ceil(source.sizeBytes / 512) * 512, hash });
      bytes += written.bytes;
    }
    confirm();
    const ovf = ovfText({ ...machine, disks });
    const lines = [{ fileName: `${stem}.ovf`, hash: createHash("sha256").update(ovf).digest("hex") }, ...disks];
    for (const [name, text] of [
      [`${stem}.mf`, lines.map(({ fileName, hash }) => `SHA256(${fileName})= ${hash}\n`).join("")],
      [`${stem}.ovf`, ovf],
    ] as const) {
      await writeDurably(beside(name), text, randomUUID());
      made.push(beside(name));
      bytes += Buffer.byteLength(text);
    }
    return { bytes, readBytes };
  } catch (error) {
    for (const file of made) await rm(file, { force: true });
    throw error;
  }
}

/** A sink that hashes what goes through it; for writers that go from front to back without a head. */
function hashing(out: ByteSink): { readonly sink: ByteSink; readonly digest: () => string } {
  const hash = createHash("sha256");
  const sink: ByteSink = {
    reserveHead() {
      throw new Error("a file with a head cannot be hashed on the way");
    },
    head: (data) => out.head(data),
    async append(data) {
      hash.update(data);
      await out.append(data);
    },
    settled: () => out.settled(),
    async skip(bytes) {
      for (let left = bytes; left > 0; left -= 65_536) hash.update(Buffer.alloc(Math.min(left, 65_536)));
      await out.skip(bytes);
    },
    get position() {
      return out.position;
    },
  };
  return { sink, digest: () => hash.digest("hex") };
}

async function copyInto(out: ByteSink, path: string, signal: AbortSignal | undefined): Promise<void> {
  const file = openByteFile(path);
  try {
    for (let at = 0; at < file.sizeBytes; ) {
      signal?.throwIfAborted();
      const piece = Buffer.allocUnsafeSlow(Math.min(1 << 20, file.sizeBytes - at));
      await file.read(at, piece);
      await out.append(piece);
      at += piece.length;
    }
    await out.settled();
  } finally {
    await file.close();
  }
}
