import { HypersdkError } from "../../model/errors.ts";
import { epochMsOf, instantOf, parseInstant } from "../../model/instant.ts";
import { fireTimes } from "../../schedule/cron.ts";
import { nextOpening } from "../../schedule/windows.ts";
import { renderTable } from "../../ui/table.ts";
import { formatTime } from "../../ui/times.ts";
import { clock } from "../compose.ts";
import type { Io } from "../io.ts";
import { load, type SourceOptions } from "../load.ts";

export interface PreviewOptions extends SourceOptions {
  readonly from?: string;
  readonly count?: number;
}

/** The next fire times of a schedule, and when its windows let each of them start. */
export async function preview(name: string, options: PreviewOptions, io: Io): Promise<number> {
  const { desired } = await load(options, io.env, io.cwd);
  const schedule = desired?.schedules.find((each) => each.name === name);
  if (!schedule) throw new HypersdkError("NotFound", `no schedule is named "${name}"`);
  const from = options.from === undefined ? clock.now() : parseInstant(options.from);
  if (!from) throw new HypersdkError("Usage", `--from ${JSON.stringify(options.from)} is no time`, { hint: "such as 2026-11-21T02:00:00Z" });
  const times = fireTimes(schedule.cron, schedule.timezone);
  const items: { fireTime: string; starts: string | null; reason: string | null }[] = [];
  for (let at = epochMsOf(from); items.length < (options.count ?? 10); ) {
    at = times.next(at);
    const opening = nextOpening(schedule.windows, at);
    items.push({ fireTime: instantOf(at), starts: opening === undefined ? null : instantOf(opening), reason: opening === at ? null : "waits for its window" });
  }
  if (io.json) io.result("schedule-preview", { schedule: name, timezone: schedule.timezone, items });
  else
    io.out(
      renderTable(
        ["fires", "starts", ""],
        items.map((each) => [
          formatTime(instantOf(Date.parse(each.fireTime)), schedule.timezone, from),
          each.starts ? formatTime(instantOf(Date.parse(each.starts)), schedule.timezone, from) : "never",
          each.reason ?? "",
        ]),
      ),
    );
  return 0;
}
