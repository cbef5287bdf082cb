import type { Destination, Upload } from "../../src/destinations/destination.ts";
import { type ErrorCode, HypersdkError } from "../../src/model/errors.ts";

/** How a call of a store goes wrong. */
export type Fault =
  /** It says so, and nothing was done. */
  | { readonly code: ErrorCode }
  /** It was done, and the answer was lost. */
  | "lost answer";

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
  return {
    spec: inner.spec,
    get calls() {
      return calls;
    },
    create: async (path) => failingUpload(await call(() => inner.create(path)), call),
    put: (path, data, options) => call(() => inner.put(path, data, options)),
    get: (path, maxBytes) => call(() => inner.get(path, maxBytes)),
    open: async (path) => {
      const file = await call(() => inner.open(path));
      return { ...file, read: (offset, into) => call(() => file.read(offset, into)) };
    },
    list: (prefix) => call(() => inner.list(prefix)),
    remove: (path) => call(() => inner.remove(path)),
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
