import { type Document, isMap, isScalar, isSeq, type Pair, type YAMLMap } from "yaml";
import type { SourceFile } from "./source-file.ts";

/** The order in which people look for things: what it is, when, what, where, then the rest as it was. */
const topOrder = ["version", "defaults", "providers", "destinations", "notifiers", "schedules", "policies", "renames", "budgets", "guardrails", "tests"];
const itemOrder = ["name", "type", "cron", "timezone", "match", "vms", "exclude", "schedule", "destination", "url", "path", "root"];

/** The text in canonical form; undefined when it holds no document of ours or does not parse. */
export function formatText(source: SourceFile): string | undefined {
  const documents = source.documents();
  if (documents.some((document) => document.errors.length > 0)) return undefined;
  let isOurs = false;
  for (const document of documents) {
    const { contents } = document;
    if (!isMap(contents) || String(contents.get("version")) !== "v2") continue;
    isOurs = true;
    order(contents, topOrder);
    for (const { value } of contents.items) {
      if (!isSeq(value)) continue;
      for (const item of value.items) if (isMap(item)) order(item, itemOrder);
    }
  }
  if (!isOurs) return undefined;
  return documents
    .map(
      (document: Document.Parsed, i) =>
        (i > 0 && !document.directives.docStart ? "---\n" : "") + document.toString({ indent: 2, lineWidth: 0, flowCollectionPadding: false }),
    )
    .join("");
}

/** Known keys first, in their order; the others keep theirs. */
function order(map: YAMLMap, keys: readonly string[]): void {
  const rank = (pair: Pair): number => {
    const at = keys.indexOf(isScalar(pair.key) ? String(pair.key.value) : "");
    return at < 0 ? keys.length : at;
  };
  map.items = [...map.items].sort((a, b) => rank(a) - rank(b));
}
