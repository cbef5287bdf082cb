import type { BlockSource } from "../converters/block-source.ts";
import { pour } from "../converters/pour.ts";
import type { Destination } from "../destinations/destination.ts";
import type { Provider, SnapshotDisk } from "../providers/provider.ts";
import { type Exported, type ExportPorts, type ExportRequest, exportVm } from "./export-vm.ts";
import { isChunked, type Manifest, type ManifestDisk } from "./manifest.ts";
import { checkContent, discardingSink, hashPieceBytesOf, storedDisks } from "./restore.ts";

/** A restore point as a thing to be read: what can be exported from a VM can be exported from it again. */
export interface StoredPoint {
  readonly destination: Destination;
  readonly manifestPath: string;
  readonly manifest: Manifest;
}

/**
 * Stores a restore point once more, in any layout and format: the same disks as of the same instant, read from where they are.
 * @throws ArtifactDamaged when they are not what was exported
 */
export async function storeAgain(
  point: StoredPoint,
  to: Destination,
  request: Pick<ExportRequest, "pointId" | "runId" | "lineage" | "toolVersion" | "layout" | "format" | "compression" | "distrusted" | "repositoryId" | "keyId">,
  ports: ExportPorts,
  options: { readonly signal: AbortSignal; readonly onRead?: (bytes: number) => void },
): Promise<Exported> {
  const { source, disks } = point.manifest;
  const exported = await exportVm(
    providerOf(point),
    to,
    {
      ...request,
      schedule: source.schedule,
      kind: source.kind,
      fireTime: source.fireTime,
      commit: source.commit,
      identity: source.identity,
      sourceIdentity: source.identity,
      vmPath: source.vm,
      mode: "full",
      modeReason: "a copy",
      estimates: { readBytes: 0, storedBytes: null, durationMs: null },
    },
    ports,
    { begins() {}, read: (_, bytes) => options.onRead?.(bytes), diskDone() {} },
    options.signal,
  );
  // each piece was proved as it was read; here, that they are all there and in their order
  for (const [i, disk] of exported.manifest.disks.entries()) {
    const before = disks[i] as ManifestDisk;
    try {
      checkContent(before, await hashAsOf(before, disk, exported, to, options.signal));
    } catch (error) {
      await to.remove(exported.manifestPath);
      throw error;
    }
  }
  return exported;
}

/** The content hash of a disk that was stored again, over the pieces that the one before was hashed by; where those are others, it is read back. */
async function hashAsOf(before: ManifestDisk, disk: ManifestDisk, { manifest, manifestPath }: Exported, at: Destination, signal: AbortSignal): Promise<string> {
  const hashPieceBytes = hashPieceBytesOf(before);
  if (hashPieceBytes === disk.contentHash.pieceBytes) return disk.contentHash.value;
  const source = await (await storedDisks(at, manifestPath, manifest))(disk);
  try {
    return (await pour(source, discardingSink(), { hashPieceBytes, signal })).contentHash;
  } finally {
    await source.close();
  }
}

function providerOf({ destination, manifestPath, manifest }: StoredPoint): Provider {
  const { source, vm } = manifest;
  return {
    name: source.provider,
    type: source.providerType,
    inventory: async () => ({ vms: [], problems: [] }),
    async snapshot() {
      const open = await storedDisks(destination, manifestPath, manifest);
      const opened: BlockSource[] = [];
      const disks: SnapshotDisk[] = [];
      try {
        for (const disk of manifest.disks) {
          const from = await open(disk);
          opened.push(from);
          disks.push({ name: disk.name, format: disk.source.format, variant: isChunked(disk) ? "repository" : disk.format, source: from });
        }
      } catch (error) {
        await Promise.allSettled(opened.map((each) => each.close()));
        throw error;
      }
      return {
        instant: source.instant,
        vm,
        ...(source.consistency ? { consistency: source.consistency } : {}),
        disks,
        async confirm() {},
        async release() {
          await Promise.allSettled(opened.splice(0).map((each) => each.close()));
        },
      };
    },
  };
}

/** The newest point of a VM, kept beside a repository as images that any tool opens; those before it go. @returns its folder */
export async function keepImage(point: StoredPoint, request: Parameters<typeof storeAgain>[2], ports: ExportPorts, signal: AbortSignal): Promise<string> {
  const { destination } = point;
  const { manifestPath } = await storeAgain(point, destination, { ...request, layout: "image", compression: "none" }, ports, { signal });
  const folder = manifestPath.slice(0, manifestPath.lastIndexOf("/"));
  const older = (await destination.list(folder.slice(0, folder.lastIndexOf("/")))).filter(({ path }) => !path.startsWith(`${folder}/`));
  // without its manifest, an image is nothing that could be taken for whole
  const isManifest = (path: string): boolean => path.endsWith(".json");
  for (const { path } of [...older].sort((a, b) => Number(isManifest(b.path)) - Number(isManifest(a.path)))) await destination.remove(path);
  return folder;
}
