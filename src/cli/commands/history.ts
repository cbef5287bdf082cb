import { renderTable } from "../../ui/table.ts";
import { exitCodes } from "../exit-codes.ts";
import type { Io } from "../io.ts";
import type { SourceOptions } from "../load.ts";
import { isRecordedSpec } from "../recorded-spec.ts";
import { readState } from "./state.ts";

export interface HistoryOptions extends SourceOptions {
  readonly limit?: number;
}

export function history(options: HistoryOptions, io: Io): Promise<number> {
  return readState(options, io, (state) => {
    const rows = state.audit.list(options.limit ?? 50);
    if (io.json) io.result("history", { events: rows });
    else
      io.out(
        renderTable(
          ["seq", "at", "what", "about", "commit"],
          rows.map((row) => [String(row.seq), row.at, row.type, row.subject, row.commit?.slice(0, 7) ?? "-"]),
          [0],
        ),
      );
    return 0;
  });
}

export function auditVerify(options: SourceOptions, io: Io): Promise<number> {
  return readState(options, io, (state) => {
    state.refuseDamaged(isRecordedSpec);
    const { rows, brokenAt, head } = state.audit.verify();
    if (io.json) io.result("audit-verify", { rows, brokenAt: brokenAt ?? null, head });
    else if (brokenAt === undefined) io.out(`the audit chain holds: ${rows} rows, head ${head.slice(0, 16)}\n`);
    else io.out(`${io.style.red("the audit chain is broken")} at row ${brokenAt}: it or the one before was changed or removed; ${rows} rows before it hold\n`);
    return brokenAt === undefined ? exitCodes.done : exitCodes.damaged;
  });
}
