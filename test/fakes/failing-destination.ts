import type { Destination, StoredFile, Upload } from "../../src/destinations/destination.ts";
import { type ErrorCode, HypersdkError } from "../../src/model/errors.ts";

/** How a call of a store goes wrong. */
export type Fault =
  /** It says so, and nothing was done. */
  | { readonly code: ErrorCode }
  /** It was done, and the answer was lost. */
  | "lost answer"
  /** A listing is answered as it was before the last change; other calls are what they are. */
  | "stale list";

/** A destination of which one call fails, counted from 0. `calls` says how many there were. */
export function failingDestination(inner: Destination, failsAt: number, fault: Fault): Destination & { readonly calls: number } {
  let calls = 0;
  const failure = (): HypersdkError => new HypersdkError(typeof fault === "object" ? fault.code : "DestinationUnreachable", "the fake fails here");
  const call = async <T>(work: () => Promise<T>): Promise<T> => {
    const isIt = calls++ === failsAt;
    if (isIt && typeof fault === "object") throw failure();
    const done = await work();
    if (isIt && fault === "lost answer") throw failure();
    return done;
  };
  /** What a listing showed before the last change. */
  let before: StoredFile[] = [];
  const changing = async (): Promise<void> => {
    if (fault === "stale list") before = await inner.list();
  };
  return {
    spec: inner.spec,
    get calls() {
      return calls;
    },
    create: async (path) => failingUpload(await call(() => inner.create(path)), call),
    async put(path, data, options) {
      await changing();
      return call(() => inner.put(path, data, options));
    },
    get: (path, maxBytes) => call(() => inner.get(path, maxBytes)),
    open: async (path) => {
      const file = await call(() => inner.open(path));
      return { ...file, read: (offset, into) => call(() => file.read(offset, into)) };
    },
    async list(prefix) {
      const isStale = fault === "stale list" && calls === failsAt;
      const now = await call(() => inner.list(prefix));
      return isStale ? before.filter(({ path }) => prefix === undefined || path.startsWith(`${prefix}/`)) : now;
    },
    names(prefix) {
      return this.list(prefix);
    },
    async remove(path) {
      await changing();
      return call(() => inner.remove(path));
    },
  };
}

function failingUpload(inner: Upload, call: <T>(work: () => Promise<T>) => Promise<T>): Upload {
  return {
    reserve: (bytes) => inner.reserve(bytes),
    append: (data) => call(() => inner.append(data)),
    settled: () => inner.settled(),
    skip: (bytes) => inner.skip(bytes),
    get position() {
      return inner.position;
    },
    finish: () => call(() => inner.finish()),
    abort: () => inner.abort(),
  };
}
