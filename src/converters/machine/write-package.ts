import { createHash, randomUUID } from "node:crypto";
import { mkdir, rm } from "node:fs/promises";
import { basename, dirname, extname, join, resolve } from "node:path";
import { partialName, publish, writeDurably } from "../../files/durable.ts";
import { LocalFileSink } from "../../files/local-file-sink.ts";
import { openByteFile } from "../byte-file.ts";
import { modeOf, refuseTarget, writeImageFile } from "../image-file.ts";
import { type Poured, pour } from "../pour.ts";
import { hashOf } from "./ovf-manifest.ts";
import { ovfText } from "./ovf-text.ts";
import { manifestText, type PackagedMachine, packageNames, packMachine, wholeSectors } from "./pack-machine.ts";

interface PackageOptions {
  readonly overwrite: boolean;
  /** Files that are read meanwhile: the output may be none of them. */
  readonly inputs: readonly string[];
  /** Called with the content hash of each disk, empty without `hashPieceBytes`, before anything gets its name. @throws when they may not be used */
  readonly confirm: (contentHashes: readonly string[]) => void;
  /** Of the content hash, for each disk. */
  readonly hashPieceBytes?: readonly number[];
  readonly signal?: AbortSignal;
  readonly onRead?: (bytes: number) => void;
  /** Wait until it would survive a power cut. */
  readonly durable?: boolean;
}

interface WrittenPackage {
  readonly bytes: number;
  readonly readBytes: number;
}

/** Writes a VM as one `.ova`, which gets its name when everything is in it. */
export async function writeOva(path: string, machine: PackagedMachine, options: PackageOptions): Promise<WrittenPackage> {
  const { durable = false, confirm } = options;
  const target = resolve(path);
  refuseTarget(path, target, options);
  const partial = partialName(target, randomUUID());
  const out = await LocalFileSink.create(partial, { hashed: false, durable, shownAs: path, mode: modeOf(target) });
  try {
    const disks = await packMachine(out, basename(target, extname(target)), machine, options);
    confirm(disks.map(({ poured }) => poured.contentHash));
    const { bytes } = await out.finish();
    refuseTarget(path, target, options);
    await publish(partial, target, durable);
    return { bytes, readBytes: disks.reduce((sum, { poured }) => sum + poured.readBytes, 0) };
  } catch (error) {
    await out.abort();
    await rm(partial, { force: true });
    throw error;
  }
}

/**
 * Writes a VM as a folder of files: the disks, then the manifest, and the descriptor that makes it a package last. All of it is made in
 * a hidden folder beside the target, so that a failure touches nothing that has a name.
 */
export async function writeOvf(path: string, machine: PackagedMachine, options: PackageOptions): Promise<WrittenPackage> {
  const { signal, onRead, confirm, hashPieceBytes = [] } = options;
  const target = resolve(path);
  const names = packageNames(basename(target, extname(target)), machine.sources.length);
  const files = [names.ovf, names.manifest, ...names.disks];
  const refuse = (): void => {
    for (const name of files) refuseTarget(join(dirname(target), name), join(dirname(target), name), options);
  };
  refuse();
  const stage = partialName(target, randomUUID());
  await mkdir(stage, { mode: 0o700 });
  try {
    const disks: { fileName: string; fileBytes: number; virtualBytes: number; hash: string }[] = [];
    const poured: Poured[] = [];
    for (const [i, source] of machine.sources.entries()) {
      const fileName = names.disks[i] as string;
      const file = join(stage, fileName);
      const how = { compression: "zlib", overwrite: false, inputs: [], durable: false, shownAs: path } as const;
      const { bytes } = await writeImageFile(file, "vmdk", source.sizeBytes, how, async (sink) => {
        const pieceBytes = hashPieceBytes[i];
        poured.push(
          await pour(source, sink, { ...(pieceBytes ? { hashPieceBytes: pieceBytes } : {}), ...(signal ? { signal } : {}), ...(onRead ? { onRead } : {}) }),
        );
      });
      disks.push({ fileName, fileBytes: bytes, virtualBytes: wholeSectors(source.sizeBytes), hash: await fileHash(file, signal) });
    }
    confirm(poured.map(({ contentHash }) => contentHash));
    const ovf = ovfText({ ...machine, disks });
    const manifest = manifestText([names.ovf, ...names.disks], [createHash("sha256").update(ovf).digest("hex"), ...disks.map(({ hash }) => hash)]);
    await writeDurably(join(stage, names.ovf), ovf, randomUUID());
    await writeDurably(join(stage, names.manifest), manifest, randomUUID());
    refuse();
    for (const name of [...files].reverse()) await publish(join(stage, name), join(dirname(target), name), false);
    return {
      bytes: Buffer.byteLength(ovf) + Buffer.byteLength(manifest) + disks.reduce((sum, { fileBytes }) => sum + fileBytes, 0),
      readBytes: poured.reduce((sum, { readBytes }) => sum + readBytes, 0),
    };
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
