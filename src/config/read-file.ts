import type { Document } from "yaml";
import type { Origin } from "../model/desired.ts";
import type { Diagnostic } from "./diagnostic.ts";
import { type ShapeProblem, shapeProblems } from "./schema.ts";
import { type DiagnosticWords, maxFileBytes, SourceFile } from "./source-file.ts";
import { scheduleFromVmBackup } from "./vm-backup.ts";

/** The sections of an infrastructure document that hold named things. */
export type Section = "providers" | "destinations" | "notifiers" | "schedules" | "policies" | "renames";

/** One entry as it stands in the file, its shape checked. */
export interface RawItem {
  readonly section: Section;
  readonly value: Readonly<Record<string, unknown>>;
  readonly document: number;
  readonly pointer: readonly (string | number)[];
  /** True for a schedule that was written as a VMBackup. */
  readonly isVmBackup?: true;
}

/** An entry, and the file in which it stands. */
export type Item = RawItem & { readonly origin: Origin };

/** What one file contributes. Plain data, so that it can be cached under the hash of the text. */
export interface Fragment {
  readonly items: readonly RawItem[];
  readonly defaults: readonly { readonly value: Readonly<Record<string, unknown>>; readonly document: number }[];
  /** Top-level keys that have no effect in this version. */
  readonly later: readonly { readonly key: string; readonly document: number }[];
  /** Entries whose shape is wrong, without the fields that are: known, so that what refers to them is not a second error. */
  readonly broken: readonly RawItem[];
  /** Whether any document is ours, be it an empty or a wrong one. */
  readonly isOurs: boolean;
  /** Documents of other programs. */
  readonly ignoredDocuments: number;
  readonly diagnostics: readonly Diagnostic[];
}

const sections: readonly Section[] = ["providers", "destinations", "notifiers", "schedules", "policies", "renames"];
const marks =
  /^\s*["']?version["']?\s*:\s*["']?v\d+["']?\s*(#.*)?$|^\s*["']?kind["']?\s*:\s*["']?VMBackup\b|["']?version["']?\s*:\s*["']?v2\b|^(schedules|policies|destinations|providers)\s*:\s*(#.*)?$/m;

/**
 * Reads the text of one file. A file found in a folder that holds none of our documents is somebody else's and is only
 * counted; a file that was named is an error then.
 */
export function readFile(file: string, bytes: Uint8Array, wasNamed: boolean): Fragment {
  const empty: Fragment = { items: [], defaults: [], later: [], broken: [], isOurs: false, ignoredDocuments: 0, diagnostics: [] };
  const fail = (words: DiagnosticWords): Fragment => ({ ...empty, isOurs: true, diagnostics: [{ ...words, file, line: 1, column: 1, length: 1, source: "" }] });
  if (bytes.byteLength > maxFileBytes) {
    return fail({
      severity: "error",
      code: "HSE003",
      message: `the file has ${bytes.byteLength} bytes`,
      label: `at most ${maxFileBytes} are read; split it into several files`,
    });
  }
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: false }).decode(bytes);
  } catch {
    return wasNamed || marks.test(Buffer.from(bytes).toString("latin1"))
      ? fail({ severity: "error", code: "HSE002", message: "the file is not UTF-8 text", label: "save it as UTF-8" })
      : { ...empty, ignoredDocuments: 1 };
  }
  if (!marks.test(text)) {
    if (wasNamed)
      return fail({
        severity: "error",
        code: "HSE011",
        message: "this is no hypersdk document",
        label: 'it needs "version: v2", or "kind: VMBackup" with its apiVersion',
      });
    return { ...empty, ignoredDocuments: countDocuments(text) };
  }
  return readDocuments(new SourceFile(file, text), wasNamed, empty);
}

/** So many wrong values of a document are told one by one, and mistakes of YAML. */
const mostTold = 1000;
const mostYamlErrors = 20;
/** The parser that understands everything takes 150 bytes of memory for each. */
const maxUnplainChars = 2 * 2 ** 20;

