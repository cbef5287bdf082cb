import { closeSync, constants, openSync, readSync, statSync } from "node:fs";
import { HypersdkError } from "../../model/errors.ts";

export interface TarMember {
  readonly name: string;
  readonly offset: number;
  readonly length: number;
}

const maxMembers = 1000;

/** The regular files of a ustar or GNU tar archive, found by reading headers only (POSIX.1-1988, "ustar Interchange Format"). */
export function tarMembers(path: string): TarMember[] {
  const descriptor = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const size = statSync(path).size;
    const members: TarMember[] = [];
    const header = Buffer.alloc(512);
    for (let at = 0; at + 512 <= size && members.length < maxMembers; ) {
      readSync(descriptor, header, 0, 512, at);
      if (header.every((byte) => byte === 0)) break;
      const length = tarNumber(header.subarray(124, 136));
      if (header.subarray(257, 262).toString("latin1") !== "ustar" || length === undefined || at + 512 + length > size)
        throw new HypersdkError("ImageDamaged", `the archive is damaged or cut short at ${at}`);
      const type = header[156];
      const prefix = header.subarray(345, 500).toString("utf8").replace(/\0.*$/s, "");
      const name = header.subarray(0, 100).toString("utf8").replace(/\0.*$/s, "");
      if (type === 0x30 || type === 0) members.push({ name: prefix && header[263] === 0x30 ? `${prefix}/${name}` : name, offset: at + 512, length });
      at += 512 + Math.ceil(length / 512) * 512;
    }
    return members;
  } finally {
    closeSync(descriptor);
  }
}

/** Octal text, or GNU's base-256 for members over 8 GiB. */
function tarNumber(field: Buffer): number | undefined {
  if ((field[0] ?? 0) & 0x80) {
    let value = 0;
    for (const byte of field.subarray(4)) value = value * 256 + byte;
    return Number.isSafeInteger(value) ? value : undefined;
  }
  const text = field
    .toString("latin1")
    .replace(/[\0 ]+$/, "")
    .trim();
  return /^[0-7]+$/.test(text) ? Number.parseInt(text, 8) : undefined;
}
