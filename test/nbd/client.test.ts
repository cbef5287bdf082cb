import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { piecesOf } from "../../src/converters/block-source.ts";
import { openImage } from "../../src/converters/open-image.ts";
import { connectNbd, type NbdOptions } from "../../src/nbd/client.ts";
import { nbdSource, statusOf } from "../../src/nbd/nbd-source.ts";
import { nbdServer } from "../../src/nbd/server.ts";
import { u16, u32, u64 } from "../../src/nbd/wire.ts";
import { temporaryFolder } from "../support/cli.ts";
import { bytes, KiB, MiB, writeRaw } from "../support/disks.ts";
import { qemuNbd } from "../support/nbd.ts";
import { has, qemuImg } from "../support/qemu.ts";

const shape = {
  sizeBytes: 96 * MiB + 512,
  islands: [
    { offset: MiB, length: 5 * MiB + 700 },
    { offset: 64 * MiB, length: 100 * KiB },
  ],
};

function rawDisk(): string {
  const path = join(temporaryFolder(), "disk.raw");
  writeRaw(path, shape);
  return path;
}

async function ownServer(path: string): Promise<string> {
  const socket = join(temporaryFolder(), "own.sock");
  const { source } = await openImage(path, { from: "raw" });
  const server = nbdServer(new Map([["disk", source]]));
  await new Promise<void>((done) => server.listen({ path: socket }, () => done()));
  onTestFinished(async () => {
    server.close();
    await source.close();
  });
  return socket;
}

async function contentOf(path: string, options: NbdOptions): Promise<Buffer> {
  const source = nbdSource(await connectNbd({ path }, options));
  const content = Buffer.alloc(source.sizeBytes);
  for await (const { offset, data } of piecesOf(source)) data.copy(content, offset);
  await source.close();
  return content;
}