function readDocuments(source: SourceFile, wasNamed: boolean, empty: Fragment): Fragment {
  const diagnostics: Diagnostic[] = [];
  const items: RawItem[] = [];
  const defaults: { value: Record<string, unknown>; document: number }[] = [];
  const later: { key: string; document: number }[] = [];
  const broken: RawItem[] = [];
  let [ownDocuments, ignoredDocuments] = [0, 0];
  try {
    const plain = source.plainValue();
    if (!plain && source.text.length > maxUnplainChars)
      diagnostics.push({
        severity: "error",
        code: "HSE003",
        message: `the file has ${source.text.length} characters and is no plain document, or has a mistake`,
        file: source.file,
        line: 1,
        column: 1,
        length: 1,
        source: "",
        label: `with anchors, tags, several documents or mistakes, at most ${maxUnplainChars} are read; split it into several files`,
      });
    else if (plain) readValue(plain.value, 0, true);
    else for (const [index, document] of source.documents().entries()) readDocument(document, index);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    diagnostics.push({
      severity: "error",
      code: "HSE001",
      message: "the document is nested too deeply",
      file: source.file,
      line: 1,
      column: 1,
      length: 1,
      source: "",
    });
  }
  const isOurs = ownDocuments + diagnostics.length > 0;
  return { ...empty, items, defaults, later, broken, isOurs, ignoredDocuments, diagnostics };

  function readDocument(document: Document.Parsed, index: number): void {
    // what follows from the first mistakes of a text is nothing to mend
    for (const { message, pos } of document.errors.slice(0, mostYamlErrors)) {
      const why = message.includes("call stack") ? "the document is nested too deeply" : `this is not valid YAML: ${message.split("\n")[0]}`;
      diagnostics.push(source.atOffset(pos[0], pos[1] - pos[0], { severity: "error", code: "HSE001", message: why }));
    }
    // a key too many hides nothing else that is wrong
    const words = { severity: "error", code: "HSE005", message: "a key stands twice in one mapping", label: "remove one of the two" } as const;
    for (const [start, end] of source.repeatedKeys(document).slice(0, mostTold)) diagnostics.push(source.atOffset(start, end - start, words));
    if (document.errors.length > 0) return;
    let value: unknown;
    try {
      value = source.valueOf(document);
      // only anchors can close a circle, and JSON cannot say one
      if (source.text.includes("&")) JSON.stringify(value);
    } catch (error) {
      const message =
        error instanceof ReferenceError || error instanceof TypeError
          ? "the aliases of this document expand to more than 10,000 nodes, or run in a circle"
          : String(error);
      diagnostics.push(source.at([], index, { severity: "error", code: "HSE004", message, label: "write the values out" }));
      return;
    }
    readValue(value, index, source.documents().length === 1);
  }

  function readValue(value: unknown, index: number, isOnly: boolean): void {
    if (isMapping(value) && value["version"] === "v2") {
      readInfrastructure(value, index);
    } else if (isMapping(value) && value["kind"] === "VMBackup" && /^(backup\.)?hypersdk\.io\//.test(String(value["apiVersion"]))) {
      readVmBackup(value, index);
    } else if (isMapping(value) && looksLikeOurs(value)) {
      const has = "version" in value;
      diagnostics.push(
        source.at(has ? ["version"] : [], index, {
          severity: "error",
          code: "HSE009",
          message: has ? `version ${JSON.stringify(value["version"])} is not known` : "the version is missing",
          label: "this program reads version: v2",
        }),
      );
    } else if (value !== null || isOnly) {
      if (!wasNamed) ignoredDocuments++;
      else
        diagnostics.push(
          source.at([], index, {
            severity: "error",
            code: "HSE011",
            message: "this is no hypersdk document",
            label: 'it needs "version: v2", or "kind: VMBackup" with its apiVersion',
          }),
        );
    }
  }

  function readInfrastructure(value: Record<string, unknown>, index: number): void {
    ownDocuments++;
    const problems = shapeProblems("infrastructure", value);
    tell(problems, index);
    // what is wrong in one entry does not hide what is wrong in the others
    const byEntry = Map.groupBy(problems, ({ pointer }) => pointer.slice(0, 2).join("/"));
    for (const section of sections) {
      if (byEntry.has(section)) continue;
      const entries = (value[section] ?? []) as Record<string, unknown>[];
      for (const [i, entry] of entries.entries()) {
        const at = { section, document: index, pointer: [section, i] };
        const wrong = byEntry.get(`${section}/${i}`);
        const sound = wrong && (broken.length < mostTold ? soundPartOf(entry, section, wrong) : { value: {}, standsAlone: false });
        // one that is whole without what is wrong is looked at like any other: its file is refused anyway, and all that is wrong is told
        if (sound && !sound.standsAlone) broken.push({ ...at, value: sound.value });
        else items.push({ ...at, value: sound?.value ?? entry });
      }
    }
    if (isMapping(value["defaults"]) && !problems.some(({ pointer }) => pointer[0] === "defaults"))
      defaults.push({ value: value["defaults"], document: index });
    for (const key of ["budgets", "guardrails", "tests"]) if (key in value) later.push({ key, document: index });
  }

  /** A file in which everything is wrong is not a million lines in a log. */
  function tell(problems: readonly ShapeProblem[], index: number): void {
    for (const [i, { pointer, atKey, ...words }] of problems.entries()) {
      if (i < mostTold) diagnostics.push(source.at(pointer, index, { severity: "error", ...words }, atKey));
      else {
        const standsFor = problems.length - mostTold;
        const message = `${standsFor} more values of this document are wrong`;
        diagnostics.push(source.at(pointer, index, { severity: "error", code: words.code, message, label: "this is the first of them", standsFor }, atKey));
        return;
      }
    }
  }

  function readVmBackup(value: Record<string, unknown>, index: number): void {
    ownDocuments++;
    const problems = shapeProblems("vmbackup", value);
    tell(problems, index);
    if (problems.length > 0) return;
    items.push({ section: "schedules", value: scheduleFromVmBackup(value), document: index, pointer: ["spec"], isVmBackup: true });
  }
}

