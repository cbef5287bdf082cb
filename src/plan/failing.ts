import type { Recorded, RecordedRun } from "../model/recorded.ts";

/** The newest run of each protected VM that failed, and after which none of the same schedule completed. */
export function failingOf({ runs, protections }: Pick<Recorded, "runs" | "protections">): RecordedRun[] {
  const keyOf = ({ schedule, provider, identity }: Pick<RecordedRun, "schedule" | "provider" | "identity">): string => `${schedule}\n${provider}\n${identity}`;
  const newest = new Map<string, RecordedRun>();
  for (const run of runs) {
    if (run.state !== "completed" && run.state !== "failed") continue;
    const other = newest.get(keyOf(run));
    if (!other || (run.endedAt ?? "") > (other.endedAt ?? "")) newest.set(keyOf(run), run);
  }
  const active = new Set(protections.filter(({ state }) => state === "active").map(keyOf));
  return [...newest.values()].filter((run) => run.state === "failed" && active.has(keyOf(run))).sort((a, b) => (a.vmPath < b.vmPath ? -1 : 1));
}
