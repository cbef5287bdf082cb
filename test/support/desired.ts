import type { Combined } from "../../src/config/combine.ts";
import { combine } from "../../src/config/combine.ts";
import { readFile } from "../../src/config/read-file.ts";
import { SourceFile } from "../../src/config/source-file.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import { renderDiagnostics } from "../../src/ui/diagnostics-view.ts";
import { styleOf } from "../../src/ui/style.ts";

/** Files by name, read and combined as the program does it, in a folder `/repo`. */
export function read(files: Readonly<Record<string, string>>, wasNamed = false): Combined {
  const sources = new Map(Object.entries(files).map(([file, text]) => [file, new SourceFile(file, text)]));
  const list = Object.entries(files)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([file, text]) => ({ file, folder: "/repo", fragment: readFile(file, Buffer.from(text), wasNamed) }));
  return combine(list, (file) => sources.get(file) as SourceFile, undefined);
}

export function desiredOf(yaml: string): DesiredState {
  const { desired, diagnostics } = read({ "infrastructure.yaml": yaml });
  if (!desired) throw new Error(renderDiagnostics(diagnostics, styleOf(false)));
  return desired;
}

/** What a person sees, without colours. */
export function complaints(files: Readonly<Record<string, string>>, wasNamed = false): string {
  return renderDiagnostics(read(files, wasNamed).diagnostics, styleOf(false));
}

export const smallest: string = `version: v2
schedules:
  - name: nightly
    cron: "0 2 * * *"
    vms: [/datacenter/vm/*]
    destination: file:///srv/backups
`;
