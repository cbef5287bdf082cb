import { HypersdkError } from "../../src/model/errors.ts";
import type { DiskTracking, Provider, TrackRequest } from "../../src/providers/provider.ts";
import { memoryProvider } from "./memory-provider.ts";

const granularity = 64 * 1024;

/** What a tracking provider of tests remembers between exports, as a hypervisor does. */
export interface Tracker {
  /** What the disk held when a mark was set. */
  readonly marks: Map<string, Buffer>;
  /** True for a change that it leaves out: a liar. */
  leavesOut(offset: number): boolean;
  /** How many bytes were read of the disk. */
  readBytes: number;
  /** The machine is off: changes are told, and no mark is set. */
  isOff: boolean;
}

export function newTracker(): Tracker {
  return { marks: new Map(), leavesOut: () => false, readBytes: 0, isOff: false };
}

/** The provider in memory, with one disk and marks that tell changed blocks of 64 KiB. For tests only. */
export function trackingProvider(identity: string, disk: Buffer, tracker: Tracker): Provider {
  const provider = memoryProvider(new Map([[identity, disk]]));
  return {
    ...provider,
    tracksChanges: true,
    async snapshot(name, options = {}) {
      const snapshot = await provider.snapshot(name, options);
      const [first] = snapshot.disks;
      if (!first) throw new HypersdkError("NotFound", "no disk");
      const frozen = Buffer.from(disk);
      const { track } = options;
      const tracking = track && setMark(track, frozen, tracker);
      let isKept = false;
      const source = {
        ...first.source,
        async read(offset: number, into: Buffer) {
          tracker.readBytes += into.length;
          await first.source.read(offset, into);
        },
      };
      return {
        ...snapshot,
        disks: [{ ...first, source, ...(tracking ? { tracking } : {}) }],
        async keepMarks() {
          isKept = true;
          if (tracking?.mark !== undefined) for (const mark of tracker.marks.keys()) if (mark !== tracking.mark) tracker.marks.delete(mark);
        },
        async release() {
          if (!isKept && tracking?.mark !== undefined) tracker.marks.delete(tracking.mark);
        },
      };
    },
  };
}

function setMark({ owner, id, since }: TrackRequest, frozen: Buffer, tracker: Tracker): DiskTracking | undefined {
  const mark = `${owner}-${id}`;
  const wanted = since.get("disk");
  if (tracker.isOff && wanted === undefined) return undefined;
  if (!tracker.isOff) tracker.marks.set(mark, frozen);
  const before = wanted === undefined ? undefined : tracker.marks.get(wanted);
  if (!before) return { ...(tracker.isOff ? {} : { mark }), changes: wanted === undefined ? "nothing was marked before" : "its mark is gone" };
  return {
    ...(tracker.isOff ? {} : { mark }),
    changes: {
      async *ranges() {
        for (let offset = 0; offset < frozen.length; offset += granularity) {
          const length = Math.min(granularity, frozen.length - offset);
          const isSame = before.length >= offset + length && frozen.compare(before, offset, offset + length, offset, offset + length) === 0;
          if (!isSame && !tracker.leavesOut(offset)) yield { offset, length };
        }
      },
    },
  };
}
