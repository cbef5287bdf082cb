import { createHash } from "node:crypto";
import type { Branded } from "./brand.ts";

/**
 * Where a VM stands in its provider's tree: `/datacenter/vm/prod/db-01`. Segments are never empty, `.` or `..` and hold no
 * control characters; a slash inside a name is written `%2f`. Made only by {@link parseVmPath} and {@link vmPathUnder}.
 */
export type VmPath = Branded<string, "VmPath">;

export function parseVmPath(text: string): VmPath | undefined {
  if (!text.startsWith("/") || text.length > 4096) return undefined;
  if (plainPath.test(text)) return text as VmPath;
  const segments = text.slice(1).split("/");
  return segments.every(isSegment) ? (text.normalize("NFC") as VmPath) : undefined;
}

/** The path of the VM whose folder names below `root` are `names`; a slash cannot occur in a file name, `%` is kept. */
export function vmPathUnder(root: string, names: readonly string[]): VmPath | undefined {
  return parseVmPath([root === "/" ? "" : root, ...names.map((name) => name.replaceAll("/", "%2f"))].join("/"));
}

/** One file-system segment that names the whole path: `/a/b c` becomes `a%2Fb%20c`. Reversible, safe on every store. */
export function vmPathSegment(path: VmPath): string {
  const encoded = encodeURIComponent(path.slice(1))
    .replace(/[!'()*~]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`)
    .replace(/^\./, "%2E");
  // file systems end names at 255 bytes; the hash keeps two long ones apart
  return encoded.length <= 200
    ? encoded
    : `${encoded.slice(0, 180).replace(/%[0-9A-F]?$/, "")}-${createHash("sha256").update(path).digest("hex").slice(0, 16)}`;
}

/** What most paths look like; the general rule takes ten times as long. */
const plainPath = /^(?:\/[A-Za-z0-9_-][A-Za-z0-9_ .-]*)+$/;

function isSegment(segment: string): boolean {
  return segment !== "" && segment !== "." && segment !== ".." && !/[\u0000-\u001f\u007f\u2028\u2029]/.test(segment) && segment.isWellFormed();
}