describe("the NBD client", () => {
  it("reads what our server serves, in pieces, anywhere and side by side", async () => {
    const raw = rawDisk();
    const expected = readFileSync(raw);
    const socket = await ownServer(raw);
    expect((await contentOf(socket, { exportName: "disk" })).equals(expected)).toBe(true);
    const client = await connectNbd({ path: socket }, { exportName: "disk" });
    const places = [0, 1, 511, MiB - 3, 5 * MiB, expected.length - 70_000];
    await Promise.all(
      places.map(async (offset) => {
        const into = Buffer.alloc(70_000);
        await client.read(offset, into);
        expect(into.equals(expected.subarray(offset, offset + 70_000))).toBe(true);
      }),
    );
    await expect(client.read(expected.length - 1, Buffer.alloc(2))).rejects.toThrow(RangeError);
    await client.close();
    await client.close();
    await expect(client.read(0, Buffer.alloc(1))).rejects.toThrow("closed");
    await expect(connectNbd({ path: socket }, { exportName: "none" })).rejects.toMatchObject({ code: "NotFound" });
    await expect(connectNbd({ path: join(temporaryFolder(), "none") })).rejects.toMatchObject({ code: "ProviderUnreachable" });
  });

  it.skipIf(!has("qemu-nbd"))("reads what qemu-nbd serves, and sees the map that nbdinfo sees", async () => {
    const raw = rawDisk();
    const image = join(temporaryFolder(), "disk.qcow2");
    qemuImg("convert", "-f", "raw", "-O", "qcow2", raw, image);
    const socket = await qemuNbd(image, "qcow2");
    expect((await contentOf(socket, {})).equals(readFileSync(raw))).toBe(true);
    const client = await connectNbd({ path: socket });
    const ours: { offset: number; length: number; type: number }[] = [];
    for await (const { offset, length, flags } of statusOf(client, "base:allocation", { offset: 0, length: client.sizeBytes })) {
      const last = ours.at(-1);
      if (last && last.type === flags) last.length += length;
      else ours.push({ offset, length, type: flags });
    }
    await client.close();
    if (!has("nbdinfo")) return;
    const theirs = JSON.parse(execFileSync("nbdinfo", ["--map", "--json", `nbd+unix:///?socket=${socket}`], { encoding: "utf8" })) as typeof ours;
    expect(ours).toEqual(theirs.map(({ offset, length, type }) => ({ offset, length, type })));
  });

  it.skipIf(!has("qemu-nbd"))("sees dirty bitmaps as nbdinfo does", async () => {
    const image = join(temporaryFolder(), "disk.qcow2");
    qemuImg("create", "-q", "-f", "qcow2", image, "96M");
    qemuImg("bitmap", "--add", image, "b0");
    execFileSync("qemu-io", ["-f", "qcow2", "-c", "write -q -P 1 3M 200k", "-c", "write -q -P 2 70M 1", image]);
    const socket = await qemuNbd(image, "qcow2", ["-B", "b0"]);
    const context = "qemu:dirty-bitmap:b0";
    const client = await connectNbd({ path: socket }, { contexts: [context, "qemu:dirty-bitmap:none"] });
    expect(client.contexts).toEqual(new Set(["base:allocation", context]));
    const dirty: [number, number][] = [];
    for await (const { offset, length, flags } of statusOf(client, context, { offset: 0, length: client.sizeBytes }))
      if (flags === 1) dirty.push([offset, length]);
    await client.close();
    expect(dirty).toEqual([
      [3 * MiB, 256 * KiB],
      [70 * MiB, 64 * KiB],
    ]);
    await expect(client.status("qemu:dirty-bitmap:none", 0, 1)).rejects.toMatchObject({ code: "NotFound" });
  });

  it.skipIf(!has("qemu-nbd"))("speaks TLS, and trusts nobody whose certificate it cannot verify", { timeout: 180_000 }, async () => {
    const raw = rawDisk();
    const folder = temporaryFolder();
    const pki = join(folder, "pki");
    mkdirSync(pki);
    const openssl = (...args: string[]): void => void execFileSync("openssl", args, { stdio: "ignore", cwd: pki });
    const certificates = (name: string): void => {
      openssl(
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        `${name}-key.pem`,
        "-out",
        `${name}-cert.pem`,
        "-days",
        "2",
        "-subj",
        `/CN=${name}`,
        "-addext",
        "basicConstraints=critical,CA:true",
        "-addext",
        "keyUsage=critical,keyCertSign,digitalSignature",
      );
    };
    certificates("ca");
    certificates("other");
    writeFileSync(join(pki, "ext"), "subjectAltName=DNS:nbd.test\nbasicConstraints=CA:false\nkeyUsage=digitalSignature,keyEncipherment\n");
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "server-key.pem", "-out", "server.csr", "-subj", "/CN=nbd.test");
    openssl(
      "x509",
      "-req",
      "-in",
      "server.csr",
      "-CA",
      "ca-cert.pem",
      "-CAkey",
      "ca-key.pem",
      "-CAcreateserial",
      "-days",
      "2",
      "-extfile",
      "ext",
      "-out",
      "server-cert.pem",
    );
    const socket = await qemuNbd(raw, "raw", ["--object", `tls-creds-x509,id=tls0,endpoint=server,verify-peer=off,dir=${pki}`, "--tls-creds", "tls0"]);
    const ca = readFileSync(join(pki, "ca-cert.pem"), "utf8");
    const other = readFileSync(join(pki, "other-cert.pem"), "utf8");
    expect((await contentOf(socket, { tls: { ca, serverName: "nbd.test" } })).equals(readFileSync(raw))).toBe(true);
    await expect(connectNbd({ path: socket }, { tls: { ca: other, serverName: "nbd.test" } })).rejects.toThrow("no trusted connection");
    await expect(connectNbd({ path: socket }, { tls: { ca, serverName: "another.test" } })).rejects.toThrow("no trusted connection");
    await expect(connectNbd({ path: socket })).rejects.toMatchObject({ code: "Failed" });
    await expect(connectNbd({ path: await qemuNbd(raw, "raw") }, { tls: { ca, serverName: "nbd.test" } })).rejects.toThrow("offers no TLS");
  });
});

/** What a server says after each of the client's options; then to each request. */
interface Script {
  readonly greeting?: Buffer;
  readonly structured?: Buffer;
  readonly contexts?: Buffer;
  readonly go?: Buffer;
  readonly answer?: (handle: Buffer, offset: bigint) => Buffer;
}

