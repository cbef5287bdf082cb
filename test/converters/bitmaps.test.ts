import { execFileSync } from "node:child_process";
import { closeSync, openSync, readFileSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openByteFile } from "../../src/converters/byte-file.ts";
import { type PersistentBitmap, persistentBitmaps } from "../../src/converters/qcow2/bitmaps.ts";
import { HypersdkError } from "../../src/model/errors.ts";
import { temporaryFolder } from "../support/cli.ts";
import { KiB, MiB, random } from "../support/disks.ts";
import { has, qemuImg } from "../support/qemu.ts";

async function read(path: string): Promise<{ readonly name: string; readonly isSound: boolean; readonly ranges: readonly [number, number][] }[]> {
  const file = openByteFile(path);
  try {
    return await Promise.all(
      (await persistentBitmaps(file)).map(async ({ name, isSound, ranges }: PersistentBitmap) => {
        const all: [number, number][] = [];
        if (isSound)
          for await (const { offset, length } of ranges()) {
            const last = all.at(-1);
            if (last && last[0] + last[1] === offset) last[1] += length;
            else all.push([offset, length]);
          }
        return { name, isSound, ranges: all };
      }),
    );
  } finally {
    await file.close();
  }
}

function image(options: readonly string[] = []): string {
  const path = join(temporaryFolder(), "disk.qcow2");
  qemuImg("create", "-q", "-f", "qcow2", ...options, path, `${300 * MiB + 512}`);
  return path;
}

describe.skipIf(!has("qemu-img"))("the persistent bitmaps of a QCOW2", () => {
  it.each([
    [[], "64K"],
    [["-o", "cluster_size=512"], "4K"],
    [["-o", "cluster_size=2M"], "2M"],
  ] as const)("say what QEMU has noted in them (%j, %s)", (options, granularity) => {
    const path = image(options);
    qemuImg("bitmap", "--add", "-g", granularity, path, "first");
    execFileSync("qemu-io", ["-f", "qcow2", "-c", "write -q 0 1", "-c", `write -q ${5 * MiB - 1} 2`, "-c", `write -q ${300 * MiB} 512`, path]);
    qemuImg("bitmap", "--add", "-g", granularity, path, "second");
    execFileSync("qemu-io", ["-f", "qcow2", "-c", `write -q ${100 * MiB} ${40 * MiB}`, path]);
    const each = { "4K": 4 * KiB, "64K": 64 * KiB, "2M": 2 * MiB }[granularity];
    const around = (from: number, to: number): [number, number] => [
      Math.floor(from / each) * each,
      Math.ceil(to / each) * each - Math.floor(from / each) * each,
    ];
    const tail: [number, number] = [Math.floor((300 * MiB) / each) * each, 300 * MiB + 512 - Math.floor((300 * MiB) / each) * each];
    return expect(read(path)).resolves.toEqual([
      { name: "first", isSound: true, ranges: [around(0, 1), around(5 * MiB - 1, 5 * MiB + 1), around(100 * MiB, 140 * MiB), tail] },
      { name: "second", isSound: true, ranges: [around(100 * MiB, 140 * MiB)] },
    ]);
  });

  it("are none where there are none, and not sound once a writer that knows none has been there, or QEMU has not ended well", async () => {
    expect(await read(image())).toEqual([]);
    const path = image();
    qemuImg("bitmap", "--add", path, "b");
    const bytes = readFileSync(path);
    const directory = Number(bytes.readBigUInt64BE(bytes.indexOf(Buffer.from("23852875", "hex")) + 8 + 16));
    const patch = (offset: number, data: Buffer): void => {
      writeFileSync(path, bytes);
      const file = openSync(path, "r+");
      writeSync(file, data, 0, data.length, offset);
      closeSync(file);
    };
    // the autoclear bit; the flag "in use"; the type; a table of another length
    for (const [offset, data] of [
      [88, Buffer.alloc(8)],
      [directory + 12, Buffer.from([0, 0, 0, 3])],
      [directory + 16, Buffer.from([7])],
      [directory + 8, Buffer.from([0, 0, 0, 9])],
    ] as const) {
      patch(offset, data);
      expect(await read(path)).toEqual([{ name: "b", isSound: false, ranges: [] }]);
    }
    writeFileSync(path, bytes);
    expect(await read(path)).toEqual([{ name: "b", isSound: true, ranges: [] }]);
  });

  it("that are damaged anywhere are refused or not sound; none crashes or hangs", { timeout: 180_000 }, async () => {
    const path = image();
    qemuImg("bitmap", "--add", path, "b");
    execFileSync("qemu-io", ["-f", "qcow2", "-c", "write -q 3M 200k", path]);
    const bytes = readFileSync(path);
    const extension = bytes.indexOf(Buffer.from("23852875", "hex"));
    const directory = Number(bytes.readBigUInt64BE(extension + 8 + 16));
    const next = random(3);
    for (let i = 0; i < 400; i++) {
      const damaged = Buffer.from(bytes);
      const at = [extension + 8, directory][i % 2] as number;
      for (let flips = 0; flips < 3; flips++) damaged[at + Math.floor(next() * 32)] = Math.floor(next() * 256);
      writeFileSync(path, damaged);
      await read(path).catch((error: unknown) => {
        if (!(error instanceof HypersdkError)) throw error;
      });
    }
  });
});
