import { posix } from "node:path";
import type { DestinationSpec, Origin, ProviderSpec } from "../model/desired.ts";
import type { ConfigFile } from "./combine.ts";
import type { Report } from "./report.ts";
import type { Pointer } from "./source-file.ts";

/**
 * What a configuration from a remote repository may touch on the operator's machine. Who may push is not who may read
 * secrets: names and paths outside the checkout must be allowed here.
 */
export interface Access {
  readonly checkout: string;
  readonly env: readonly string[];
  readonly paths: readonly string[];
}

export function checkAccess(
  files: readonly ConfigFile[],
  folders: ReadonlyMap<string, string>,
  providers: readonly ProviderSpec[],
  destinations: readonly DestinationSpec[],
  access: Access,
  report: Report,
): void {
  const isAllowed = (path: string): boolean =>
    [access.checkout, ...access.paths].some((root) => path === root || path.startsWith(root === "/" ? "/" : `${root}/`));
  const refusePath = (path: string, origin: Origin, below: Pointer): void =>
    report.error("HSE024", origin, below, `the path ${path} is outside the repository`, `the operator must allow it: --allow-path ${path}`);
  for (const { type, origin, libvirt, ...places } of providers) {
    for (const key of ["path", "sockets", "scratch"] as const) {
      const place = places[key];
      if ((type === "local" || type === "qemu") && place !== undefined && !isAllowed(place)) refusePath(place, origin, [key]);
    }
    // who speaks with libvirt reads every image of the machine
    if (libvirt !== undefined && !isAllowed(socketOf(libvirt))) refusePath(socketOf(libvirt), origin, ["libvirt"]);
  }
  for (const destination of destinations) {
    const path = destination.url.startsWith("file://") ? destination.url.slice("file://".length) : undefined;
    if (path === undefined) continue;
    const below: Pointer = destination.inline ? [] : ["url"];
    // the checkout is cleaned at every fetch, and the exports in it with it
    if (path === access.checkout || path.startsWith(`${access.checkout}/`)) {
      report.error(
        "HSE024",
        destination.origin,
        below,
        "the destination lies inside the checkout of the repository",
        "name a folder outside it: file:///srv/backups",
      );
    } else if (!isAllowed(path)) refusePath(path, destination.origin, below);
  }
  for (const { file, fragment } of files) {
    for (const item of fragment.items) {
      for (const { reference, below } of references(item.value, [])) {
        const origin = { file, document: item.document, pointer: item.pointer };
        if (reference.kind === "env" && !access.env.includes(reference.name)) {
          report.error(
            "HSE024",
            origin,
            below,
            `the environment variable ${reference.name} is not allowed to this repository`,
            `the operator must allow it: --allow-env ${reference.name}`,
          );
        }
        if (reference.kind === "file") {
          const path = reference.name.startsWith("/") ? reference.name : `${folders.get(file)}/${reference.name}`;
          if (path.split("/").includes("..") || !isAllowed(path)) refusePath(path, origin, below);
        }
      }
    }
  }
}

/** Where a libvirt URI leads: the socket that it names, or the folder of those that it stands for. */
function socketOf(uri: string): string {
  const named = new URL(uri).searchParams.get("socket");
  return named === null ? (uri.includes(":///session") ? "/run/user" : "/run/libvirt") : posix.normalize(named);
}

interface Reference {
  readonly kind: "env" | "file";
  readonly name: string;
}

/** Every `${env:…}` and `${file:…}` below a value. The schema has made sure that they stand in secret fields only. */
function* references(value: unknown, below: Pointer): Generator<{ reference: Reference; below: Pointer }> {
  if (typeof value === "string") {
    const match = /^\$\{(env|file):([^}]+)\}$/.exec(value);
    if (match) yield { reference: { kind: match[1] as "env" | "file", name: match[2] as string }, below };
  } else if (typeof value === "object" && value !== null) {
    for (const [key, member] of Object.entries(value)) yield* references(member, [...below, Array.isArray(value) ? Number(key) : key]);
  }
}
