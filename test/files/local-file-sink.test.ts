import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, describe, expect, it, vi } from "vitest";
import { writeImageFile } from "../../src/converters/image-file.ts";
import { LocalFileSink } from "../../src/files/local-file-sink.ts";

const folder = mkdtempSync(join(tmpdir(), "hypersdk-sink-"));
const piece = Buffer.alloc(2 ** 20, "hypersdk");

async function fileHandles(): Promise<FileHandle> {
  const any = await open(import.meta.filename);
  await any.close();
  return Object.getPrototypeOf(any) as FileHandle;
}

async function write(sink: LocalFileSink, pieces: number): Promise<void> {
  for (let i = 0; i < pieces; i++) await sink.append(piece);
}

afterEach(() => void vi.restoreAllMocks());
afterAll(() => rmSync(folder, { recursive: true }));

describe("a file that is to survive a power cut", () => {
  const path = join(folder, "disk");
  const made = (durable: boolean): Promise<LocalFileSink> => {
    rmSync(path, { force: true });
    return LocalFileSink.create(path, { hashed: false, durable });
  };

  it("goes to the disk while it is written, and all of it at the end", async () => {
    const handles = await fileHandles();
    const [datasync, sync] = [vi.spyOn(handles, "datasync"), vi.spyOn(handles, "sync")];
    const sink = await made(true);
    await write(sink, 63);
    expect(datasync).not.toHaveBeenCalled();
    await write(sink, 2);
    expect(datasync).toHaveBeenCalledTimes(1);
    expect(sync).not.toHaveBeenCalled();
    expect(await sink.finish()).toEqual({ bytes: 65 * 2 ** 20, hash: "" });
    expect(sync).toHaveBeenCalledTimes(1);
    expect(readFileSync(path).equals(Buffer.alloc(65 * 2 ** 20, "hypersdk"))).toBe(true);
  });

  it("is not there where a part of it did not get to the disk, though the next ones would: the system says so once", async () => {
    const handles = await fileHandles();
    const broken = Object.assign(new Error("EIO: i/o error, fdatasync"), { code: "EIO" });
    const datasync = vi.spyOn(handles, "datasync").mockRejectedValueOnce(broken);
    const sink = await made(true);
    await expect(write(sink, 65).then(() => sink.finish())).rejects.toMatchObject({ code: "DestinationUnreachable" });
    await sink.abort();
    expect(datasync).toHaveBeenCalledTimes(1);

    vi.spyOn(handles, "datasync").mockRejectedValueOnce(broken);
    const longer = await made(true);
    // told to whoever goes on, long before the end
    await expect(write(longer, 1000)).rejects.toMatchObject({ code: "DestinationUnreachable" });
    expect(longer.position).toBeLessThan(80 * 2 ** 20);
    await longer.abort();
  });

  it("is none to go on with once a sync has failed: what the system shows of it from memory may not be on the disk", async () => {
    const handles = await fileHandles();
    const broken = Object.assign(new Error("EIO: i/o error, fsync"), { code: "EIO" });
    const resumes = { path: join(folder, "partial"), confirm: async () => {} };
    const restored = (): Promise<unknown> =>
      writeImageFile(path, "raw", piece.length, { compression: "none", overwrite: true, inputs: [], durable: true, resumes }, async (sink) => {
        await sink.write(0, piece);
        await sink.finish();
      });
    vi.spyOn(handles, "sync").mockRejectedValueOnce(broken);
    await expect(restored()).rejects.toMatchObject({ code: "DestinationUnreachable" });
    expect(existsSync(resumes.path)).toBe(false);
    // what only could not be written is kept
    vi.spyOn(handles, "write").mockRejectedValueOnce(Object.assign(new Error("ENOSPC: no space left on device, write"), { code: "ENOSPC" }));
    await expect(restored()).rejects.toMatchObject({ code: "DestinationFull" });
    expect(existsSync(resumes.path)).toBe(true);
    await restored();
    expect(readFileSync(path).equals(piece)).toBe(true);
  });

  it("is left to the system otherwise", async () => {
    const handles = await fileHandles();
    const [datasync, sync] = [vi.spyOn(handles, "datasync"), vi.spyOn(handles, "sync")];
    const sink = await made(false);
    await write(sink, 130);
    await sink.finish();
    expect(datasync).not.toHaveBeenCalled();
    expect(sync).not.toHaveBeenCalled();
  });
});
