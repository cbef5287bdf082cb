import { type Document, isMap, isScalar, isSeq, type Pair, visit, type YAMLMap } from "yaml";
import type { SourceFile } from "./source-file.ts";

/** The order in which people look for things: what it is, when, what, where, then the rest as it was. */
const topOrder = ["version", "defaults", "providers", "destinations", "notifiers", "schedules", "policies", "renames", "budgets", "guardrails", "tests"];
const itemOrder = ["name", "type", "cron", "timezone", "match", "vms", "exclude", "schedule", "destination", "url", "path", "root"];

/** The text with the documents of ours in canonical form; undefined when it holds none or does not parse. */
export function formatText(source: SourceFile): string | undefined {
  const documents = source.documents();
  if (documents.some((document) => document.errors.length > 0)) return undefined;
  const ours = new Set<Document>();
  for (const document of documents) {
    const { contents } = document;
    if (!isMap(contents) || String(contents.get("version")) !== "v2") continue;
    ours.add(document);
    // an alias means the anchor before it: what has one stays where it is
    if (hasAlias(document)) continue;
    order(contents, topOrder);
    for (const { value } of contents.items) {
      if (!isSeq(value)) continue;
      for (const item of value.items) if (isMap(item)) order(item, itemOrder);
    }
  }
  if (ours.size === 0) return undefined;
  const end = (i: number): number => (i === documents.length - 1 ? source.text.length : (documents[i]?.range[2] ?? 0));
  const newline = source.text.includes("\r\n") ? "\r\n" : "\n";
  return documents
    .map((document, i) => {
      if (!ours.has(document)) return source.text.slice(end(i - 1), end(i));
      const text = document.toString({ indent: 2, lineWidth: 0, flowCollectionPadding: false });
      return ((i > 0 && !document.directives.docStart ? "---\n" : "") + text).replace(/\r?\n/g, newline);
    })
    .join("");
}

function hasAlias(document: Document): boolean {
  let found = false;
  visit(document, {
    Alias() {
      found = true;
      return visit.BREAK;
    },
  });
  return found;
}

/** Known keys first, in their order; the others keep theirs. */
function order(map: YAMLMap, keys: readonly string[]): void {
  const rank = (pair: Pair): number => {
    const at = keys.indexOf(isScalar(pair.key) ? String(pair.key.value) : "");
    return at < 0 ? keys.length : at;
  };
  map.items = [...map.items].sort((a, b) => rank(a) - rank(b));
}
