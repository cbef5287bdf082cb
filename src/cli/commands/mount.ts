import { once } from "node:events";
import { existsSync, lstatSync } from "node:fs";
import { rm } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { umask } from "node:process";
import type { BlockSource } from "../../converters/block-source.ts";
import { storedDisks } from "../../exports/restore.ts";
import { formatBytes } from "../../model/bytes.ts";
import { errnoOf, HypersdkError } from "../../model/errors.ts";
import { nbdServer } from "../../nbd/server.ts";
import { listenForInterrupts } from "../interrupts.ts";
import type { Io } from "../io.ts";
import { findPoint, type PointSelection } from "./points.ts";

export interface MountOptions extends PointSelection {
  readonly socket?: string;
  readonly listen?: string;
}

/** Serves the disks of a restore point read-only over NBD until it is interrupted. */
export async function mount(id: string | undefined, options: MountOptions, io: Io): Promise<number> {
  if (options.socket !== undefined && options.listen !== undefined) throw new HypersdkError("Usage", "--socket and --listen exclude each other");
  const { destination, manifestPath, manifest } = await findPoint(id, options, io);
  const open = await storedDisks(destination, manifestPath, manifest);
  const sources: BlockSource[] = [];
  const interrupts = listenForInterrupts(() => {});
  try {
    for (const disk of manifest.disks) sources.push(await open(disk));
    const exports = new Map(sources.map((source, i) => [`disk-${i}`, source]));
    exports.set("", sources[0] as BlockSource);
    const server = nbdServer(exports);
    const place =
      options.listen === undefined
        ? await socketPlace(resolve(io.cwd, options.socket ?? join(tmpdir(), `hypersdk-${manifest.id.slice(0, 8)}.sock`)))
        : tcpPlace(options.listen);
    // whoever may connect may read the disk
    const before = umask(0o177);
    await new Promise<void>((done, fail) => server.once("error", fail).listen(place.listen, () => done())).finally(() => umask(before));
    try {
      const disks = manifest.disks.map(({ name, virtualBytes }, i) => ({ disk: i, name, virtualBytes, uri: place.uri(`disk-${i}`) }));
      if (io.json) io.result("mount", { point: manifest.id, vm: manifest.source.vm, instant: manifest.source.instant, disks });
      else {
        io.out(`${manifest.source.vm} as of ${manifest.source.instant}, read-only, until Ctrl-C:\n`);
        for (const { name, virtualBytes, uri } of disks) io.out(`  ${uri}  ${name}, ${formatBytes(virtualBytes)}\n`);
      }
      if (!interrupts.signal.aborted) await new Promise((done) => interrupts.signal.addEventListener("abort", done, { once: true }));
      return 0;
    } finally {
      server.close();
      if (place.file) await rm(place.file, { force: true });
    }
  } finally {
    interrupts.dispose();
    await Promise.allSettled(sources.map((source) => source.close()));
    // clients that are still connected do not keep the process
    setImmediate(() => process.exit());
  }
}

interface Place {
  readonly listen: { readonly path: string } | { readonly host: string; readonly port: number };
  readonly file?: string;
  uri(name: string): string;
}

async function socketPlace(path: string): Promise<Place> {
  // one that a killed mount left behind is in nobody's way
  if (lstatSync(path, { throwIfNoEntry: false })?.isSocket() && !(await isListenedTo(path))) await rm(path, { force: true });
  if (existsSync(path)) throw new HypersdkError("AlreadyExists", `${path} exists already`, { hint: "name another with --socket" });
  if (!existsSync(dirname(path)))
    throw new HypersdkError("NotFound", `${dirname(path)} is not there: the socket cannot be made`, { hint: "make the folder first" });
  if (Buffer.byteLength(path) > 107) throw new HypersdkError("Usage", `${path} is too long for a socket`, { hint: "name a shorter one with --socket" });
  return { listen: { path }, file: path, uri: (name) => `nbd+unix:///${name}?socket=${path}` };
}

async function isListenedTo(path: string): Promise<boolean> {
  const socket = connect(path);
  try {
    await once(socket, "connect");
    return true;
  } catch (error) {
    return errnoOf(error) !== "ECONNREFUSED";
  } finally {
    socket.destroy();
  }
}

/** This machine only: NBD has no password. */
function tcpPlace(text: string): Place {
  const [, host = "", port = ""] = /^(127\.0\.0\.1|localhost|\[::1\]):(\d{1,5})$/.exec(text) ?? [];
  if (host === "" || Number(port) < 1 || Number(port) > 65_535)
    throw new HypersdkError("Usage", `--listen ${JSON.stringify(text)} is no address that only this machine can reach`, {
      hint: "such as 127.0.0.1:10809; whoever can connect can read the disk",
    });
  return { listen: { host: host.replace(/[[\]]/g, ""), port: Number(port) }, uri: (name) => `nbd://${host}:${port}/${name}` };
}
