import { damaged, unsupported } from "../checked.ts";

/** One line of a VMDK descriptor: `RW 4192256 SPARSE "disk-s001.vmdk"`. */
export interface VmdkExtent {
  readonly access: "RW" | "RDONLY" | "NOACCESS";
  readonly sizeBytes: number;
  readonly type: "SPARSE" | "FLAT" | "VMFS" | "VMFSSPARSE" | "SESPARSE" | "ZERO";
  /** As it is written; undefined for ZERO. */
  readonly fileName: string | undefined;
  /** Where the extent begins in a flat file. */
  readonly offsetBytes: number;
}

export interface VmdkDescriptor {
  readonly createType: string;
  /** Changes with the content: a delta remembers that of its parent. */
  readonly cid: string | undefined;
  readonly parent: { readonly cid: string; readonly fileName: string } | undefined;
  readonly extents: readonly VmdkExtent[];
}

const noParent = "ffffffff";

/** Text files of VMware are a few hundred bytes; a hostile one is not read beyond this. */
export const maxDescriptorBytes: number = 1 << 20;

/** Reads a descriptor: `key=value` lines, extent lines, comments; any line ending, any case of keys. */
export function parseDescriptor(image: string, text: string): VmdkDescriptor {
  const values = new Map<string, string>();
  const extents: VmdkExtent[] = [];
  for (const line of text.split(/\r\n|\r|\n/)) {
    const trimmed = line.replace(/\0.*$/s, "").trim();
    if (trimmed === "" || trimmed.startsWith("#")) continue;
    const extent = /^(RW|RDONLY|NOACCESS)\s+(\d+)\s+([A-Z]+)(?:\s+"([^"]*)"(?:\s+(\d+))?)?/i.exec(trimmed);
    if (extent) {
      extents.push(readExtent(image, extent));
      continue;
    }
    // no pattern over the whole line: one that backtracks makes a line of 100 KB take minutes
    const equals = trimmed.indexOf("=");
    const key = trimmed.slice(0, equals).trim().toLowerCase();
    if (equals > 0 && /^[a-z0-9_.]{1,100}$/.test(key))
      values.set(
        key,
        trimmed
          .slice(equals + 1)
          .trim()
          .replace(/^"|"$/g, "")
          .trim(),
      );
  }
  if (extents.length === 0) throw damaged(image, "the VMDK descriptor names no extent");
  if (extents.length > 4096) throw damaged(image, `the VMDK descriptor names ${extents.length} extents, more than 4096`);
  const parentCid = cidOf(values.get("parentcid"));
  return {
    createType: values.get("createtype") ?? "",
    cid: cidOf(values.get("cid")),
    parent: parentCid === undefined || parentCid === noParent ? undefined : { cid: parentCid, fileName: values.get("parentfilenamehint") ?? "" },
    extents,
  };
}

/** Eight digits: qemu writes a CID without its leading zeros. */
function cidOf(text: string | undefined): string | undefined {
  return text?.toLowerCase().padStart(8, "0");
}

function readExtent(image: string, [, access = "", sectors = "", kind = "", fileName, offset = "0"]: RegExpExecArray): VmdkExtent {
  const type = kind.toUpperCase();
  if (type !== "SPARSE" && type !== "FLAT" && type !== "VMFS" && type !== "VMFSSPARSE" && type !== "SESPARSE" && type !== "ZERO")
    throw unsupported(image, `extents of type ${type} are not read (SPARSE, FLAT, VMFS, VMFSSPARSE, SESPARSE and ZERO are)`);
  const sizeBytes = Number(sectors) * 512;
  const offsetBytes = Number(offset) * 512;
  if (!Number.isSafeInteger(sizeBytes) || !Number.isSafeInteger(offsetBytes))
    throw damaged(image, `an extent of ${sectors} sectors at ${offset} does not fit 2^53 bytes`);
  if (type !== "ZERO" && !fileName) throw damaged(image, `an extent of type ${type} names no file`);
  return { access: access.toUpperCase() as VmdkExtent["access"], sizeBytes, type, fileName: type === "ZERO" ? undefined : fileName, offsetBytes };
}
