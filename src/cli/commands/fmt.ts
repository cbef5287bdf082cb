import { readFileSync, realpathSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { createTwoFilesPatch } from "diff";
import { formatText } from "../../config/format.ts";
import { SourceFile } from "../../config/source-file.ts";
import { fileError } from "../../files/local-file-sink.ts";
import { HypersdkError } from "../../model/errors.ts";
import { plural } from "../../ui/plan-view.ts";
import { ConfigInvalid } from "../desired.ts";
import { exitCodes } from "../exit-codes.ts";
import type { Io } from "../io.ts";
import { load, type SourceOptions } from "../load.ts";

export interface FmtOptions extends SourceOptions {
  readonly check?: boolean;
}

/** A comment may find its place only when it is read from where it was put. */
function settled(source: SourceFile): string | undefined {
  let text = formatText(source);
  for (let i = 0; i < 3 && text !== undefined; i++) {
    const again = formatText(new SourceFile(source.file, text));
    if (again === undefined || again === text) break;
    text = again;
  }
  return text;
}

/** Findings that say that a file is no YAML that could be read: of all others a file can have as many as it likes. */
const noYaml: ReadonlySet<string> = new Set(["HSE001", "HSE002", "HSE003", "HSE004", "HSE005"]);

/** Canonical order and spacing, comments kept; only documents of ours are touched. With `--check` nothing is written. */
export async function fmt(options: FmtOptions, io: Io): Promise<number> {
  const { sourceOf, base, files, diagnostics } = await load(options, io.env, io.cwd);
  const changed: string[] = [];
  for (const file of files) {
    const source = sourceOf(file);
    const formatted = settled(source);
    if (formatted === undefined || formatted === source.text) continue;
    changed.push(file);
    if (options.check) {
      if (!io.json) io.out(createTwoFilesPatch(file, file, source.text, formatted, "", "", { context: 2 }).split("\n").slice(1).join("\n"));
    } else {
      // what a link leads to is what is formatted
      const path = realpathSync(resolve(options.file && options.file.length > 0 ? io.cwd : base, file));
      if (!statSync(path).isFile()) throw new HypersdkError("Usage", `${file} is no file that could be written`);
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
  if (!io.json) for (const file of changed) io.out(`${options.check ? "would change" : "changed"} ${file}\n`);
  const unreadable = diagnostics.filter(({ code }) => noYaml.has(code));
  if (unreadable.length > 0) throw new ConfigInvalid(unreadable, `${plural(new Set(unreadable.map(({ file }) => file)).size, "file")} cannot be formatted`);
  if (io.json) io.result("fmt", { changed });
  return options.check && changed.length > 0 ? exitCodes.difference : exitCodes.done;
}
