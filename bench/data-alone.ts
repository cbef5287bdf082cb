/**
 * What the changed chunks of a disk take by themselves: `node data-alone.ts DISK CHANGED.json` reads, hashes and compresses them one after
 * the other, in memory that is kept and without anything else, and prints the seconds of CPU. No increment can take less.
 */
import { hash } from "node:crypto";
import { openSync, readFileSync, readSync } from "node:fs";
import { compress, frameRoom } from "../src/repository/chunk-codec.ts";

const [disk = "", changed = ""] = process.argv.slice(2);
const chunkBytes = 128 * 1024;
const { extents } = JSON.parse(readFileSync(changed, "utf8")) as { extents: [offset: number, length: number][] };
const chunks = new Set<number>();
for (const [offset, length] of extents) for (let i = Math.floor(offset / chunkBytes); i * chunkBytes < offset + length; i++) chunks.add(i);

const file = openSync(disk, "r");
const chunk = Buffer.alloc(chunkBytes);
const frame = Buffer.alloc(frameRoom(chunkBytes));
// the first two frames are compared with those of another call
for (let i = 0; i < 2; i++) compress(chunk, frame);
const before = process.cpuUsage();
for (const i of chunks) {
  readSync(file, chunk, 0, chunkBytes, i * chunkBytes);
  hash("sha256", chunk, "buffer");
  compress(chunk, frame);
}
const { user, system } = process.cpuUsage(before);
process.stdout.write(`${(user + system) / 1e6}\n`);
