// Restores a disk from a repository of hypersdk, with nothing but Node (22.15 or newer) and docs/formats/repository.md.
//
//     node restore.mjs REPOSITORY                          lists what there is
//     node restore.mjs REPOSITORY POINT DISK OUT.raw       POINT is a path of that list, DISK a number from 0
//
// An encrypted repository needs HYPERSDK_PASSPHRASE, or HYPERSDK_MASTER_KEY: what `age -d -i IDENTITY` makes of the `wrapped` of an age slot in keys/.
import { createDecipheriv, createHash, createHmac, scryptSync } from "node:crypto";
import { closeSync, existsSync, ftruncateSync, openSync, readdirSync, readFileSync, readSync, writeSync } from "node:fs";
import { join } from "node:path";
import * as zlib from "node:zlib";

const [repository, point, disk, out] = process.argv.slice(2);
const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash("sha256"));
const json = (path, bytes = readFileSync(join(repository, path))) => {
  try {
    const { digest, ...rest } = JSON.parse(bytes.toString("utf8"));
    if (sha256(JSON.stringify(rest)).digest("hex") === digest) return rest;
  } catch {}
  throw new Error(`${path} is damaged`);
};
const fail = (why) => {
  console.error(why);
  process.exit(1);
};
process.on("uncaughtException", ({ message }) => fail(message));

if (!zlib.zstdDecompressSync) fail(`this is Node ${process.versions.node}, which knows no zstd: 22.15 or newer does`);
if (!repository || repository.startsWith("-") || (point && !out)) fail("node restore.mjs REPOSITORY [POINT DISK OUT.raw]");
for (const path of ["config", ...(point ? [point] : [])]) if (!existsSync(join(repository, path))) fail(`there is no ${join(repository, path)}`);
const config = json("config");
if (config.kind !== "hypersdk-repository" || config.formatVersion !== 1) fail("this is no repository of version 1");
const masterKey = config.encryption === "aes-256-gcm" ? theMasterKey() : undefined;
const pointAt = (path) => json(path, opened("point", readFileSync(join(repository, path))) ?? Buffer.alloc(0));

if (!point) {
  for (const path of readdirSync(join(repository, "points"), { recursive: true }).sort()) {
    if (!path.endsWith(".json")) continue;
    // one that is damaged hides no other
    try {
      show(path, pointAt(join("points", path)));
    } catch ({ message }) {
      console.error(message);
      process.exitCode = 1;
    }
  }
  process.exit();
}

// an index lists packs, each with the directory of its chunks: 48 bytes a chunk
const places = new Map();
for (const name of readdirSync(join(repository, "index")).filter((each) => /^[0-9a-f]{64}$/.test(each))) {
  const bytes = readFileSync(join(repository, "index", name));
  const index = sha256(bytes).digest("hex") === name ? opened("index", bytes) : undefined;
  if (!index) {
    console.error(`index/${name} is damaged: what is in no other index cannot be found`);
    continue;
  }
  let at = 24;
  for (let packs = index.readUInt32LE(8); packs > 0; packs--) {
    const pack = join(repository, "packs", index.toString("hex", at, at + 32));
    const end = at + 40 + index.readUInt32LE(at + 32) * 48;
    for (at += 40; at < end; at += 48) {
      const place = { pack, offset: index.readUInt32LE(at + 32), stored: index.readUInt32LE(at + 36), method: index[at + 44] };
      const id = index.toString("hex", at, at + 32);
      if (existsSync(pack)) places.set(id, [...(places.get(id) ?? []), place]);
    }
  }
}

const chosen = pointAt(point).disks[Number(disk)] ?? fail(`there is no disk ${disk}`);
const { virtualBytes, chunkBytes, segments, contentHash } = chosen;
const inSegment = 2 ** 30 / chunkBytes;
const content = createHash("sha256");
const file = openSync(out, "wx");
ftruncateSync(file, virtualBytes);
const open = new Map();
const segment = { name: undefined, bytes: undefined };
const failWithin = (why) => fail(`${why}: ${out} is not whole`);

