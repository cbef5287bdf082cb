import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { byUrgency, msAPoint, RunQueue, type Waiting } from "../../src/schedule/run-queue.ts";

const item = fc.record({
  schedule: fc.constantFrom("a", "b", "c"),
  priority: fc.integer({ min: 0, max: 100 }),
  waitingSinceMs: fc.integer({ min: 0, max: 100 * msAPoint }),
});
const concurrency: Readonly<Record<string, number>> = { a: 1, b: 2, c: 5 };
const step = fc.oneof(
  { weight: 4, arbitrary: fc.record({ kind: fc.constant("add" as const), item }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("take" as const) }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("free" as const), which: fc.nat() }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("remove" as const), which: fc.nat() }) },
);

describe("the queue of runs", () => {
  it("takes what a list that is searched from the start would take, whatever is added, removed and freed", () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 120 }), fc.integer({ min: 1, max: 5 }), (steps, limit) => {
        const queue = new RunQueue<Waiting>(limit);
        let waiting: Waiting[] = [];
        let running: Waiting[] = [];
        let made = 0;
        const next = (): Waiting | undefined =>
          running.length >= limit
            ? undefined
            : [...waiting].sort(byUrgency).find((one) => running.filter(({ schedule }) => schedule === one.schedule).length < one.concurrency);
        for (const each of steps) {
          if (each.kind === "add") {
            const added: Waiting = { ...each.item, concurrency: concurrency[each.item.schedule] ?? 1, tie: String(made++).padStart(4, "0") };
            queue.add(added);
            waiting.push(added);
          } else if (each.kind === "take") {
            const expected = next();
            expect(queue.take()).toBe(expected);
            if (!expected) continue;
            waiting = waiting.filter((one) => one !== expected);
            running.push(expected);
          } else if (each.kind === "free" && running.length > 0) {
            const freed = running[each.which % running.length] as Waiting;
            queue.free(freed);
            running = running.filter((one) => one !== freed);
          } else if (each.kind === "remove" && waiting.length > 0) {
            const removed = waiting[each.which % waiting.length] as Waiting;
            queue.remove(removed);
            waiting = waiting.filter((one) => one !== removed);
          }
          expect([queue.waiting, queue.running]).toEqual([waiting.length, running.length]);
        }
        expect(queue.drain()).toEqual([...waiting].sort(byUrgency));
      }),
      { numRuns: 1000, seed: 3 },
    );
  });

  it("starves nobody: what has the least priority starts before what comes eight hours and twenty minutes later", () => {
    const least: Waiting = { schedule: "a", concurrency: 1, priority: 0, waitingSinceMs: 0, tie: "x" };
    const best = (afterMs: number): Waiting => ({ ...least, priority: 100, waitingSinceMs: afterMs });
    expect(byUrgency(least, best(100 * msAPoint + 1))).toBeLessThan(0);
    expect(byUrgency(least, best(100 * msAPoint - 1))).toBeGreaterThan(0);
    expect(100 * msAPoint).toBe((8 * 60 + 20) * 60_000);
  });
});
