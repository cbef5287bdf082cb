import type { Destination, Upload } from "../../src/destinations/destination.ts";
import type { DestinationAddress } from "../../src/model/desired.ts";
import { HypersdkError } from "../../src/model/errors.ts";
import { TreeHash } from "../../src/model/tree-hash.ts";

/** A destination in memory, with the behaviour of a real one. For tests only. */
export function memoryDestination(spec: DestinationAddress, files: Map<string, Buffer> = new Map()): Destination {
  const checked = (path: string): string => {
    if (path === "" || path.startsWith("/") || path.split("/").some((part) => part === "" || part === "." || part === ".."))
      throw new HypersdkError("Failed", `${path} is no path`);
    return path;
  };
  return {
    spec,
    async create(path): Promise<Upload> {
      const parts: Buffer[] = [];
      let position = 0;
      checked(path);
      return {
        reserve(bytes) {
          const gap = Buffer.alloc(bytes);
          parts.push(gap);
          position += bytes;
          return async (data) => {
            if (data.length !== bytes) throw new Error("another gap was reserved");
            gap.set(data);
          };
        },
        async settled() {},
        async append(data) {
          parts.push(Buffer.from(data));
          position += data.length;
        },
        async skip(bytes) {
          parts.push(Buffer.alloc(bytes));
          position += bytes;
        },
        get position() {
          return position;
        },
        async finish() {
          const content = Buffer.concat(parts);
          files.set(path, content);
          const hash = new TreeHash(8 * 2 ** 20);
          hash.update(content);
          return { bytes: content.length, hash: hash.digest() };
        },
        async abort() {},
      };
    },
    async put(path, data, { exclusive = false } = {}) {
      if (exclusive && files.has(checked(path))) throw new HypersdkError("AlreadyExists", `${path} exists already`);
      files.set(checked(path), typeof data === "string" || data instanceof Uint8Array ? Buffer.from(data as Uint8Array) : Buffer.concat(data));
    },
    async get(path, maxBytes) {
      const content = files.get(path);
      if (!content) throw new HypersdkError("NotFound", `${path} is not there`);
      if (content.length > maxBytes) throw new HypersdkError("ArtifactDamaged", `${path} is too large`);
      return content;
    },
    async open(path) {
      const content = files.get(path);
      if (!content) throw new HypersdkError("NotFound", `${path} is not there`);
      return {
        name: path,
        sizeBytes: content.length,
        async read(offset, into) {
          if (offset + into.length > content.length) throw new HypersdkError("ImageDamaged", `${path} ends early`);
          content.copy(into, 0, offset, offset + into.length);
        },
        async close() {},
      };
    },
    async list(prefix = "") {
      return [...files]
        .filter(([path]) => prefix === "" || path.startsWith(`${prefix}/`))
        .map(([path, content]) => ({ path, bytes: content.length, isPartial: false, modifiedMs: 0 }))
        .sort((a, b) => (a.path < b.path ? -1 : 1));
    },
    async names(prefix) {
      return (await this.list(prefix)).map(({ path, isPartial }) => ({ path, isPartial }));
    },
    async remove(path) {
      files.delete(checked(path));
    },
  };
}
