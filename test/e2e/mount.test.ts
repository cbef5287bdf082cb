import { execFile, execFileSync, spawnSync } from "node:child_process";
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { makeMachines } from "../../examples/quickstart/make-machines.ts";
import { nbdServer } from "../../src/nbd/server.ts";
import { boots } from "../support/boot.ts";
import { hypersdk, start, temporaryFolder, workTree } from "../support/cli.ts";
import { bytes, MiB, random } from "../support/disks.ts";
import { has, qemuImg } from "../support/qemu.ts";

const run = promisify(execFile);
const yaml = `version: v2\nschedules:\n  - {name: nightly, cron: "0 2 * * *", initialExport: immediate, vms: ["/datacenter/vm/*"], destination: "file:./backups", incremental: true}\n`;

async function served(folder: string, vm: string, work: (uri: (disk: number) => string, socket: string) => Promise<void>): Promise<void> {
  const socket = join(folder, "nbd.sock");
  const serving = start(folder, ["mount", "--vm", vm, "--socket", socket]);
  const ended = serving.done.then(({ stderr }) => Promise.reject(new Error(stderr)));
  ended.catch(() => {});
  while (!existsSync(socket)) await Promise.race([ended, new Promise((resolve) => setTimeout(resolve, 50))]);
  try {
    await work((disk) => `nbd+unix:///disk-${disk}?socket=${socket}`, socket);
  } finally {
    serving.kill("SIGINT");
  }
  expect(await serving.done).toMatchObject({ code: 0, stdout: expect.stringContaining("read-only") as string });
  expect(existsSync(socket)).toBe(false);
}

describe.skipIf(!has("qemu-img") || !has("nbdinfo"))("a restore point that is mounted", () => {
  it("is the disk to qemu-img, nbdcopy and nbdinfo, several at once, and to a guest that boots from it", { timeout: 300_000 }, async () => {
    const folder = workTree(yaml);
    makeMachines(join(folder, "machines"), 40);
    expect(await hypersdk(folder, ["apply", "--auto-approve"])).toMatchObject({ code: 0 });
    await hypersdk(folder, ["restore", "--vm", "/datacenter/vm/db", "--to", "disks/", "--format", "raw"]);
    const disk = (i: number): string => join(folder, "disks", `disk-${i}.raw`);
    await served(folder, "/datacenter/vm/db", async (uri, socket) => {
      expect(statSync(socket).mode & 0o777).toBe(0o600);
      await Promise.all([
        run("qemu-img", ["compare", "-q", "-f", "raw", "-F", "raw", disk(0), uri(0)]),
        run("qemu-img", ["compare", "-q", "-f", "raw", "-F", "raw", disk(1), uri(1)]),
        run("nbdcopy", [uri(1), join(folder, "copied.raw")]),
        run("qemu-img", ["convert", "-O", "qcow2", uri(0), join(folder, "converted.qcow2")]),
      ]);
      expect(readFileSync(join(folder, "copied.raw")).equals(readFileSync(disk(1)))).toBe(true);
      qemuImg("compare", "-q", "-f", "raw", "-F", "qcow2", disk(0), join(folder, "converted.qcow2"));
      // the map tells holes, so that a copy leaves them out
      const map = JSON.parse(execFileSync("nbdinfo", ["--map", "--json", uri(0)], { encoding: "utf8" })) as { length: number; type: number }[];
      expect(map.reduce((sum, { length }) => sum + length, 0)).toBe(statSync(disk(0)).size);
      expect(map.some(({ type }) => type === 3)).toBe(true);
      const info = execFileSync("nbdinfo", ["--list", "--json", `nbd+unix:///?socket=${socket}`], { encoding: "utf8" });
      expect(
        (JSON.parse(info) as { exports: { "export-name": string; is_read_only: boolean }[] }).exports.map((each) => [each["export-name"], each.is_read_only]),
      ).toEqual([
        ["disk-0", true],
        ["disk-1", true],
        ["", true],
      ]);
      expect(() => execFileSync("qemu-io", ["-f", "raw", "-c", "write 0 512", uri(0)], { stdio: "pipe" })).toThrow();
      expect(await boots(uri(0), "raw")).toContain("HYPERSDK-BOOT db");
    });
    expect(await hypersdk(folder, ["mount", "--vm", "/datacenter/vm/db", "--listen", "0.0.0.0:10809"])).toMatchObject({ code: 64 });
    // the socket that a killed one leaves is taken over; one that is listened to is not, nor is a file
    const socket = join(folder, "nbd.sock");
    const killed = start(folder, ["mount", "--vm", "/datacenter/vm/db", "--socket", socket]);
    while (!existsSync(socket)) await new Promise((resolve) => setTimeout(resolve, 50));
    const again = ["mount", "--vm", "/datacenter/vm/db", "--socket", socket];
    expect(await hypersdk(folder, again)).toMatchObject({ code: 1, stderr: expect.stringContaining("exists already") as string });
    killed.kill("SIGKILL");
    await killed.done;
    expect(existsSync(socket)).toBe(true);
    const next = start(folder, again);
    while (spawnSync("nbdinfo", [`nbd+unix:///?socket=${socket}`]).status !== 0) await new Promise((resolve) => setTimeout(resolve, 50));
    next.kill("SIGINT");
    expect(await next.done).toMatchObject({ code: 0 });
    writeFileSync(socket, "mine");
    expect(await hypersdk(folder, again)).toMatchObject({ code: 1, stderr: expect.stringContaining("exists already") as string });
  });
});

