import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { checkImage } from "../../src/converters/check-image.ts";
import { compareDisks } from "../../src/converters/compare.ts";
import { writeImageFile } from "../../src/converters/image-file.ts";
import { openImage } from "../../src/converters/open-image.ts";
import { pour } from "../../src/converters/pour.ts";
import type { WritableFormat } from "../../src/converters/write-image.ts";
import { temporaryFolder } from "../support/cli.ts";
import { shapes, writeRaw } from "../support/disks.ts";
import { checkWithQemu, has, qemuImg, sameForQemu } from "../support/qemu.ts";

/** Each way in which other people's tools write what we read. */
const sources: readonly { readonly name: string; readonly file: string; readonly args: readonly string[] }[] = [
  { name: "raw", file: "disk.raw", args: ["-O", "raw"] },
  { name: "qcow2 v3", file: "disk.qcow2", args: ["-O", "qcow2"] },
  { name: "qcow2 v2", file: "disk.qcow2", args: ["-O", "qcow2", "-o", "compat=0.10"] },
  { name: "qcow2 zlib", file: "disk.qcow2", args: ["-O", "qcow2", "-c"] },
  { name: "qcow2 with 4 KiB clusters", file: "disk.qcow2", args: ["-O", "qcow2", "-o", "cluster_size=4096"] },
  { name: "qcow2 zlib with 2 MiB clusters", file: "disk.qcow2", args: ["-O", "qcow2", "-c", "-o", "cluster_size=2M"] },
  { name: "vmdk monolithicSparse", file: "disk.vmdk", args: ["-O", "vmdk", "-o", "subformat=monolithicSparse"] },
  { name: "vmdk monolithicFlat", file: "disk.vmdk", args: ["-O", "vmdk", "-o", "subformat=monolithicFlat"] },
  { name: "vmdk twoGbMaxExtentSparse", file: "disk.vmdk", args: ["-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"] },
  { name: "vmdk twoGbMaxExtentFlat", file: "disk.vmdk", args: ["-O", "vmdk", "-o", "subformat=twoGbMaxExtentFlat"] },
  { name: "vmdk streamOptimized", file: "disk.vmdk", args: ["-O", "vmdk", "-o", "subformat=streamOptimized"] },
];

const targets: readonly { readonly format: WritableFormat; readonly compression: "none" | "zlib" }[] = [
  { format: "qcow2", compression: "none" },
  { format: "qcow2", compression: "zlib" },
  { format: "raw", compression: "none" },
];

describe.skipIf(!has("qemu-img"))("a disk that qemu-img wrote", () => {
  for (const source of sources) {
    for (const shape of shapes) {
      it(`as ${source.name}, ${shape.name}, is the same disk in every format that is written`, async () => {
        const folder = temporaryFolder();
        const raw = join(folder, "original.raw");
        writeRaw(raw, shape);
        const input = join(folder, source.file);
        qemuImg("convert", "-f", "raw", ...source.args, raw, input);
        expect((await checkImage(input, source.file.endsWith("raw") ? { from: "raw" } : {})).problems).toEqual([]);
        for (const { format, compression } of targets) {
          const output = join(folder, `out-${compression}.${format}`);
          const { source: disk } = await openImage(input, source.file.endsWith("raw") ? { from: "raw" } : {});
          await writeImageFile(
            output,
            format,
            disk.sizeBytes,
            { compression, overwrite: false, inputs: [input], durable: false },
            async (sink) => void (await pour(disk, sink)),
          );
          const expected = await openImage(raw, { from: "raw" });
          const written = await openImage(output, { from: format });
          expect(await compareDisks(expected.source, written.source)).toBeUndefined();
          await Promise.all([disk.close(), expected.source.close(), written.source.close()]);
          if (format === "qcow2") {
            checkWithQemu(output, "qcow2");
            expect(await checkImage(output, {})).toEqual({ format: "qcow2", problems: [], leaks: 0 });
          }
          sameForQemu(output, format, raw, "raw");
        }
      });
    }
  }
});
