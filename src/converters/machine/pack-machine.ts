import { createHash } from "node:crypto";
import { StoredHash } from "../../files/stored-hash.ts";
import type { ByteSink } from "../../model/byte-sink.ts";
import type { BlockSource } from "../block-source.ts";
import { type Poured, pour } from "../pour.ts";
import { imageSink } from "../write-image.ts";
import { type OvfMachine, ovfText } from "./ovf-text.ts";
import { endMember, tarEnd, tarHeader } from "./tar-writer.ts";

/** A VM with the disks that go into its package, in boot order. */
export interface PackagedMachine extends Omit<OvfMachine, "disks"> {
  readonly sources: readonly BlockSource[];
}

/** What a package says of a VM of which nobody knows better. */
export const defaultHardware: Pick<OvfMachine, "cpus" | "memoryBytes"> = { cpus: 1, memoryBytes: 2 ** 30 };

/** A disk in its archive. */
export interface PackedDisk {
  readonly member: string;
  /** Where in the archive it begins. */
  readonly offset: number;
  readonly bytes: number;
  /** Tree hash of these bytes, over pieces of 8 MiB. */
  readonly hash: string;
  readonly poured: Poured;
}

export interface PackOptions {
  readonly signal?: AbortSignal;
  /** Compute the hash of each disk's content on the way. */
  /** Of the content hash, for each disk. */
  readonly hashPieceBytes?: readonly number[];
  /** Called with the bytes of a disk's data that were read since the last call; `disk` counts from 0. */
  readonly onRead?: (bytes: number, disk: number) => void;
  /** Called when a disk is packed. */
  readonly onDisk?: (disk: PackedDisk, index: number) => void;
}

/**
 * Writes a VM as an OVA archive in one pass: descriptor, manifest, disks. What stands in front of a disk depends on how it shrinks: it
 * is left as a gap, and filled when it is known, so that nothing is made beside the archive first.
 */
export async function packMachine(out: ByteSink, stem: string, machine: PackagedMachine, options: PackOptions = {}): Promise<PackedDisk[]> {
  const names = packageNames(stem, machine.sources.length);
  const ovfOf = (sizes: readonly number[]): string =>
    ovfText({
      ...machine,
      disks: machine.sources.map(({ sizeBytes }, i) => ({
        fileName: names.disks[i] as string,
        fileBytes: sizes[i] ?? Number.MAX_SAFE_INTEGER,
        virtualBytes: wholeSectors(sizeBytes),
      })),
    });
  const manifestOf = (hashes: readonly string[]): string => manifestText([names.ovf, ...names.disks], hashes);
  const ovfBytes = Buffer.byteLength(ovfOf([]));
  const manifestBytes = Buffer.byteLength(manifestOf([]));
  const fillOvf = await reserveMember(out, ovfBytes);
  const fillManifest = await reserveMember(out, manifestBytes);

  const disks: PackedDisk[] = [];
  const hashes: string[] = [];
  for (const [i, source] of machine.sources.entries()) {
    const member = names.disks[i] as string;
    const fillHeader = out.reserve(512);
    const offset = out.position;
    const content = hashedMember(out);
    const { signal, onRead } = options;
    const pieceBytes = options.hashPieceBytes?.[i];
    const poured = await pour(source, imageSink("vmdk", content, source.sizeBytes, { compression: "zlib", fileName: member }), {
      ...(pieceBytes ? { hashPieceBytes: pieceBytes } : {}),
      ...(signal ? { signal } : {}),
      ...(onRead ? { onRead: (bytes: number) => onRead(bytes, i) } : {}),
    });
    const bytes = content.position;
    await endMember(out, bytes);
    await fillHeader(tarHeader(member, bytes, nowS()));
    const { sha256, tree } = content.digest();
    hashes.push(sha256);
    disks.push({ member, offset, bytes, hash: tree, poured });
    options.onDisk?.(disks[i] as PackedDisk, i);
  }
  await out.append(tarEnd);
  // white space after the last element makes it as long as the gap
  const ovf = ovfOf(disks.map(({ bytes }) => bytes));
  const padded = Buffer.from(ovf + "\n".repeat(ovfBytes - Buffer.byteLength(ovf)));
  await fillOvf(names.ovf, padded);
  await fillManifest(names.manifest, Buffer.from(manifestOf([createHash("sha256").update(padded).digest("hex"), ...hashes])));
  return disks;
}

/** The files of a package: what its descriptor, its manifest and its disks are called. */
export function packageNames(stem: string, disks: number): { readonly ovf: string; readonly manifest: string; readonly disks: readonly string[] } {
  return { ovf: `${stem}.ovf`, manifest: `${stem}.mf`, disks: Array.from({ length: disks }, (_, i) => `${stem}-disk${i + 1}.vmdk`) };
}

/** The manifest of a package: a line for each file. */
export function manifestText(files: readonly string[], hashes: readonly string[]): string {
  return files.map((file, i) => `SHA256(${file})= ${hashes[i] ?? "0".repeat(64)}\n`).join("");
}

export function wholeSectors(bytes: number): number {
  return Math.ceil(bytes / 512) * 512;
}

function nowS(): number {
  return Math.floor(Date.now() / 1000);
}

/** A member whose content comes later, and of which only the size is known. */
async function reserveMember(out: ByteSink, bytes: number): Promise<(name: string, content: Buffer) => Promise<void>> {
  const fillHeader = out.reserve(512);
  const fillContent = out.reserve(bytes);
  await endMember(out, bytes);
  return async (name, content) => {
    await fillHeader(tarHeader(name, bytes, nowS()));
    await fillContent(content);
  };
}

/** The part of an archive that one member is, hashed on its way; its positions count from its own beginning. */
function hashedMember(out: ByteSink): ByteSink & { digest(): { readonly sha256: string; readonly tree: string } } {
  const start = out.position;
  const sha256 = createHash("sha256");
  const tree = new StoredHash();
  return {
    reserve() {
      throw new Error("a member of an archive is written without gaps");
    },
    append(data) {
      sha256.update(data);
      tree.update(data);
      return out.append(data);
    },
    async skip(bytes) {
      await this.append(Buffer.alloc(bytes));
    },
    settled: () => out.settled(),
    get position() {
      return out.position - start;
    },
    digest: () => ({ sha256: sha256.digest("hex"), tree: tree.digest() }),
  };
}
