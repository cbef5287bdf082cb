import { mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { instantOf } from "../../src/model/instant.ts";
import type { VmPath } from "../../src/model/vm-path.ts";
import type { Provider } from "../../src/providers/provider.ts";
import { imageIdentity } from "../../src/providers/qemu/bitmaps.ts";
import { qemuProvider } from "../../src/providers/qemu/qemu-provider.ts";
import { providerContract } from "../contract/provider.ts";
import { temporaryFolder } from "../support/cli.ts";
import { bytes, MiB } from "../support/disks.ts";
import { has, qemuImg } from "../support/qemu.ts";
import { startGuest } from "../support/writing-guest.ts";

function providerAt(folder: string): Provider {
  const spec = {
    name: "lab",
    type: "qemu",
    path: join(folder, "machines"),
    writtenPath: "./machines",
    sockets: join(folder, "run"),
    root: "/dc/vm" as VmPath,
    origin: { file: "", document: 0, pointer: [] },
  };
  return qemuProvider(spec, { now: () => instantOf(0), sleep: async () => {} });
}

function folders(): string {
  const folder = temporaryFolder();
  mkdirSync(join(folder, "run"));
  mkdirSync(join(folder, "machines/web"), { recursive: true });
  return folder;
}

/** A stopped machine with one disk: its processors stand still, its monitor answers. */
async function stoppedMachine(): Promise<{ readonly folder: string; readonly content: Buffer; readonly path: string }> {
  const folder = folders();
  const content = bytes(3 * MiB, 5);
  writeFileSync(join(folder, "raw"), content);
  const path = join(folder, "machines/web/disk.qcow2");
  qemuImg("convert", "-f", "raw", "-O", "qcow2", join(folder, "raw"), path);
  const guest = await startGuest(join(folder, "run/web.qmp"), [{ path, format: "qcow2" }], ["-S"]);
  onTestFinished(() => guest.kill());
  return { folder, content, path };
}

describe.skipIf(!has("qemu-system-x86_64"))("QEMU", () => {
  providerContract("qemu", async () => {
    const { folder, content } = await stoppedMachine();
    // no guest writes here: what it writes while it is exported is the test of test/e2e/qemu.test.ts
    return { provider: providerAt(folder), identity: "web", content, change() {}, unreachable: providerAt(join(folder, "none")) };
  });

  it("is left as it was by a snapshot that is released, and by one that fails", async () => {
    const { folder, path } = await stoppedMachine();
    const provider = providerAt(folder);
    const track = (id: string, since: readonly [string, string][] = []) => ({ track: { owner: "12345678", id, since: new Map(since) } });
    const markOf = (id: string): string => `hypersdk-12345678-${id}-0-${imageIdentity(path, "qcow2")}`;
    const marks = async (): Promise<string[]> => (await provider.inventory()).vms[0]?.disks[0]?.marks?.map(({ name }) => name) ?? [];
    const first = await provider.snapshot("web", track("aaaaaaaa"));
    await first.confirm();
    await first.release();
    expect(await marks()).toEqual([]);
    const second = await provider.snapshot("web", track("bbbbbbbb"));
    await second.keepMarks?.();
    await second.release();
    expect(await marks()).toEqual([markOf("bbbbbbbb")]);
    const third = await provider.snapshot("web", track("cccccccc", [["disk.qcow2", markOf("bbbbbbbb")]]));
    expect(third.disks[0]?.tracking).toMatchObject({ mark: markOf("cccccccc"), changes: { ranges: expect.any(Function) as unknown } });
    await third.release();
    expect(await marks()).toEqual([markOf("bbbbbbbb")]);
    const other = await provider.snapshot("web", track("dddddddd", [["disk.qcow2", markOf("eeeeeeee")]]));
    expect(other.disks[0]?.tracking?.changes).toBe(`its bitmap ${markOf("eeeeeeee")} is gone`);
    await other.keepMarks?.();
    await other.release();
    expect(await marks()).toEqual([markOf("dddddddd")]);
  });

  it("has the file systems of its guest stand still for the instant, where an agent answers, and never leaves them so", async () => {
    const { folder } = await stoppedMachine();
    // a fake, with the behaviour of qemu-ga: no Linux guest with an agent runs here
    const agent = await fakeAgent(join(folder, "run/web.qga"));
    const snapshot = await providerAt(folder).snapshot("web");
    expect(snapshot.consistency).toBe("file systems");
    await snapshot.release();
    expect(agent.asked).toEqual(["guest-sync", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]);
  });

  it("is not stopped before what the caller prepares is there, and is left as it was where that fails", async () => {
    const { folder } = await stoppedMachine();
    const agent = await fakeAgent(join(folder, "run/web.qga"));
    const provider = providerAt(folder);
    const { promise, resolve } = Promise.withResolvers<void>();
    const taken = provider.snapshot("web", { ready: promise });
    await new Promise((done) => setTimeout(done, 300));
    expect(agent.asked).toEqual([]);
    resolve();
    await (await taken).release();
    expect(agent.asked).toContain("guest-fsfreeze-freeze");
    agent.asked.length = 0;
    const track = { owner: "12345678", id: "aaaaaaaa", since: new Map<string, string>() };
    const failing = Promise.reject(new Error("no index"));
    failing.catch(() => {});
    await expect(provider.snapshot("web", { ready: failing, track })).rejects.toThrow("no index");
    expect(agent.asked).toEqual([]);
    expect(readdirSync(join(folder, "machines/web"))).toEqual(["disk.qcow2"]);
    expect((await provider.inventory()).vms[0]?.disks[0]?.marks).toEqual([]);
  });

  it.each([
    ["says nothing", () => ""],
    ["sends no JSON", () => "hello\n"],
    ["sends a line without end", () => "x".repeat(17 * MiB)],
    ["is another program", () => '{"hello": 1}\n'],
    ["is a list", () => "[1]\n"],
  ])("whose monitor %s is not taken for gone", async (_, greeting) => {
    const folder = folders();
    const server = createServer((socket) => {
      socket.on("error", () => {});
      socket.write(greeting());
    });
    await new Promise<void>((done) => server.listen({ path: join(folder, "run/web.qmp") }, () => done()));
    onTestFinished(() => void server.close());
    // the machine is off, as far as its images tell; the monitor says that it is not
    writeFileSync(join(folder, "machines/web/disk.raw"), bytes(65_536, 1));
    expect(await providerAt(folder).inventory()).toMatchObject({ vms: [], unknown: [{ identity: "web", reason: expect.any(String) as string }] });
    await expect(providerAt(folder).snapshot("web")).rejects.toMatchObject({ code: "ProviderUnreachable" });
  });
});

async function fakeAgent(path: string): Promise<{ readonly asked: string[] }> {
  const asked: string[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("data", (data) => {
      const { execute, arguments: args } = JSON.parse(data.toString("utf8")) as { execute: string; arguments?: { id: number } };
      asked.push(execute);
      // what another asked before may still come first
      if (execute === "guest-sync") socket.write('{"return": 77}\n');
      socket.write(`${JSON.stringify({ return: execute === "guest-sync" ? args?.id : execute === "guest-fsfreeze-freeze" ? 2 : 2 })}\n`);
    });
  });
  await new Promise<void>((done) => server.listen({ path }, () => done()));
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return { asked };
}