describe("the NBD server", () => {
  it("survives clients that send anything at all", { timeout: 180_000 }, async () => {
    const folder = temporaryFolder();
    const path = join(folder, "s");
    const content = bytes(MiB, 3);
    const source = {
      sizeBytes: content.length,
      dataBytes: content.length,
      async *extents() {
        yield { offset: 0, length: content.length, kind: "data" as const };
      },
      async read(offset: number, into: Buffer) {
        content.copy(into, 0, offset, offset + into.length);
      },
      async close() {},
    };
    const server = nbdServer(new Map([["", source]]));
    await new Promise<void>((resolve) => server.listen({ path }, resolve));
    try {
      const next = random(11);
      const hello = Buffer.from("00000003", "hex");
      const option = (number: number, data: Buffer): Buffer => {
        const head = Buffer.alloc(16);
        head.write("IHAVEOPT");
        head.writeUInt32BE(number, 8);
        head.writeUInt32BE(data.length, 12);
        return Buffer.concat([head, data]);
      };
      const go = option(7, Buffer.alloc(6));
      for (let i = 0; i < 300; i++) {
        const client = connect({ path });
        const closed = new Promise((resolve) => client.on("close", resolve).on("error", resolve));
        const noise = Buffer.from(Uint8Array.from({ length: Math.floor(next() * 200) }, () => Math.floor(next() * 256)));
        const requests = Buffer.alloc(28 * 3);
        for (let at = 0; at < requests.length; at += 28) {
          requests.writeUInt32BE(0x25609513, at);
          requests.writeUInt16BE(Math.floor(next() * 9), at + 6);
          requests.writeUInt32BE(Math.floor(next() * 2 ** 32), at + 16);
          requests.writeUInt32BE(Math.floor(next() * 2 ** 32), at + 24);
        }
        const parts = [
          [noise],
          [hello, option(Math.floor(next() * 12), noise)],
          [hello, go, noise],
          [hello, go, requests],
          [hello, option(8, Buffer.alloc(0)), option(10, noise), go, requests],
        ][i % 5] as Buffer[];
        client.resume();
        client.end(Buffer.concat(parts));
        await Promise.race([closed, new Promise((resolve) => setTimeout(resolve, 500))]);
        client.destroy();
      }
      if (has("nbdcopy")) {
        await run("nbdcopy", [`nbd+unix:///?socket=${path}`, join(folder, "disk.raw")]);
        expect(readFileSync(join(folder, "disk.raw")).equals(content)).toBe(true);
      }
    } finally {
      server.close();
    }
  });
});
