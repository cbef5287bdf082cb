import { readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { createTwoFilesPatch } from "diff";
import { formatText } from "../../config/format.ts";
import { fileError } from "../../files/local-file-sink.ts";
import { HypersdkError } from "../../model/errors.ts";
import { exitCodes } from "../exit-codes.ts";
import type { Io } from "../io.ts";
import { load, type SourceOptions } from "../load.ts";

export interface FmtOptions extends SourceOptions {
  readonly check?: boolean;
}

/** Canonical order and spacing, comments kept; only documents of ours are touched. With `--check` nothing is written. */
export async function fmt(options: FmtOptions, io: Io): Promise<number> {
  const { sourceOf, base, files } = await load(options, io.env, io.cwd);
  const changed: string[] = [];
  for (const file of files) {
    const source = sourceOf(file);
    const formatted = formatText(source);
    if (formatted === undefined || formatted === source.text) continue;
    changed.push(file);
    const path = options.file && options.file.length > 0 ? resolve(io.cwd, file) : resolve(base, file);
    if (options.check) {
      if (!io.json) io.out(createTwoFilesPatch(file, file, source.text, formatted, "", "", { context: 2 }).split("\n").slice(1).join("\n"));
    } else {
      // whole or not at all: somebody may be reading it
      const temporary = `${path}.hypersdk-fmt`;
      try {
        writeFileSync(temporary, formatted, { mode: statSync(path).mode });
        if (readFileSync(path, "utf8") === source.text) renameSync(temporary, path);
        else throw new HypersdkError("SourceChanged", `${file} changed while it was formatted`, { hint: "run it again" });
      } catch (error) {
        rmSync(temporary, { force: true });
        throw fileError(path, error);
      }
    }
  }
  if (io.json) io.result("fmt", { changed });
  else for (const file of changed) io.out(`${options.check ? "would change" : "changed"} ${file}\n`);
  return options.check && changed.length > 0 ? exitCodes.difference : exitCodes.done;
}