/** Fields that others are judged by: without them, what is right would look wrong. */
const judging: ReadonlySet<unknown> = new Set(["layout", "incremental", "encryption", "format", "type"]);

/** An entry without the fields whose shape is wrong, and whether it could be one of its own. */
function soundPartOf(
  entry: unknown,
  section: Section,
  problems: readonly ShapeProblem[],
): { readonly value: Record<string, unknown>; readonly standsAlone: boolean } {
  if (!isMapping(entry)) return { value: {}, standsAlone: false };
  const wrong = new Set(problems.map(({ pointer }) => pointer[2]));
  const value = Object.fromEntries(Object.entries(entry).filter(([key]) => !wrong.has(key)));
  const isJudged = ![...wrong].some((key) => judging.has(key));
  return { value, standsAlone: isJudged && shapeProblems("infrastructure", { version: "v2", [section]: [value] }).length === 0 };
}

function isMapping(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A file of ours whose version is misspelt or missing must not be taken for somebody else's: nothing would be exported. */
function looksLikeOurs(value: Record<string, unknown>): boolean {
  const entries = (key: string): Record<string, unknown>[] => (Array.isArray(value[key]) ? (value[key] as unknown[]).filter(isMapping) : []);
  return (
    entries("schedules").some((each) => "cron" in each || "vms" in each) ||
    entries("policies").some((each) => "match" in each) ||
    entries("destinations").some((each) => "url" in each)
  );
}

function countDocuments(text: string): number {
  return text.split(/^---(?=\s|$)/m).filter((part) => part.replace(/^\s*#.*$/gm, "").trim() !== "").length;
}
