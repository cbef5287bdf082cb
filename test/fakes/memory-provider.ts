import { isZero } from "../../src/converters/block-source.ts";
import { HypersdkError } from "../../src/model/errors.ts";
import { instantOf } from "../../src/model/instant.ts";
import type { VmPath } from "../../src/model/vm-path.ts";
import type { Provider } from "../../src/providers/provider.ts";

/** A provider in memory whose snapshots keep their instant. `disks` undefined means that it cannot be reached. For tests only. */
export function memoryProvider(disks: ReadonlyMap<string, Buffer> | undefined): Provider {
  const reached = (): ReadonlyMap<string, Buffer> => {
    if (!disks) throw new HypersdkError("ProviderUnreachable", "the fake does not answer");
    return disks;
  };
  return {
    name: "memory",
    type: "memory",
    async inventory() {
      const vms = [...reached()]
        .sort(([a], [b]) => (a < b ? -1 : 1))
        .map(([identity, disk]) => ({
          provider: "memory",
          path: `/dc/vm/${identity}` as VmPath,
          identity,
          name: identity,
          disks: [{ name: "disk", format: "raw", virtualBytes: disk.length, dataBytes: disk.length }],
        }));
      return { vms, problems: [] };
    },
    async snapshot(identity) {
      const disk = reached().get(identity);
      if (!disk) throw new HypersdkError("NotFound", `no VM ${identity}`);
      const frozen = Buffer.from(disk);
      return {
        instant: instantOf(0),
        vm: { name: identity },
        disks: [
          {
            name: "disk",
            format: "raw",
            variant: "full",
            source: {
              sizeBytes: frozen.length,
              dataBytes: frozen.length,
              // pieces of 64 KiB, of which those of zeros are holes
              async *extents(range = { offset: 0, length: frozen.length }) {
                const end = range.offset + range.length;
                for (let offset = range.offset; offset < end; ) {
                  const length = Math.min(end, (Math.floor(offset / 65_536) + 1) * 65_536) - offset;
                  yield { offset, length, kind: isZero(frozen, offset, offset + length) ? ("zero" as const) : ("data" as const) };
                  offset += length;
                }
              },
              async read(offset, into) {
                frozen.copy(into, 0, offset, offset + into.length);
              },
              async close() {},
            },
          },
        ],
        async confirm() {},
        async release() {},
      };
    },
  };
}
