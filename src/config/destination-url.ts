import { redactedUrls } from "./redact.ts";
import { resolvePath } from "./resolve-path.ts";

export type ParsedUrl =
  | { readonly ok: true; readonly scheme: string; readonly url: string }
  | { readonly ok: false; readonly message: string; readonly label: string };

const schemes = ["file", "s3", "azure", "gs", "gcs", "sftp"];

/**
 * Reads a destination's URL. A local one is `file:///srv/backups`, or `file:./exports` for a folder seen from `folder`; it
 * comes back as `file://` with an absolute, decoded path.
 */
export function parseDestinationUrl(text: string, folder: string): ParsedUrl {
  const scheme = /^([a-z][a-z0-9+.-]*):/.exec(text)?.[1];
  if (!scheme || !schemes.includes(scheme)) {
    return {
      ok: false,
      message: `${shown(text)} is no destination`,
      label: "file:///path, s3://bucket/prefix, azure://container/prefix, gs://bucket/prefix or sftp://host/path",
    };
  }
  if (/[\u0000-\u001f\u007f]/.test(text)) return { ok: false, message: "the URL holds a control character", label: "remove it" };
  if (scheme !== "file") {
    if (!/^[a-z0-9]+:\/\/[^/@\s]+(\/.*)?$/.test(text)) {
      return text.includes("@")
        ? { ok: false, message: "the URL holds a user name or a secret", label: "secrets stand in their own fields, by reference" }
        : { ok: false, message: `${shown(text)} names no bucket or host`, label: `${scheme}://name/prefix` };
    }
    return { ok: true, scheme, url: text };
  }
  const rest = text.slice("file:".length);
  const isRelative = /^\.{1,2}\//.test(rest) || rest === ".";
  if (!rest.startsWith("///") && !isRelative)
    return { ok: false, message: `${shown(text)} is no local folder`, label: "file:///srv/backups with three slashes, or file:./exports beside this file" };
  let path: string;
  try {
    path = resolvePath(folder, decodeURIComponent(isRelative ? rest : rest.slice(2)));
  } catch {
    return { ok: false, message: `${shown(text)} has a broken %-escape`, label: "write %25 for a percent sign" };
  }
  if (path === "/") return { ok: false, message: "the root folder cannot be a destination", label: "name a folder" };
  return { ok: true, scheme, url: `file://${path}` };
}

/** What a person sees of a URL that may hold a secret. */
function shown(url: string): string {
  return JSON.stringify(redactedUrls(url).slice(0, 80));
}
