import { createHash } from "node:crypto";
import { canonicalJson } from "../model/canonical-json.ts";
import type { Instant } from "../model/instant.ts";
import type { Db } from "./database.ts";

export interface AuditEntry {
  readonly at: Instant;
  /** `config.create`, `run.completed`, `lock.broken`, … */
  readonly type: string;
  readonly subject: string;
  readonly detail: unknown;
  readonly commit: string | null;
  readonly author: string | null;
}

export interface AuditRow extends AuditEntry {
  readonly seq: number;
  readonly hash: string;
}

const genesis = "0".repeat(64);

/**
 * The append-only log. Each row holds the SHA-256 of its canonical content and of the row before it, so that a row that was
 * changed, removed or put in between breaks the chain from there on.
 */
export class AuditLog {
  readonly #db: Db;
  readonly #last;
  readonly #insert;
  readonly #setHead;

  constructor(db: Db) {
    this.#db = db;
    this.#last = db.prepare<[], { seq: number; hash: string }>("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1");
    this.#insert = db.prepare("INSERT INTO events (seq, at, type, subject, detail, commit_id, author, previous, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)");
    this.#setHead = db.prepare("INSERT INTO meta (key, value) VALUES ('audit_head', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value");
  }

  /** Inside the transaction of what it tells of. */
  append({ at, type, subject, detail, commit, author }: AuditEntry): void {
    const last = this.#last.get();
    const seq = (last?.seq ?? 0) + 1;
    const previous = last?.hash ?? genesis;
    const text = canonicalJson(detail);
    const hash = hashOf([seq, at, type, subject, text, commit, author, previous]);
    this.#insert.run(seq, at, type, subject, text, commit, author, previous, hash);
    // the chain alone would not miss its last row
    this.#setHead.run(hash);
  }

  /** Newest first. */
  list(limit: number): AuditRow[] {
    const rows = this.#db
      .prepare('SELECT seq, at, type, subject, detail, commit_id AS "commit", author, hash FROM events ORDER BY seq DESC LIMIT ?')
      .all(limit) as (Omit<AuditRow, "detail"> & { detail: string })[];
    return rows.map((row) => ({ ...row, detail: JSON.parse(row.detail) as unknown }));
  }

  /** Walks the chain. @returns how many rows hold, and the first that does not or is missing */
  verify(): { readonly rows: number; readonly brokenAt: number | undefined; readonly head: string } {
    let previous = genesis;
    let rows = 0;
    const all = this.#db.prepare("SELECT seq, at, type, subject, detail, commit_id, author, previous, hash FROM events ORDER BY seq");
    for (const row of all.iterate() as Iterable<Record<string, string | number | null>>) {
      const expected = hashOf([row["seq"], row["at"], row["type"], row["subject"], row["detail"], row["commit_id"], row["author"], previous]);
      if (row["seq"] !== rows + 1 || row["previous"] !== previous || row["hash"] !== expected) return { rows, brokenAt: Number(row["seq"]), head: previous };
      previous = expected;
      rows++;
    }
    const head = this.#db.prepare("SELECT value FROM meta WHERE key = 'audit_head'").pluck().get() as string | undefined;
    return { rows, brokenAt: (head ?? genesis) === previous ? undefined : rows + 1, head: previous };
  }
}

function hashOf(content: readonly unknown[]): string {
  return createHash("sha256").update(canonicalJson(content)).digest("hex");
}
