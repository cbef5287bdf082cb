import { hostname } from "node:os";
import { pid } from "node:process";
import { HypersdkError } from "../model/errors.ts";
import type { Instant } from "../model/instant.ts";
import type { Db } from "./database.ts";
import { isAlive } from "./process-lock.ts";

/** What one process at a time may do: `reconcile`, `watcher`, an {@link exportScope} or a {@link manualScope}. */
export interface Lease {
  readonly scope: string;
  readonly token: string;
}

export function exportScope({ schedule, provider, identity }: { readonly schedule: string; readonly provider: string; readonly identity: string }): string {
  return `export ${schedule} ${provider} ${identity}`;
}

/** Held while a command works through the manual runs that it has queued: without it, they are nobody's. */
export function manualScope({ schedule, fireTime }: { readonly schedule: string; readonly fireTime: Instant }): string {
  return `manual ${schedule} ${fireTime}`;
}

export interface LeaseRow extends Lease {
  readonly holder: string;
  readonly host: string;
  readonly pid: number;
  readonly operation: string;
  readonly since: Instant;
  readonly alive: boolean;
}

/**
 * Leases are rows; whether their holder lives is asked of the kernel (see {@link isAlive}), so that nothing expires by the
 * clock. A write checks its lease in the same transaction: a process whose lock was broken while it slept cannot write.
 */
export class Leases {
  readonly #db: Db;
  readonly #folder: string;
  readonly #holder: string;

  constructor(db: Db, lockFolder: string, holder: string) {
    this.#db = db;
    this.#folder = lockFolder;
    this.#holder = holder;
  }

  /** @returns the lease, or who holds it */
  take(
    scope: string,
    token: string,
    operation: string,
    now: Instant,
  ): { readonly ok: true; readonly lease: Lease } | { readonly ok: false; readonly heldBy: LeaseRow } {
    return this.#db
      .transaction(() => {
        const row = this.#row(scope);
        if (row && (row.holder === this.#holder || row.alive)) return { ok: false as const, heldBy: row };
        this.#db.prepare("DELETE FROM leases WHERE scope = ?").run(scope);
        this.#db
          .prepare("INSERT INTO leases (scope, token, holder, host, pid, operation, since) VALUES (?, ?, ?, ?, ?, ?, ?)")
          .run(scope, token, this.#holder, hostname(), pid, operation, now);
        return { ok: true as const, lease: { scope, token } };
      })
      .immediate();
  }

  /** @throws LeaseLost when somebody broke the lock; inside the transaction that writes */
  check({ scope, token }: Lease): void {
    const held = this.#db.prepare("SELECT 1 FROM leases WHERE scope = ? AND token = ?").get(scope, token);
    if (!held)
      throw new HypersdkError("LeaseLost", `the lock "${scope}" was taken from this process while it worked`, {
        hint: "somebody ran force-unlock; start the command again",
      });
  }

  release({ token }: Lease): void {
    this.#db.prepare("DELETE FROM leases WHERE token = ?").run(token);
  }

  list(): LeaseRow[] {
    const rows = this.#db.prepare("SELECT * FROM leases ORDER BY scope").all() as Omit<LeaseRow, "alive">[];
    return rows.map((row) => ({ ...row, alive: isAlive(this.#folder, row.holder) }));
  }

  /** Of processes that have ended without giving their locks back: whoever wanted one would take it over. */
  dropDead(): void {
    for (const { token, alive } of this.list()) if (!alive) this.#db.prepare("DELETE FROM leases WHERE token = ?").run(token);
  }

  /** The scopes of those whose holder lives. */
  alive(): ReadonlySet<string> {
    return new Set(this.list().flatMap(({ scope, alive }) => (alive ? [scope] : [])));
  }

  /** Breaks the locks of a holder, named by at least the first four characters of its id, or the one with this token. @returns how many there were */
  break(id: string): number {
    return /^[0-9a-f-]{4,36}$/.test(id) ? this.#db.prepare("DELETE FROM leases WHERE token = ? OR holder LIKE ? || '%'").run(id, id).changes : 0;
  }

  #row(scope: string): LeaseRow | undefined {
    const row = this.#db.prepare("SELECT * FROM leases WHERE scope = ?").get(scope) as Omit<LeaseRow, "alive"> | undefined;
    return row && { ...row, alive: isAlive(this.#folder, row.holder) };
  }
}
