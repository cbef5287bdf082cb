import { RunQueue, type Waiting } from "../schedule/run-queue.ts";
import type { RunOutcome, RunWork } from "./run-export.ts";

export interface QueueResult {
  readonly completed: number;
  readonly failed: readonly RunWork[];
  readonly interrupted: readonly RunWork[];
  readonly notStarted: readonly RunWork[];
}

/** What a run that has a place may do with it. */
export interface Place {
  /** Leaves the place to others while `pause` goes on, and has one again when this resolves. Rejects as `pause` does. */
  leaveFor(pause: () => Promise<void>): Promise<void>;
}

/** Thrown to a run that waits for a place again when nothing new is started any more. */
const stopping = new Error("nothing new is started");

interface Entry extends Waiting {
  readonly work: RunWork;
  /** It has begun, and waits for a place for its next attempt. */
  readonly isResting: boolean;
  start(): void;
  drop(): void;
}

/**
 * Starts work as places become free: the most urgent first, `limit` at once in all and each schedule's own `concurrency`. It lives as
 * long as its owner wants: work may be given at any time. After an abort nothing new starts, what runs is waited for.
 */
export class RunPool {
  readonly #queue: RunQueue<Entry>;
  readonly #signal: AbortSignal;
  readonly #start: (work: RunWork, place: Place) => Promise<RunOutcome>;
  /** Runs that wait, run or rest, by their id. */
  readonly #known = new Map<string, Promise<RunOutcome>>();
  #broken: { readonly error: unknown } | undefined;

  constructor(limit: number, signal: AbortSignal, start: (work: RunWork, place: Place) => Promise<RunOutcome>) {
    this.#queue = new RunQueue(limit);
    this.#signal = signal;
    this.#start = start;
    signal.addEventListener("abort", () => this.#dropAll(), { once: true });
  }

  get waiting(): number {
    return this.#queue.waiting;
  }

  get running(): number {
    return this.#queue.running;
  }

  /** What ended the pool: a bug or a lost lock, not an export that failed. */
  get broken(): { readonly error: unknown } | undefined {
    return this.#broken;
  }

  set limit(limit: number) {
    this.#queue.limit = limit;
  }

  /** Gives work as {@link submit} does; whatever waits and is not among it leaves, as not started. */
  offer(works: readonly RunWork[]): Promise<RunOutcome>[] {
    for (const entry of this.#queue.drain()) {
      // a run that rests between two attempts is its own business
      if (entry.isResting) this.#queue.add(entry);
      else {
        this.#known.delete(entry.work.run.id);
        entry.drop();
      }
    }
    return this.submit(works);
  }

  /** @returns how each ends; one that is here already is not begun again */
  submit(works: readonly RunWork[]): Promise<RunOutcome>[] {
    const outcomes = works.map((work) => {
      const known = this.#known.get(work.run.id);
      if (known) return known;
      const outcome = this.#take(work);
      this.#known.set(work.run.id, outcome);
      const forget = (): void => {
        if (this.#known.get(work.run.id) === outcome) this.#known.delete(work.run.id);
      };
      outcome.then(forget, forget);
      return outcome;
    });
    this.#fill();
    return outcomes;
  }

  /** Resolves when nothing waits and nothing runs. */
  async idle(): Promise<void> {
    while (this.#known.size > 0) await Promise.allSettled(this.#known.values());
  }

  async #take(work: RunWork): Promise<RunOutcome> {
    const turn = { schedule: work.schedule.name, concurrency: work.schedule.concurrency, ...work.turn };
    let entry: Entry | undefined;
    const placeFor = (isResting: boolean): Promise<void> =>
      new Promise<void>((resolve, reject) => {
        const waiting: Entry = {
          ...turn,
          work,
          isResting,
          start() {
            entry = waiting;
            resolve();
          },
          drop: () => reject(stopping),
        };
        if (this.#signal.aborted || this.#broken) reject(stopping);
        else this.#queue.add(waiting);
      });
    const leave = (): void => {
      if (entry) this.#queue.free(entry);
      entry = undefined;
      this.#fill();
    };
    try {
      await placeFor(false);
    } catch {
      return "not started";
    }
    try {
      return await this.#start(work, {
        leaveFor: async (pause) => {
          leave();
          await pause();
          const again = placeFor(true);
          this.#fill();
          await again;
        },
      });
    } catch (error) {
      this.#broken ??= { error };
      this.#dropAll();
      throw error;
    } finally {
      leave();
    }
  }

  #fill(): void {
    if (this.#signal.aborted || this.#broken) return;
    for (let entry = this.#queue.take(); entry; entry = this.#queue.take()) entry.start();
  }

  #dropAll(): void {
    for (const entry of this.#queue.drain()) entry.drop();
  }
}

/** Runs a list of work to its end. @throws what broke the pool */
export async function runQueue(
  work: readonly RunWork[],
  limit: number,
  signal: AbortSignal,
  start: (work: RunWork, place: Place) => Promise<RunOutcome>,
): Promise<QueueResult> {
  const pool = new RunPool(limit, signal, start);
  const outcomes = await Promise.allSettled(pool.submit(work));
  if (pool.broken) throw pool.broken.error;
  const those = (wanted: RunOutcome): RunWork[] => work.filter((_, i) => (outcomes[i] as PromiseFulfilledResult<RunOutcome>).value === wanted);
  return { completed: those("completed").length, failed: those("failed"), interrupted: those("interrupted"), notStarted: those("not started") };
}
