import type { ByteSink } from "../../model/byte-sink.ts";
import { HypersdkError } from "../../model/errors.ts";

/** The header of a regular file in a ustar archive (POSIX.1-1988); sizes from 8 GiB on in GNU's base 256; `modifiedS` is seconds since 1970. */
export function tarHeader(name: string, bytes: number, modifiedS: number): Buffer {
  if (Buffer.byteLength(name) > 99) throw new HypersdkError("Usage", `the name ${JSON.stringify(name)} is too long for an archive`);
  const header = Buffer.alloc(512);
  header.write(name, 0, "utf8");
  header.write("0000644\0", 100, "latin1");
  header.write("0000000\0", 108, "latin1");
  header.write("0000000\0", 116, "latin1");
  if (bytes < 8 ** 11) header.write(`${bytes.toString(8).padStart(11, "0")}\0`, 124, "latin1");
  else {
    header[124] = 0x80;
    header.writeBigUInt64BE(BigInt(bytes), 128);
  }
  header.write(`${modifiedS.toString(8).padStart(11, "0")}\0`, 136, "latin1");
  header.write("        0", 148, "latin1");
  header.write("ustar\x0000", 257, "latin1");
  let sum = 0;
  for (const byte of header) sum += byte;
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  return header;
}

/** Pads a member to whole records of 512 bytes. */
export async function endMember(out: ByteSink, bytes: number): Promise<void> {
  const rest = bytes % 512;
  if (rest !== 0) await out.append(Buffer.alloc(512 - rest));
}

/** Two empty records end an archive. */
export const tarEnd: Buffer = Buffer.alloc(1024);
