import { mkdtempSync, readdirSync, readlinkSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type BlockSource, type Piece, pieceBytes, piecesKept } from "../../src/converters/block-source.ts";
import { readManifest, storedDisks } from "../../src/exports/restore.ts";
import { KiB, MiB } from "../support/disks.ts";
import { destinationAt, exportDisk, noiseOf } from "./support.ts";

describe("a disk that is read from a repository", () => {
  const content = Buffer.alloc(70 * MiB + 512);
  const root = mkdtempSync(join(tmpdir(), "hypersdk-source-"));
  const destination = destinationAt(root);
  let path: string;

  const opened = async (): Promise<BlockSource> => {
    const manifest = await readManifest(destination, path);
    return (await storedDisks(destination, path, manifest))(manifest.disks[0] as (typeof manifest.disks)[number]);
  };
  const openPacks = (): string[] =>
    readdirSync("/proc/self/fd").filter((fd) => {
      try {
        return readlinkSync(`/proc/self/fd/${fd}`).startsWith(`${root}/packs`);
      } catch {
        return false;
      }
    });

  beforeAll(async () => {
    noiseOf(40 * MiB, 1).copy(content, 300 * KiB);
    noiseOf(3 * MiB, 2).copy(content, 60 * MiB);
    // a chunk in every other place, and the end, which is shorter
    for (let at = 50 * MiB; at < 54 * MiB; at += 256 * KiB) content[at] = 1;
    content[content.length - 1] = 1;
    path = await exportDisk(destination, content, "repository");
  });
  afterAll(() => rmSync(root, { recursive: true }));

  it("comes in pieces that hold neighbours, on the grid, each untouched for as long as it is promised", async () => {
    const source = await opened();
    const pieces: { readonly piece: Piece; readonly bytes: Buffer }[] = [];
    const kept: typeof pieces = [];
    for await (const piece of source.pieces?.() ?? []) {
      const turns = new Set(kept.map((each) => each.piece.turn));
      if (!turns.has(piece.turn) && turns.size > piecesKept - 1) kept.splice(0, kept.filter((each) => each.piece.turn === kept[0]?.piece.turn).length);
      kept.push({ piece, bytes: Buffer.from(piece.data) });
      for (const { piece: earlier, bytes } of kept) if (!earlier.data.equals(bytes)) expect.fail(`the piece at ${earlier.offset} changed`);
      pieces.push(kept.at(-1) as (typeof kept)[number]);
    }
    const read = Buffer.alloc(content.length);
    for (const { piece, bytes } of pieces) bytes.copy(read, piece.offset);
    expect(read.equals(content)).toBe(true);
    for (const { piece } of pieces) expect(Math.floor((piece.offset + piece.data.length - 1) / pieceBytes)).toBe(Math.floor(piece.offset / pieceBytes));
    // of the noise, but where a group ends; then those that stand alone
    expect(pieces.filter(({ piece }) => piece.data.length === pieceBytes).length).toBeGreaterThan(25);
    expect(pieces.filter(({ piece }) => piece.data.length === 128 * KiB).length).toBeGreaterThanOrEqual(16);
    await source.close();
    expect(openPacks()).toEqual([]);
  });

  it("leaves nothing open where it is closed in the middle, and is read for nobody then", async () => {
    const source = await opened();
    const pieces = source.pieces?.()[Symbol.asyncIterator]() as AsyncIterator<Piece>;
    await pieces.next();
    const reading = source.read(20 * MiB, Buffer.alloc(2 * MiB)).catch(() => {});
    await source.close();
    await reading;
    await expect(source.read(60 * MiB, Buffer.alloc(MiB))).rejects.toThrow("is read for nobody any more");
    expect(openPacks()).toEqual([]);
  });
});
