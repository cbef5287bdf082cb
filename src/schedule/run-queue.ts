import TinyQueue from "tinyqueue";

/** One point of priority is worth five minutes of waiting: 100 goes before 0 unless that has waited eight hours longer. */
export const msAPoint = 300_000;

/** What decides who goes first. */
export interface Turn {
  /** 0–100, the highest first. */
  readonly priority: number;
  /** The first fire time that was not served, in epoch milliseconds: being superseded by the next one costs nobody his place. */
  readonly waitingSinceMs: number;
  /** Decides between two that are alike, so that the order is the same every time. */
  readonly tie: string;
}

/** What waits for its turn. */
export interface Waiting extends Turn {
  readonly schedule: string;
  /** How many of its schedule may run at once. */
  readonly concurrency: number;
}

/**
 * Who starts first. Waiting makes a run more urgent as fast as any other, so the order of two never changes while they wait, and
 * nothing starves: whatever comes later than its priority is worth goes behind it.
 */
export function byUrgency(a: Turn, b: Turn): number {
  const [first, second] = [a.waitingSinceMs - a.priority * msAPoint, b.waitingSinceMs - b.priority * msAPoint];
  return first - second || (a.tie < b.tie ? -1 : a.tie > b.tie ? 1 : 0);
}

/**
 * Runs that wait for one of `limit` places in all and of their schedule's `concurrency`. One whose schedule is full lets others
 * go first. Pure bookkeeping, in O(log n): it starts nothing itself.
 */
export class RunQueue<T extends Waiting> {
  /** May change at any time; what runs goes on. */
  limit: number;
  readonly #ready = new TinyQueue<T>([], byUrgency);
  /** Those that were next while their schedule was full. */
  readonly #parked = new Map<string, TinyQueue<T>>();
  readonly #perSchedule = new Map<string, number>();
  readonly #removed = new Set<T>();
  #waiting = 0;
  #running = 0;

  constructor(limit: number) {
    this.limit = limit;
  }

  /** How many wait. */
  get waiting(): number {
    return this.#waiting;
  }

  /** How many places are taken. */
  get running(): number {
    return this.#running;
  }

  add(item: T): void {
    this.#removed.delete(item);
    this.#ready.push(item);
    this.#waiting++;
  }

  /** Takes one out that waits. */
  remove(item: T): void {
    this.#removed.add(item);
    this.#waiting--;
  }

  /** The most urgent one that may start now; its place is taken. */
  take(): T | undefined {
    while (this.#running < this.limit) {
      const item = this.#ready.pop();
      if (!item) return undefined;
      if (this.#removed.delete(item)) {
        this.#unpark(item.schedule);
        continue;
      }
      const running = this.#perSchedule.get(item.schedule) ?? 0;
      if (running < item.concurrency) {
        this.#perSchedule.set(item.schedule, running + 1);
        this.#running++;
        this.#waiting--;
        return item;
      }
      const parked = this.#parked.get(item.schedule) ?? new TinyQueue<T>([], byUrgency);
      parked.push(item);
      this.#parked.set(item.schedule, parked);
    }
    return undefined;
  }

  /** Gives the place of one back that {@link take} returned. */
  free({ schedule }: T): void {
    this.#running--;
    const left = (this.#perSchedule.get(schedule) ?? 1) - 1;
    if (left === 0) this.#perSchedule.delete(schedule);
    else this.#perSchedule.set(schedule, left);
    this.#unpark(schedule);
  }

  /** There are as many of a schedule among the ready ones as it has places left, or all that it has. */
  #unpark(schedule: string): void {
    const next = this.#parked.get(schedule)?.pop();
    if (next) this.#ready.push(next);
    else this.#parked.delete(schedule);
  }

  /** Everything that waits, taken out, most urgent first. */
  drain(): T[] {
    const all: T[] = [];
    for (const queue of [this.#ready, ...this.#parked.values()])
      for (let item = queue.pop(); item; item = queue.pop()) if (!this.#removed.delete(item)) all.push(item);
    this.#parked.clear();
    this.#waiting = 0;
    return all.sort(byUrgency);
  }
}
