import type { RunOutcome, RunWork } from "./run-export.ts";

export interface QueueResult {
  readonly completed: number;
  readonly failed: readonly RunWork[];
  readonly interrupted: readonly RunWork[];
  readonly notStarted: readonly RunWork[];
}

/**
 * Runs work in the order it is given (priority first), `limit` at once in all and each schedule's own `concurrency`. A run
 * whose schedule is full lets the next one of another schedule go first. After an abort nothing new starts.
 */
export async function runQueue(
  work: readonly RunWork[],
  limit: number,
  signal: AbortSignal,
  start: (work: RunWork) => Promise<RunOutcome>,
): Promise<QueueResult> {
  const waiting = [...work];
  const running = new Set<Promise<void>>();
  const perSchedule = new Map<string, number>();
  const outcomes = new Map<RunWork, RunOutcome>();
  let broken: { readonly error: unknown } | undefined;

  const next = (): RunWork | undefined => {
    if (signal.aborted || broken) return undefined;
    const index = waiting.findIndex(({ schedule }) => (perSchedule.get(schedule.name) ?? 0) < schedule.concurrency);
    return index < 0 ? undefined : waiting.splice(index, 1)[0];
  };
  const count = (schedule: string, by: number): void => void perSchedule.set(schedule, (perSchedule.get(schedule) ?? 0) + by);
  for (;;) {
    while (running.size < limit) {
      const item = next();
      if (!item) break;
      count(item.schedule.name, 1);
      const done = start(item)
        .then(
          (outcome) => void outcomes.set(item, outcome),
          (error: unknown) => void (broken ??= { error }),
        )
        .finally(() => {
          count(item.schedule.name, -1);
          running.delete(done);
        });
      running.add(done);
    }
    if (running.size === 0) break;
    await Promise.race(running);
  }
  if (broken) throw broken.error;
  const those = (outcome: RunOutcome): RunWork[] => work.filter((item) => outcomes.get(item) === outcome);
  return {
    completed: those("completed").length,
    failed: those("failed"),
    interrupted: those("interrupted"),
    notStarted: [...waiting, ...those("not started")],
  };
}
