import { type ByteFile, readBytes } from "./byte-file.ts";

/** Formats that are read. */
export type ImageFormat = "raw" | "qcow2" | "vmdk";
/** What the content of a file says that it is. `unread` is known by name and refused by name. */
export type Detected =
  | { readonly kind: "format"; readonly format: "qcow2" | "vmdk-sparse" | "vmdk-descriptor" }
  | { readonly kind: "unread"; readonly name: string }
  | { readonly kind: "nothing" };

/**
 * Looks at both ends of a file, never at its name. Raw is what is left when nothing matches: a guest can write any header into
 * its own disk, so callers decide whether that may be taken for raw.
 */
export async function detect(file: ByteFile): Promise<Detected> {
  const head = await readBytes(file, 0, Math.min(file.sizeBytes, 512));
  const tail = file.sizeBytes > 512 ? await readBytes(file, file.sizeBytes - 512, 512) : Buffer.alloc(0);
  const byHead = detectHead(head);
  if (byHead.kind !== "nothing") return byHead;
  if (starts(tail, "conectix") || tail.subarray(1, 9).equals(Buffer.from("conectix"))) return unread("VHD");
  if (starts(tail, "koly")) return unread("DMG");
  if (file.sizeBytes > 33_000) {
    const volume = await readBytes(file, 32_769, 5);
    // a hybrid image also has a boot sector: then it is a disk
    if (volume.equals(Buffer.from("CD001")) && head.readUInt16LE(510) !== 0xaa55) return unread("ISO 9660");
  }
  return { kind: "nothing" };
}

/** The part of {@link detect} that the first 512 bytes decide. */
export function detectHead(head: Buffer): Detected {
  if (starts(head, "QFI\xfb")) return { kind: "format", format: "qcow2" };
  if (starts(head, "KDMV")) return { kind: "format", format: "vmdk-sparse" };
  if (/^\uFEFF?\s*#\s*Disk\s*Descriptor\s*File/i.test(head.toString("latin1").replace(/^\u00ef\u00bb\u00bf/, "")))
    return { kind: "format", format: "vmdk-descriptor" };
  if (starts(head, "vhdxfile")) return unread("VHDX");
  if (starts(head, "conectix")) return unread("VHD");
  if (starts(head, "COWD")) return unread("VMDK COWD");
  if (head.length >= 8 && head.readBigUInt64LE(0) === 0xcafebaben) return unread("VMDK seSparse");
  if (head.length >= 68 && head.readUInt32LE(64) === 0xbeda107f) return unread("VDI");
  if (starts(head, "LUKS\xba\xbe")) return unread("LUKS");
  if (starts(head, "WithoutFreeSpace") || starts(head, "WithouFreSpacExt")) return unread("Parallels");
  if (starts(head, "QED\0")) return unread("QED");
  if (starts(head, "OOOO CompressedROM") || starts(head, "Bochs Virtual HD Image")) return unread("Bochs");
  if (starts(head, "\x1f\x8b")) return unread("gzip");
  if (starts(head, "\xfd7zXZ\0")) return unread("xz");
  if (starts(head, "\x28\xb5\x2f\xfd")) return unread("zstd");
  if (starts(head, "BZh")) return unread("bzip2");
  if (starts(head, "PK\x03\x04")) return unread("ZIP");
  if (head.subarray(257, 262).equals(Buffer.from("ustar"))) return unread("tar or OVA");
  return { kind: "nothing" };
}

function unread(name: string): Detected {
  return { kind: "unread", name };
}

function starts(bytes: Buffer, text: string): boolean {
  return bytes.subarray(0, text.length).equals(Buffer.from(text, "latin1"));
}
