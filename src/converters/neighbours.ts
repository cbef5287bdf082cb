import { existsSync, lstatSync, readdirSync, realpathSync } from "node:fs";
import { basename, dirname, isAbsolute, join, resolve, sep } from "node:path";
import { HypersdkError } from "../model/errors.ts";
import { type ByteFile, openByteFile } from "./byte-file.ts";

/**
 * The files that an image may name: those in its own folder, and nothing else. A descriptor that says `/etc/passwd`,
 * `../other` or a device is an attack (CVE-2022-47951), and so is a symbolic link that leads out.
 */
export interface Neighbours {
  /** A part of the image. @throws ImageUnsafe when the name leads out of the folder */
  open(fileName: string): ByteFile;
  /** The image that this one is a difference to, with its own neighbours. A path may also lead into an allowed folder. */
  openParent(name: string): { readonly file: ByteFile; readonly neighbours: Neighbours };
  /** Whether there is something of that name beside the image. */
  has(fileName: string): boolean;
  /** Names of the files beside the image, for formats that know a parent by id only. */
  list(): readonly string[];
  /** Opens one of those to look at it, without making it part of the image; undefined for what cannot be opened. */
  probe(fileName: string): ByteFile | undefined;
  /** Absolute paths of everything that was opened. */
  readonly opened: readonly string[];
}

/** @param allowed folders outside the image's own that hold its parents, as the operator says */
export function neighboursOf(imagePath: string, allowed: readonly string[] = [], opened: string[] = []): Neighbours {
  const image = basename(imagePath);
  const inside = (path: string, folder: string): boolean => path.startsWith(folder.endsWith(sep) ? folder : folder + sep);
  const openAt = (path: string, fileName: string, folders: readonly string[], hint: string): { readonly real: string; readonly file: ByteFile } => {
    let real: string;
    try {
      real = realpathSync(path);
    } catch (error) {
      throw new HypersdkError("ImageDamaged", `${image}: the file ${fileName} that belongs to it is missing`, { cause: error });
    }
    if (!folders.some((folder) => inside(real, folder))) throw unsafe(image, fileName, "which leads out of its folder", hint);
    const file = openByteFile(real, fileName);
    opened.push(real);
    return { real, file };
  };
  return {
    opened,
    open(fileName) {
      if (fileName === "" || fileName === "." || fileName === ".." || /[/\\\u0000-\u001f]/.test(fileName))
        throw unsafe(image, fileName, "which is no name of a file beside it", "an image may only name files in its own folder");
      const folder = realpathSync(dirname(imagePath));
      return openAt(join(folder, fileName), fileName, [folder], "an image may only name files in its own folder").file;
    },
    openParent(name) {
      const hint = "a parent lies in the image's own folder, or, for `convert` and `image`, in one that is named with --allow-backing";
      // `json:`, `nbd://…`, `driver:file`: names that a block layer would open by another way than as a file
      if (name === "" || /[\u0000-\u001f]/.test(name) || /^[A-Za-z][A-Za-z0-9+.-]+:/.test(name)) throw unsafe(image, name, "which is no path of a file", hint);
      const folder = realpathSync(dirname(imagePath));
      const folders = [folder, ...allowed.flatMap((each) => realOf(each))];
      const shown = name.replace(/^\.\//, "");
      const own = isAbsolute(name) ? name : resolve(folder, name);
      // an image that was moved: its parents are where the operator says, by their names
      const places = [own, ...folders.slice(1).map((each) => join(each, basename(name)))];
      const place = places.find((each) => existsSync(each));
      if (place === undefined)
        throw new HypersdkError("ImageDamaged", `${image}: the file ${shown} that belongs to it is missing: it is not at ${places.join(", nor at ")}`, {
          hint: "put it back beside the image; `convert` and `image` also look in the folder that --allow-backing names",
        });
      const { real, file } = openAt(place, shown, folders, hint);
      return { file, neighbours: neighboursOf(real, allowed, opened) };
    },
    has: (fileName) => lstatSync(join(dirname(imagePath), fileName), { throwIfNoEntry: false }) !== undefined,
    list: () =>
      readdirSync(dirname(imagePath), { withFileTypes: true })
        .filter((entry) => entry.isFile() || entry.isSymbolicLink())
        .map((entry) => entry.name)
        .sort(),
    probe(fileName) {
      try {
        const folder = realpathSync(dirname(imagePath));
        const real = realpathSync(join(folder, fileName));
        return inside(real, folder) ? openByteFile(real, fileName) : undefined;
      } catch {
        return undefined;
      }
    },
  };
}

function realOf(folder: string): string[] {
  try {
    return [realpathSync(folder)];
  } catch {
    return [];
  }
}

function unsafe(image: string, fileName: string, why: string, hint: string): HypersdkError {
  return new HypersdkError("ImageUnsafe", `${image} names the file ${JSON.stringify(fileName.slice(0, 200))}, ${why}`, { hint });
}

/** For images inside an archive: they have no neighbours. */
export const noNeighbours: Neighbours = {
  opened: [],
  open(fileName) {
    throw new HypersdkError("ImageUnsafe", `an image inside an archive names the file ${JSON.stringify(fileName.slice(0, 200))}`);
  },
  openParent(name) {
    throw new HypersdkError("ImageUnsafe", `an image inside an archive is a difference to ${JSON.stringify(name.slice(0, 200))}`);
  },
  has: () => false,
  list: () => [],
  probe: () => undefined,
};
