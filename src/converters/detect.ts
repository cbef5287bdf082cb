import { type ByteFile, readBytes } from "./byte-file.ts";

/** The structure at the start or the end of a file; VMDK has four. */
type Structure = "qcow2" | "vmdk-sparse" | "vmdk-descriptor" | "vmdk-cowd" | "vmdk-sesparse" | "vhd" | "vhdx" | "vdi";
/** What the content of a file says that it is. `unread` is known by name and refused by name. */
export type Detected =
  | { readonly kind: "format"; readonly format: Structure }
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
  // a fixed VHD is a disk with a footer: at its start stands whatever the guest wrote
  if (isVhdFooter(tail)) return { kind: "format", format: "vhd" };
  if (starts(tail, "koly")) return unread("DMG");
  if (file.sizeBytes > 33_000) {
    const volume = await readBytes(file, 32_769, 5);
    // a hybrid image also has a boot sector: then it is a disk
    if (volume.equals(Buffer.from("CD001")) && head.readUInt16LE(510) !== 0xaa55) return unread("ISO 9660");
  }
  return { kind: "nothing" };
}

/** What stands at the very beginning of a file, by format. */
const magics: readonly (readonly [magic: Buffer, found: Detected])[] = (
  [
    ["QFI\xfb", { kind: "format", format: "qcow2" }],
    ["KDMV", { kind: "format", format: "vmdk-sparse" }],
    ["vhdxfile", { kind: "format", format: "vhdx" }],
    ["conectix", { kind: "format", format: "vhd" }],
    ["COWD", { kind: "format", format: "vmdk-cowd" }],
    ["\xbe\xba\xfe\xca\0\0\0\0", { kind: "format", format: "vmdk-sesparse" }],
    ["LUKS\xba\xbe", unread("LUKS")],
    ["WithoutFreeSpace", unread("Parallels")],
    ["WithouFreSpacExt", unread("Parallels")],
    ["QED\0", unread("QED")],
    ["OOOO CompressedROM", unread("Bochs")],
    ["Bochs Virtual HD Image", unread("Bochs")],
    ["\x1f\x8b", unread("gzip")],
    ["\xfd7zXZ\0", unread("xz")],
    ["\x28\xb5\x2f\xfd", unread("zstd")],
    ["BZh", unread("bzip2")],
    ["PK\x03\x04", unread("ZIP")],
  ] as const
).map(([magic, found]) => [Buffer.from(magic, "latin1"), found]);
const magicsByFirst = Map.groupBy(magics, ([magic]) => magic[0]);
/** A descriptor may begin with a byte-order mark or white space. */
const descriptorStarts: ReadonlySet<number | undefined> = new Set(Buffer.from("#\u00ef\u00a0 \t\n\v\f\r", "latin1"));
const ustar = Buffer.from("ustar");

/** The part of {@link detect} that the first 512 bytes decide. Runs for every image of an inventory. */
export function detectHead(head: Buffer): Detected {
  const known = magicsByFirst.get(head[0])?.find(([magic]) => head.subarray(0, magic.length).equals(magic));
  if (known) return known[1];
  if (descriptorStarts.has(head[0]) && /^(\u00ef\u00bb\u00bf)?\s*#\s*Disk\s*Descriptor\s*File/i.test(head.toString("latin1", 0, Math.min(64, head.length))))
    return { kind: "format", format: "vmdk-descriptor" };
  if (head.length >= 68 && head.readUInt32LE(64) === 0xbeda107f) return { kind: "format", format: "vdi" };
  if (head.length >= 262 && head.subarray(257, 262).equals(ustar)) return unread("tar or OVA");
  return { kind: "nothing" };
}

/** The last 512 bytes of a file; images of before 2004 lack the last one. */
export function isVhdFooter(tail: Buffer): boolean {
  return starts(tail, "conectix") || tail.subarray(1, 9).equals(Buffer.from("conectix"));
}

function unread(name: string): Detected {
  return { kind: "unread", name };
}

function starts(bytes: Buffer, text: string): boolean {
  return bytes.subarray(0, text.length).equals(Buffer.from(text, "latin1"));
}