const sizeBytes = MiB;
const reply = (option: number, type: number, data: Buffer = Buffer.alloc(0)): Buffer =>
  Buffer.concat([Buffer.from("0003e889045565a9", "hex"), u32(option), u32(type), u32(data.length), data]);
const chunk = (handle: Buffer, type: number, data: Buffer, flags = 1): Buffer =>
  Buffer.concat([u32(0x668e33ef), u16(flags), u16(type), handle, u32(data.length), data]);
const data = (handle: Buffer, offset: number, length: number, flags = 1): Buffer =>
  chunk(handle, 1, Buffer.concat([u64(offset), Buffer.alloc(length, 7)]), flags);
const honest: Required<Script> = {
  greeting: Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), u16(3)]),
  structured: reply(8, 1),
  contexts: Buffer.concat([reply(10, 4, Buffer.concat([u32(1), Buffer.from("base:allocation")])), reply(10, 1)]),
  go: Buffer.concat([reply(7, 3, Buffer.concat([u16(0), u64(sizeBytes), u16(3)])), reply(7, 1)]),
  answer: (handle, offset) => data(handle, Number(offset), 4096),
};

async function hostile(script: Script): Promise<string> {
  const path = join(temporaryFolder(), "hostile.sock");
  const says = { ...honest, ...script };
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.write(says.greeting);
    let seen = Buffer.alloc(0);
    let isOpen = false;
    let skipFlags = true;
    socket.on("data", (more) => {
      seen = Buffer.concat([seen, more]);
      if (skipFlags && seen.length >= 4) [seen, skipFlags] = [seen.subarray(4), false];
      while (!isOpen && seen.length >= 16 && seen.length >= 16 + seen.readUInt32BE(12)) {
        const option = seen.readUInt32BE(8);
        seen = seen.subarray(16 + seen.readUInt32BE(12));
        socket.write(option === 8 ? says.structured : option === 10 ? says.contexts : says.go);
        isOpen = option === 7;
      }
      while (isOpen && seen.length >= 28) {
        const request = seen.subarray(0, 28);
        seen = seen.subarray(28);
        if (request.readUInt16BE(6) !== 2) socket.write(says.answer(request.subarray(8, 16), request.readBigUInt64BE(16)));
      }
    });
  });
  await new Promise<void>((done) => server.listen({ path }, () => done()));
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return path;
}

const other = Buffer.from("ffffffffffffffff", "hex");

