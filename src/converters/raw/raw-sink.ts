import type { ByteSink } from "../../model/byte-sink.ts";
import { type DiskSink, holeBytes } from "../disk-sink.ts";

/** A raw image with holes where the disk has no data. */
export function rawSink(out: ByteSink, sizeBytes: number): DiskSink {
  return {
    blockBytes: holeBytes,
    async write(offset, data) {
      if (offset > out.position) await out.skip(offset - out.position);
      await out.append(data);
    },
    settled: () => out.settled(),
    async finish() {
      if (sizeBytes > out.position) await out.skip(sizeBytes - out.position);
    },
  };
}
