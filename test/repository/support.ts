import { createHash, hash, randomFillSync, randomUUID } from "node:crypto";
import { closeSync, openSync, writeSync } from "node:fs";
import { zstdDecompressSync } from "node:zlib";
import { expect } from "vitest";
import type { FileSource } from "../../src/converters/block-source.ts";
import type { DiskSink } from "../../src/converters/disk-sink.ts";
import type { Destination } from "../../src/destinations/destination.ts";
import { fileDestination } from "../../src/destinations/file/file-destination.ts";
import { exportVm } from "../../src/exports/export-vm.ts";
import { readManifest, restoreDisk, storedDisks } from "../../src/exports/restore.ts";
import { type Instant, instantOf } from "../../src/model/instant.ts";
import type { Clock } from "../../src/model/ports.ts";
import type { VmPath } from "../../src/model/vm-path.ts";
import type { Provider } from "../../src/providers/provider.ts";
import type { Run } from "../../src/repository/chunk-preparation.ts";
import { memoryProvider } from "../fakes/memory-provider.ts";

export const clock: Clock = { now: () => instantOf(1_700_000_000_000), sleep: async () => {} };

/** Opens the sealed fixtures, and seals what tests make. */
export const passphrase = "correct horse battery staple";

/** @param isSealed whether a repository that is made there is encrypted; one that is opens in any case */
export function destinationAt(root: string, isSealed: boolean = false): Destination {
  const destination = fileDestination({ name: "d", url: `file://${root}` }, { uuid: randomUUID, fraction: Math.random });
  return isSealed ? sealing(destination) : destination;
}

export function sealing(destination: Destination): Destination {
  return { ...destination, encryption: { sealing: { secret: () => passphrase, recipients: [] }, others: [] } };
}

/** Exports one disk of one VM. @returns the manifest's path */
export async function exportDisk(
  destination: Destination,
  content: Buffer,
  layout: "image" | "repository",
  options: { readonly vm?: string; readonly runId?: string; readonly clock?: Clock; readonly failsAt?: number } = {},
): Promise<string> {
  const { vm = "web", runId = randomUUID(), clock: at = clock } = options;
  const fireTime: Instant = instantOf(0);
  const { manifestPath } = await exportVm(
    failingAt(options.failsAt ?? content.length, memoryProvider(new Map([[vm, content]]))),
    destination,
    {
      pointId: randomUUID(),
      runId,
      lineage: "test",
      toolVersion: "0",
      schedule: "nightly",
      kind: "scheduled",
      fireTime,
      commit: null,
      identity: vm,
      sourceIdentity: vm,
      vmPath: `/dc/vm/${vm}` as VmPath,
      layout,
      format: "qcow2",
      compression: layout === "image" ? "none" : "zstd",
      mode: "full",
      modeReason: "test",
      estimates: { readBytes: 0, storedBytes: null, durationMs: null },
    },
    { clock: at, random: { fraction: () => 0.5 } },
    { begins() {}, read() {}, diskDone() {} },
    new AbortController().signal,
  );
  return manifestPath;
}

/** A provider whose disks cannot be read beyond an offset. */
function failingAt(failsAt: number, provider: Provider): Provider {
  return {
    ...provider,
    async snapshot(...args) {
      const snapshot = await provider.snapshot(...args);
      const disks = snapshot.disks.map((disk) => ({
        ...disk,
        source: {
          ...disk.source,
          async read(offset: number, into: Buffer) {
            if (offset + into.length > failsAt) throw new Error("the disk cannot be read");
            return disk.source.read(offset, into);
          },
        },
      }));
      return { ...snapshot, disks };
    },
  };
}

/** A disk of a point, byte for byte. @throws what a restore would */
export async function contentOf(destination: Destination, path: string, disk: number = 0): Promise<Buffer> {
  const manifest = await readManifest(destination, path);
  const chosen = manifest.disks[disk] as (typeof manifest.disks)[number];
  const source = await (await storedDisks(destination, path, manifest))(chosen);
  try {
    const content = Buffer.alloc(source.sizeBytes);
    const sink: DiskSink = {
      blockBytes: 65_536,
      async write(offset, data) {
        data.copy(content, offset);
      },
      async settled() {},
      async finish() {},
    };
    await restoreDisk(source, chosen, sink, {});
    return content;
  } finally {
    await source.close();
  }
}

/** Bytes that do not shrink, always the same ones. */
export function noiseOf(bytes: number, seed: number): Buffer {
  const blocks = Array.from({ length: Math.ceil(bytes / 64) }, (_, i) => createHash("sha512").update(`${seed} ${i}`).digest());
  return Buffer.concat(blocks).subarray(0, bytes);
}

/** A run that is half noise, and half nothing. */
export function runOf(i: number): Buffer {
  const run = Buffer.alloc(i % 3 === 0 ? 2 ** 20 : 1 + ((i * 7919) % 2 ** 20), i);
  return randomFillSync(run, 0, run.length >> 1);
}

/** A disk that is a file. @param read what a read that is not the thread's gives, where that is another content */
export function fileSource(path: string, content: Buffer, read: Buffer = content): FileSource & { readonly reads: number[] } {
  const descriptor = openSync(path, "w+");
  writeSync(descriptor, content);
  const reads: number[] = [];
  return {
    reads,
    descriptor,
    sizeBytes: content.length,
    dataBytes: content.length,
    async *extents() {
      yield { offset: 0, length: content.length, kind: "data" };
    },
    async read(offset, into) {
      reads.push(offset);
      if (offset + into.length > read.length) throw new Error("the disk ends before");
      read.copy(into, 0, offset, offset + into.length);
    },
    close: async () => closeSync(descriptor),
  };
}

/** The chunks of a run. */
export function piecesOf(data: Buffer, chunkBytes: number): Buffer[] {
  return Array.from({ length: Math.ceil(data.length / chunkBytes) }, (_, i) => data.subarray(i * chunkBytes, (i + 1) * chunkBytes));
}

export function isZeros(chunk: Buffer): boolean {
  return chunk.every((byte) => byte === 0);
}

/** Whatever was prepared of a run is what it should be. */
export async function checkRun(data: Buffer, chunkBytes: number, { prepared, release }: Run): Promise<void> {
  for (const [i, chunk] of piecesOf(data, chunkBytes).entries()) {
    const found = await prepared(i);
    expect(found === null).toBe(isZeros(chunk));
    if (!found) continue;
    const { id, frame } = found;
    expect(id.equals(hash("sha256", chunk, "buffer"))).toBe(true);
    expect(frame).not.toBe(undefined);
    if (frame) expect(zstdDecompressSync(frame).equals(chunk)).toBe(true);
    expect((frame ?? chunk).length).toBeLessThanOrEqual(chunk.length);
  }
  release();
}