describe("a hostile NBD server", () => {
  it("is understood as long as it is honest", async () => {
    const client = await connectNbd({ path: await hostile({}) });
    const into = Buffer.alloc(4096);
    await client.read(8192, into);
    expect(into.equals(Buffer.alloc(4096, 7))).toBe(true);
    await client.close();
  });

  it.each<[string, Script]>([
    ["greets as something else", { greeting: Buffer.from("SSH-2.0-OpenSSH_9.2 Debian") }],
    ["speaks only the old protocol", { greeting: Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), u16(0)]) }],
    ["answers another option", { structured: reply(9, 1) }],
    ["answers with gigabytes", { structured: Buffer.concat([reply(8, 1).subarray(0, 16), u32(2 ** 31)]) }],
    ["answers without end", { structured: Buffer.concat(Array<Buffer>(100).fill(reply(8, 3))) }],
    ["has no structured replies", { structured: reply(8, 0x80000001) }],
    ["has contexts that nobody asked for", { contexts: Buffer.concat([reply(10, 4, Buffer.concat([u32(1), Buffer.from("evil:context")])), reply(10, 1)]) }],
    ["gives no size", { go: reply(7, 1) }],
    ["gives a size beyond counting", { go: Buffer.concat([reply(7, 3, Buffer.concat([u16(0), Buffer.alloc(8, 0xff), u16(3)])), reply(7, 1)]) }],
    ["hangs up", { go: Buffer.alloc(0), structured: Buffer.concat([reply(8, 1).subarray(0, 3)]) }],
  ])("that %s is refused", async (_, script) => {
    await expect(connectNbd({ path: await hostile(script) }, { timeoutMs: 500 })).rejects.toMatchObject({ name: "HypersdkError" });
  });

  it.each<[string, Required<Script>["answer"]]>([
    ["bytes before those that were asked for", (handle, offset) => data(handle, Number(offset) - 4096, 4096)],
    ["bytes behind them", (handle, offset) => data(handle, Number(offset) + 1, 4096)],
    ["more than was asked for", (handle, offset) => data(handle, Number(offset), 8192)],
    ["gigabytes", (handle, offset) => Buffer.concat([u32(0x668e33ef), u16(1), u16(1), handle, u32(2 ** 31), u64(Number(offset))])],
    ["less than was asked for", (handle, offset) => data(handle, Number(offset), 4095)],
    ["the same bytes twice", (handle, offset) => Buffer.concat([data(handle, Number(offset), 2048, 0), data(handle, Number(offset) + 1024, 2048)])],
    ["a hole too large", (handle, offset) => chunk(handle, 2, Buffer.concat([u64(Number(offset)), u32(2 ** 32 - 1)]))],
    ["an offset beyond counting", (handle) => chunk(handle, 1, Buffer.concat([Buffer.alloc(8, 0xff), Buffer.alloc(4096)]))],
    ["another's answer", (_, offset) => data(other, Number(offset), 4096)],
    ["a simple reply with success", (handle) => Buffer.concat([u32(0x67446698), u32(0), handle, Buffer.alloc(4096)])],
    ["an error without words", (handle) => chunk(handle, 0x8001, Buffer.alloc(2))],
    ["an unknown chunk", (handle) => chunk(handle, 99, Buffer.alloc(8))],
    ["an end without data", (handle) => chunk(handle, 0, Buffer.alloc(0))],
    ["no magic number", () => Buffer.alloc(64, 1)],
    ["blocks instead of data", (handle) => chunk(handle, 5, Buffer.concat([u32(1), u32(4096), u32(0)]))],
    ["nothing", () => Buffer.alloc(0)],
  ])("that sends %s fails the read, and every later one", async (_, answer) => {
    const client = await connectNbd({ path: await hostile({ answer }) }, { timeoutMs: 500 });
    const into = Buffer.alloc(4096);
    await expect(client.read(8192, into)).rejects.toMatchObject({ name: "HypersdkError" });
    await client.close();
  });

  it.each<[string, (handle: Buffer) => Buffer]>([
    ["blocks of no length", (handle) => chunk(handle, 5, Buffer.concat([u32(1), u32(0), u32(0)]))],
    ["blocks beyond the end", (handle) => chunk(handle, 5, Buffer.concat([u32(1), u32(sizeBytes), u32(0), u32(1), u32(0)]))],
    ["another context", (handle) => chunk(handle, 5, Buffer.concat([u32(2), u32(4096), u32(0)]))],
    [
      "one context twice",
      (handle) =>
        Buffer.concat([chunk(handle, 5, Buffer.concat([u32(1), u32(4096), u32(0)]), 0), chunk(handle, 5, Buffer.concat([u32(1), u32(4096), u32(0)]))]),
    ],
    ["half an extent", (handle) => chunk(handle, 5, Buffer.concat([u32(1), u32(4096)]))],
    ["no blocks", (handle) => chunk(handle, 0, Buffer.alloc(0))],
    ["data instead", (handle) => data(handle, 0, 4096)],
  ])("that describes %s fails the question", async (_, answer) => {
    const client = await connectNbd({ path: await hostile({ answer }) }, { timeoutMs: 500 });
    await expect(client.status("base:allocation", 0, sizeBytes)).rejects.toMatchObject({ name: "HypersdkError" });
    await client.close();
  });

  it("that sends random bytes is survived", { timeout: 180_000 }, async () => {
    for (let seed = 0; seed < 60; seed++) {
      const noise = bytes(400, seed);
      const client = await connectNbd(
        { path: await hostile({ answer: (handle) => Buffer.concat([chunk(handle, 1, Buffer.alloc(0)).subarray(0, seed % 20), noise]) }) },
        { timeoutMs: 300 },
      );
      await expect(client.read(0, Buffer.alloc(4096))).rejects.toMatchObject({ name: "HypersdkError" });
      await client.close();
    }
  });
});