for (let chunk = 0; chunk * chunkBytes < virtualBytes; chunk++) {
  const offset = chunk * chunkBytes;
  const length = Math.min(chunkBytes, virtualBytes - offset);
  const id = idOf(chunk);
  if (id === undefined) {
    content.update(sha256(Buffer.alloc(length)).digest());
    continue;
  }
  // a chunk may lie in two packs: any copy that is what its id says will do
  const copies = places.get(id) ?? failWithin(`no pack holds the chunk ${id}`);
  let data;
  for (const copy of copies) data ??= chunkAt(copy, id, length);
  if (!data) failWithin(`chunk ${chunk} of the disk is damaged in ${copies.map(({ pack }) => pack).join(" and in ")}`);
  content.update(Buffer.from(id, "hex"));
  writeSync(file, data, 0, length, offset);
}
closeSync(file);
if (content.digest("hex") !== contentHash.value) fail("the disk is not what was exported");
console.log(`${out}: ${virtualBytes} bytes, as they were exported`);

function show(path, { source, disks }) {
  console.log(`points/${path}  ${source.vm}  ${source.instant}  ${disks.map(({ name, virtualBytes }) => `${name} (${virtualBytes} bytes)`).join(", ")}`);
}

/** The bytes of a chunk, or undefined where they are not what its id says. */
function chunkAt({ pack, offset, stored, method }, id, length) {
  if (!open.has(pack)) open.set(pack, openSync(pack));
  const bytes = Buffer.alloc(stored);
  readSync(open.get(pack), bytes, 0, stored, offset);
  try {
    const packed = opened("chunk", bytes);
    const data = packed && method === 1 ? zlib.zstdDecompressSync(packed, { maxOutputLength: length }) : packed;
    return data?.length === length && sha256(data).digest("hex") === id ? data : undefined;
  } catch {
    return undefined;
  }
}

/** The id of a chunk, as the segment of its GiB lists it; undefined for zeros. */
function idOf(chunk) {
  const name = segments[Math.floor(chunk / inSegment)];
  if (name === null) return undefined;
  if (segment.name !== name) {
    const packed = readFileSync(join(repository, "segments", name));
    if (sha256(packed).digest("hex") !== name) fail(`segments/${name} is damaged`);
    segment.bytes = zlib.zstdDecompressSync(opened("segment", packed) ?? fail(`segments/${name} does not open`));
    segment.name = name;
  }
  const at = 24 + (chunk % inSegment) * 32;
  const id = segment.bytes.toString("hex", at, at + 32);
  return /^0+$/.test(id) ? undefined : id;
}

/** What was sealed for a purpose, or undefined: salt (32), AES-256-GCM, tag (16), with a key of its own that the salt gives. */
function opened(purpose, sealed, key = masterKey) {
  if (!key) return sealed;
  const salt = sealed.subarray(0, 32);
  const objectKey = createHmac("sha256", key).update(`hypersdk ${purpose}\0`).update(salt).digest();
  try {
    const gcm = createDecipheriv("aes-256-gcm", objectKey, Buffer.alloc(12)).setAuthTag(sealed.subarray(-16));
    return Buffer.concat([gcm.update(sealed.subarray(32, -16)), gcm.final()]);
  } catch {
    return undefined;
  }
}

function theMasterKey() {
  const { HYPERSDK_MASTER_KEY, HYPERSDK_PASSPHRASE } = process.env;
  if (HYPERSDK_MASTER_KEY) return Buffer.from(HYPERSDK_MASTER_KEY.trim(), "hex");
  if (!HYPERSDK_PASSPHRASE) fail("the repository is encrypted: set HYPERSDK_PASSPHRASE, or HYPERSDK_MASTER_KEY to what age makes of a slot");
  for (const name of readdirSync(join(repository, "keys")).filter((each) => each.endsWith(".json"))) {
    try {
      const { kind, N, r, p, salt, wrapped } = json(join("keys", name));
      if (kind !== "passphrase") continue;
      const key = scryptSync(HYPERSDK_PASSPHRASE.normalize("NFC"), Buffer.from(salt, "base64"), 32, { N, r, p, maxmem: 256 * N * r });
      const found = opened("key", Buffer.from(wrapped, "base64"), key);
      if (found) return found;
    } catch ({ message }) {
      console.error(message);
    }
  }
  return fail("the passphrase opens no slot of keys/");
}
