import type { Db } from "./database.ts";

/** Texts that are times, and texts that are JSON: SQLite itself takes any. */
const times: Readonly<Record<string, readonly string[]>> = {
  suspensions: ["since"],
  protections: ["effective_since", "handled_until", "last_success_at"],
  runs: ["fire_time", "created_at", "ended_at"],
  attempts: ["started_at", "ended_at"],
  artifacts: ["instant", "expires_at", "created_at"],
  events: ["at"],
  leases: ["since"],
};
const documents: Readonly<Record<string, readonly string[]>> = { resources: ["spec"], protections: ["last_disks"], events: ["detail"] };
const damagedMeta = `CASE WHEN json_valid(value) THEN key LIKE '%_revision' AND julianday(value ->> '$.at') IS NULL
  ELSE key LIKE '%_revision' OR key LIKE 'damaged packs %' OR key LIKE 'unmanaged %' END`;

/** Whether JSON, which it is, can be what was written of a resource. */
export type IsSpec = (address: string, json: string) => boolean;

/** What of a state is not as it was written, though SQLite could open it; undefined where nothing is. All of the file is read. */
export function damageIn(db: Db, isSpec: IsSpec): string | undefined {
  const found = db.pragma("integrity_check(1)", { simple: true }) as string;
  if (found !== "ok") return found;
  const isTime = "GLOB '[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z'";
  const places = [
    ...Object.entries(times).flatMap(([table, columns]) =>
      columns.map((column) => [table, column, `NOT (${column} ${isTime} AND julianday(${column}) IS NOT NULL)`]),
    ),
    ...Object.entries(documents).flatMap(([table, columns]) => columns.map((column) => [table, column, `NOT json_valid(${column})`])),
    ["meta", "value", damagedMeta],
  ] as const;
  // one that an earlier version wrote, and that is only looked at, has fewer columns
  const isThere = db.prepare("SELECT 1 FROM pragma_table_info(?) WHERE name = ?");
  for (const [table, column, isDamaged] of places)
    if (isThere.get(table, column) && db.prepare(`SELECT 1 FROM ${table} WHERE ${column} IS NOT NULL AND ${isDamaged} LIMIT 1`).get() !== undefined)
      return notWritten(table, column);
  const specs = db.prepare("SELECT address, spec FROM resources").iterate() as Iterable<{ readonly address: string; readonly spec: string }>;
  for (const { address, spec } of specs) if (!isSpec(address, spec)) return notWritten("resources", "spec");
  return undefined;
}

function notWritten(table: string, column: string): string {
  return `${column} of ${table} is not what was written`;
}
