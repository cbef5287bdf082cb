import type { ByteSink } from "../model/byte-sink.ts";
import { type DiskSink, holeBytes } from "./disk-sink.ts";

/** How a format lays out the equal blocks of a disk, in the order in which their data comes. */
export interface BlockLayout {
  readonly blockBytes: number;
  /** Gives a block its place, behind everything that was written; may append what stands in front of its data. @returns where the data begin */
  place(index: number): number | Promise<number>;
  /** Writes what is known when all blocks are there. */
  finish(): Promise<void>;
}

/** The writing side of `block-map.ts`: what is not written of a block is a hole in the file. */
export function blockSink(out: ByteSink, { blockBytes, place, finish }: BlockLayout): DiskSink {
  let [open, dataAt] = [-1, 0];

  async function reach(position: number): Promise<void> {
    if (out.position < position) await out.skip(position - out.position);
  }
  async function endBlock(): Promise<void> {
    if (open >= 0) await reach(dataAt + blockBytes);
  }

  return {
    blockBytes: holeBytes,
    async write(offset, data) {
      for (let done = 0; done < data.length; ) {
        const index = Math.floor((offset + done) / blockBytes);
        if (index < open) throw new Error(`a file is written in order: block ${index} came after ${open}`);
        if (index > open) {
          await endBlock();
          [open, dataAt] = [index, await place(index)];
        }
        const within = offset + done - index * blockBytes;
        const part = data.subarray(done, done + blockBytes - within);
        await reach(dataAt + within);
        await out.append(part);
        done += part.length;
      }
    },
    settled: () => out.settled(),
    async finish() {
      await endBlock();
      await finish();
    },
  };
}
