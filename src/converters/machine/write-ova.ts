import { createHash, randomUUID } from "node:crypto";
import { mkdir, rm } from "node:fs/promises";
import { basename, dirname, extname, join, resolve } from "node:path";
import { partialName, publish, writeDurably } from "../../files/durable.ts";
import { LocalFileSink } from "../../files/local-file-sink.ts";
import type { ByteSink } from "../../model/byte-sink.ts";
import type { BlockSource } from "../block-source.ts";
import { openByteFile } from "../byte-file.ts";
import { refuseTarget, writeImageFile } from "../image-file.ts";
import { pour } from "../pour.ts";
import { hashOf } from "./ovf-manifest.ts";
import { type OvfMachine, ovfText } from "./ovf-text.ts";
import { endMember, tarEnd, tarHeader } from "./tar-writer.ts";

/** A VM with the disks that go into its package, in boot order. */
export interface PackagedMachine extends Omit<OvfMachine, "disks"> {
  readonly sources: readonly BlockSource[];
}

export interface PackageOptions {
  readonly overwrite: boolean;
  /** Files that are read meanwhile: the output may be none of them. */
  readonly inputs: readonly string[];
  /** Called when all disks are read, before anything gets its name. @throws when what was read changed meanwhile */
  readonly confirm: () => void;
  readonly signal?: AbortSignal;
  readonly onRead?: (bytes: number) => void;
}

export interface WrittenPackage {
  readonly bytes: number;
  readonly readBytes: number;
}

/** Writes a VM as one `.ova`. The descriptor comes first in it and holds the sizes of the disks, so everything is made beside it before. */
export async function writeOva(path: string, machine: PackagedMachine, options: PackageOptions): Promise<WrittenPackage> {
  const target = resolve(path);
  refuseTarget(path, target, options);
  return inStage(target, path, machine, options, async (stage, names) => {
    const partial = partialName(target, randomUUID());
    const out = await LocalFileSink.create(partial, { hashed: false, shownAs: path });
    try {
      for (const name of names) await appendMember(out, join(stage, name), name, options.signal);
      await out.append(tarEnd);
      const { bytes } = await out.finish(false);
      refuseTarget(path, target, options);
      await publish(partial, target, false);
      return bytes;
    } catch (error) {
      await out.abort();
      await rm(partial, { force: true });
      throw error;
    }
  });
}

/** Writes a VM as a folder of files: the disks, then the manifest, and the descriptor that makes it a package last. */
export async function writeOvf(path: string, machine: PackagedMachine, options: PackageOptions): Promise<WrittenPackage> {
  const target = resolve(path);
  const beside = (name: string): string => join(dirname(target), name);
  const refuse = (name: string): void => refuseTarget(beside(name), beside(name), options);
  for (const name of namesOf(target, machine)) refuse(name);
  return inStage(target, path, machine, options, async (stage, names, bytes) => {
    for (const name of names) refuse(name);
    for (const name of [...names].reverse()) await publish(join(stage, name), beside(name), false);
    return bytes;
  });
}

/** The files of a package in the order of an archive: descriptor, manifest, disks. */
function namesOf(target: string, { sources }: PackagedMachine): string[] {
  const stem = basename(target, extname(target));
  return [`${stem}.ovf`, `${stem}.mf`, ...sources.map((_, i) => `${stem}-disk${i + 1}.vmdk`)];
}

/** Makes the whole package in a hidden folder beside the target, so that a failure touches nothing that has a name. */
async function inStage(
  target: string,
  shownAs: string,
  machine: PackagedMachine,
  { signal, onRead, confirm }: PackageOptions,
  finish: (stage: string, names: readonly string[], bytes: number) => Promise<number>,
): Promise<WrittenPackage> {
  const names = namesOf(target, machine);
  const [ovfName, manifestName, ...diskNames] = names as [string, string, ...string[]];
  const stage = partialName(target, randomUUID());
  await mkdir(stage, { mode: 0o700 });
  try {
    const disks: { fileName: string; fileBytes: number; virtualBytes: number; hash: string }[] = [];
    let readBytes = 0;
    for (const [i, source] of machine.sources.entries()) {
      const fileName = diskNames[i] as string;
      const path = join(stage, fileName);
      const how = { compression: "zlib", overwrite: false, inputs: [], durable: false, shownAs } as const;
      const { bytes } = await writeImageFile(path, "vmdk", source.sizeBytes, how, async (sink) => {
        readBytes += (await pour(source, sink, { ...(signal ? { signal } : {}), ...(onRead ? { onRead } : {}) })).readBytes;
      });
      disks.push({ fileName, fileBytes: bytes, virtualBytes: Math.ceil(source.sizeBytes / 512) * 512, hash: await fileHash(path, signal) });
    }
    confirm();
    const ovf = ovfText({ ...machine, disks });
    const hashes = [{ fileName: ovfName, hash: createHash("sha256").update(ovf).digest("hex") }, ...disks];
    const manifest = hashes.map(({ fileName, hash }) => `SHA256(${fileName})= ${hash}\n`).join("");
    await writeDurably(join(stage, ovfName), ovf, randomUUID());
    await writeDurably(join(stage, manifestName), manifest, randomUUID());
    const bytes = Buffer.byteLength(ovf) + Buffer.byteLength(manifest) + disks.reduce((sum, { fileBytes }) => sum + fileBytes, 0);
    return { bytes: await finish(stage, names, bytes), readBytes };
  } finally {
    await rm(stage, { recursive: true, force: true });
  }
}

async function fileHash(path: string, signal: AbortSignal | undefined): Promise<string> {
  const file = openByteFile(path);
  try {
    return await hashOf(file, "sha256", signal);
  } finally {
    await file.close();
  }
}

async function appendMember(out: ByteSink, path: string, name: string, signal: AbortSignal | undefined): Promise<void> {
  const file = openByteFile(path);
  try {
    await out.append(tarHeader(name, file.sizeBytes, Math.floor(Date.now() / 1000)));
    for (let at = 0; at < file.sizeBytes; ) {
      signal?.throwIfAborted();
      const piece = Buffer.allocUnsafeSlow(Math.min(1 << 20, file.sizeBytes - at));
      await file.read(at, piece);
      await out.append(piece);
      at += piece.length;
    }
    await endMember(out, file.sizeBytes);
  } finally {
    await file.close();
  }
}
