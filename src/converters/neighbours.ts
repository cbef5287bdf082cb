import { realpathSync } from "node:fs";
import { basename, dirname, join, sep } from "node:path";
import { HypersdkError } from "../model/errors.ts";
import { type ByteFile, openByteFile } from "./byte-file.ts";

/**
 * The files that an image may name: those in its own folder, and nothing else. A descriptor that says `/etc/passwd`,
 * `../other` or a device is an attack (CVE-2022-47951), and so is a symbolic link that leads out.
 */
export interface Neighbours {
  /** @throws ImageUnsafe when the name leads out of the folder */
  open(fileName: string): ByteFile;
}

export function neighboursOf(imagePath: string): Neighbours {
  return {
    open(fileName) {
      const unsafe = (why: string): HypersdkError =>
        new HypersdkError("ImageUnsafe", `${basename(imagePath)} names the file ${JSON.stringify(fileName.slice(0, 200))}, ${why}`, {
          hint: "an image may only name files in its own folder",
        });
      if (fileName === "" || fileName === "." || fileName === ".." || /[/\\\u0000-\u001f]/.test(fileName)) throw unsafe("which is no name of a file beside it");
      const folder = realpathSync(dirname(imagePath));
      const path = join(folder, fileName);
      let real: string;
      try {
        real = realpathSync(path);
      } catch (error) {
        throw new HypersdkError("ImageDamaged", `${basename(imagePath)}: the file ${fileName} that belongs to it is missing`, { cause: error });
      }
      if (!real.startsWith(folder.endsWith(sep) ? folder : folder + sep)) throw unsafe("a link that leads out of its folder");
      return openByteFile(real, fileName);
    },
  };
}

/** For images inside an archive: they have no neighbours. */
export const noNeighbours: Neighbours = {
  open(fileName) {
    throw new HypersdkError("ImageUnsafe", `an image inside an archive names the file ${JSON.stringify(fileName.slice(0, 200))}`);
  },
};
