import { createHash } from "node:crypto";
import { HypersdkError } from "../../model/errors.ts";
import { type ByteFile, readBytes } from "../byte-file.ts";

const maxManifestBytes = 1 << 20;
const algorithms: Readonly<Record<string, string>> = { SHA1: "sha1", SHA256: "sha256", SHA384: "sha384", SHA512: "sha512" };

/**
 * Checks the hashes of an OVF package's manifest (`SHA256(disk.vmdk)= …`): every file that it names must be there and be that file.
 * @param open a file of the package by its name; undefined when it is not there
 * @throws ImageDamaged with the first that is not
 */
export async function checkManifest(manifest: ByteFile, open: (name: string) => ByteFile | undefined, signal?: AbortSignal): Promise<void> {
  const text = (await readBytes(manifest, 0, manifest.sizeBytes, maxManifestBytes)).toString("utf8");
  for (const line of text.split(/\r?\n/)) {
    const entry = /^\s*([A-Z0-9-]+)\s*\((.+)\)\s*=\s*([0-9a-fA-F]+)\s*$/.exec(line);
    if (!entry) continue;
    const [, written = "", name = "", expected = ""] = entry;
    const algorithm = algorithms[written.replace("-", "")];
    if (!algorithm) throw new HypersdkError("ImageUnsupported", `${manifest.name}: hashes of kind ${written} are not known`);
    const file = open(name);
    if (!file) throw new HypersdkError("ImageDamaged", `${manifest.name} names ${JSON.stringify(name)}, which is not there`);
    try {
      const found = await hashOf(file, algorithm, signal);
      if (found !== expected.toLowerCase())
        throw new HypersdkError(
          "ImageDamaged",
          `${name} is not the file that the manifest ${manifest.name} names: its ${written} is ${found}, not ${expected.toLowerCase()}`,
        );
    } finally {
      await file.close();
    }
  }
}

/** Of a whole file, in hexadecimal. */
export async function hashOf(file: ByteFile, algorithm: string, signal?: AbortSignal): Promise<string> {
  const hash = createHash(algorithm);
  const buffers = [Buffer.allocUnsafeSlow(1 << 20), Buffer.allocUnsafeSlow(1 << 20)];
  const read = async (offset: number, turn: number): Promise<Buffer> => {
    const into = (buffers[turn % 2] as Buffer).subarray(0, Math.max(0, Math.min(1 << 20, file.sizeBytes - offset)));
    await file.read(offset, into);
    return into;
  };
  // the next piece is read while this one is hashed
  let next = read(0, 0);
  for (let offset = 0, turn = 1; offset < file.sizeBytes; turn++) {
    const piece = await next;
    signal?.throwIfAborted();
    offset += piece.length;
    next = read(offset, turn);
    next.catch(() => {});
    hash.update(piece);
  }
  await next;
  return hash.digest("hex");
}
