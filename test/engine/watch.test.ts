import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it, onTestFinished } from "vitest";
import type { EngineContext } from "../../src/engine/context.ts";
import type { EngineEvent } from "../../src/engine/events.ts";
import { type ConfigurationSource, type Reading, watch } from "../../src/engine/watch.ts";
import { HypersdkError } from "../../src/model/errors.ts";
import { type Instant, instantOf } from "../../src/model/instant.ts";
import type { VmPath } from "../../src/model/vm-path.ts";
import { fireTimes } from "../../src/schedule/cron.ts";
import type { RunRow } from "../../src/state/runs.ts";
import { State } from "../../src/state/state.ts";
import { memoryDestination } from "../fakes/memory-destination.ts";
import { memoryProvider } from "../fakes/memory-provider.ts";
import { temporaryFolder } from "../support/cli.ts";
import { desiredOf } from "../support/desired.ts";
import { bytes, random } from "../support/disks.ts";

const hour = 3_600_000;
const day = 24 * hour;
const began = Date.parse("2026-03-27T12:00:00Z");
const vms = ["a", "b"];

/** A watcher whose clock goes on when it sleeps, and not while an export runs: months pass in seconds. */
interface World {
  nowMs: number;
  /** Called before each sleep; what it does to the clock, the machine did. */
  turn: () => void;
  /** What the branch holds, or why it cannot be read. */
  source: () => string | HypersdkError;
  /** The provider's VMs; undefined where it cannot be reached. */
  disks: Map<string, Buffer> | undefined;
  readonly events: EngineEvent[];
  readonly longestSleepMs: () => number;
}

async function live(
  yaml: string,
  untilMs: number,
  change: (world: World) => void = () => {},
): Promise<{ readonly runs: RunRow[]; readonly world: World; readonly state: State }> {
  const stop = new AbortController();
  let running = 0;
  let longest = 0;
  const disks = new Map(vms.map((vm, i) => [vm, bytes(64 * 1024, i)]));
  const world: World = { nowMs: began, turn: () => {}, source: () => yaml, disks, events: [], longestSleepMs: () => longest };
  change(world);
  const random = { uuid: randomUUID, fraction: () => 0.5 };
  const state = State.openForWriting(join(temporaryFolder(), "state.db"), random);
  onTestFinished(() => state.close());
  const now = (): Instant => instantOf(world.nowMs);
  const files = new Map<string, Buffer>();
  const context: EngineContext = {
    state,
    clock: {
      now,
      async sleep(ms, signal) {
        longest = Math.max(longest, ms);
        await sleep(0);
        if (running > 0) return;
        signal?.throwIfAborted();
        // a busy machine oversleeps, and tests are shorter
        world.nowMs += ms * 4;
        world.turn();
        // a clock that is years ahead is not the end
        if (world.nowMs >= untilMs && world.nowMs < untilMs + 1000 * day) stop.abort(new Error("the test is over"));
      },
    },
    random,
    toolVersion: "0",
    async openProvider() {
      const provider = memoryProvider(world.disks);
      return {
        ...provider,
        name: "local",
        async inventory() {
          const { vms: found, problems } = await provider.inventory();
          return { problems, vms: found.map((vm) => ({ ...vm, provider: "local", path: `/datacenter/vm/${vm.identity}` as VmPath })) };
        },
        snapshot: async (identity) => ({ ...(await provider.snapshot(identity)), instant: now() }),
      };
    },
    openDestination: async (spec) => memoryDestination(spec, files),
    emit: (event) => void (event.type !== "export_progress" && world.events.push(event)),
    signal: stop.signal,
    revision: null,
    adopt: false,
  };
  let last: string | undefined;
  const source: ConfigurationSource = {
    name: "a test",
    async read(): Promise<Reading | undefined> {
      const text = world.source();
      if (text instanceof HypersdkError) throw text;
      if (text === last) return undefined;
      last = text;
      const revision = { commit: String(text.length), branch: "main", author: null, dirty: false };
      try {
        return { revision, content: { desired: desiredOf(text) } };
      } catch {
        return { revision, content: { problem: new HypersdkError("ConfigInvalid", "it is invalid") } };
      }
    },
  };
  await watch(source, context, {
    intervalMs: 60_000,
    lockTimeoutMs: 0,
    parallelism: undefined,
    onStatus: (status) => {
      running = status.running + status.waiting;
    },
    onRefresh: () => {},
  });
  return { runs: state.runs.list(100_000), world, state };
}

const schedule = (more: string): string =>
  `version: v2\nschedules:\n  - {name: nightly, vms: ["/datacenter/vm/*"], destination: "file:///srv/backups", verify: none, ${more}}\n`;
const fired = (runs: readonly RunRow[], vm = "a"): string[] =>
  runs
    .filter(({ vmPath, state }) => vmPath.endsWith(`/${vm}`) && state === "completed")
    .map(({ fireTime }) => fireTime.slice(0, 16))
    .sort();

function expected(cron: string, zone: string, fromMs: number, toMs: number): string[] {
  const times = fireTimes(cron, zone);
  const found: string[] = [];
  for (let at = times.next(fromMs); at < toMs; at = times.next(at)) found.push(new Date(at).toISOString().slice(0, 16));
  return found;
}

describe("a watcher over simulated time", { timeout: 300_000 }, () => {
  it("runs each fire time once over days with a change of the clock, and never sleeps longer than half a minute", async () => {
    const { runs, world, state } = await live(schedule('cron: "30 2 * * *", timezone: Europe/Berlin'), began + 4 * day);
    for (const vm of vms) expect(fired(runs, vm)).toEqual(expected("30 2 * * *", "Europe/Berlin", began, began + 4 * day));
    expect(world.longestSleepMs()).toBeLessThanOrEqual(30_000);
    expect(state.audit.verify().brokenAt).toBeUndefined();
  });

  it("a schedule whose next fire time is years away, farther than any timer reaches, waits for it", async () => {
    const { runs: later } = await live(schedule('cron: "0 0 29 2 *"'), Date.parse("2028-02-29T06:00:00Z"), (world) => {
      // the machine sleeps for two years in one go
      world.turn = () => {
        if (world.nowMs > began + hour && world.nowMs < Date.parse("2028-02-28T23:00:00Z")) world.nowMs = Date.parse("2028-02-28T23:59:00Z");
      };
    });
    expect(fired(later)).toEqual(["2028-02-29T00:00"]);
  });

  it.each([
    ["latest", ["2026-03-28T02:00", "2026-03-31T02:00", "2026-04-01T02:00"]],
    ["skip", ["2026-03-28T02:00", "2026-04-01T02:00"]],
  ])("a machine that slept over fire times follows catchUp: %s", async (catchUp, times) => {
    const { runs } = await live(schedule(`cron: "0 2 * * *", catchUp: ${catchUp}`), began + 5 * day, (world) => {
      let slept = false;
      world.turn = () => {
        if (slept || world.nowMs < Date.parse("2026-03-28T04:00:00Z")) return;
        slept = true;
        world.nowMs = Date.parse("2026-03-31T12:00:00Z");
      };
    });
    expect(fired(runs)).toEqual(times);
  });

  it("a clock that is set back and forward runs nothing twice", async () => {
    const next = random(5);
    const { runs } = await live(schedule('cron: "0 */2 * * *"'), began + 3 * day, (world) => {
      let jumps = 0;
      world.turn = () => {
        if (next() < 0.003 && jumps++ < 12) world.nowMs += Math.floor((next() - 0.5) * 10) * hour;
      };
    });
    for (const vm of vms) expect(new Set(fired(runs, vm)).size).toBe(fired(runs, vm).length);
    expect(fired(runs).length).toBeGreaterThan(15);
  });

  it("a clock that was years ahead for a while stops nothing when it is right again", async () => {
    const { runs } = await live(schedule('cron: "0 * * * *"'), began + 12 * hour, (world) => {
      let step = 0;
      world.turn = () => {
        if (step === 0 && world.nowMs > began + 3.5 * hour) {
          step = 1;
          world.nowMs += 3650 * day + hour;
        } else if (step === 1 && world.nowMs > began + 3650 * day + 5 * hour) {
          step = 2;
          world.nowMs -= 3650 * day;
        }
      };
    });
    const times = fired(runs).filter((time) => time < "2027");
    expect(times.slice(-4)).toEqual(expected("0 * * * *", "UTC", began + 7.5 * hour, began + 12 * hour).slice(-4));
    expect(new Set(times).size).toBe(times.length);
  });

  it("a first export that has to wait for its window is made when that opens", async () => {
    const { runs } = await live(schedule('cron: "0 2 1 1 *", initialExport: immediate, windows: [{start: "15:00", end: "16:00"}]'), began + 5 * hour);
    expect(runs.map(({ state, attempts, endedAt }) => [state, attempts, (endedAt ?? "").slice(11, 13)])).toEqual([
      ["completed", 1, "15"],
      ["completed", 1, "15"],
    ]);
  });

  it("a repository that cannot be reached for hours, and commits that are invalid, leave the last good one running", async () => {
    const { runs, world } = await live(schedule('cron: "0 * * * *"'), began + 18 * hour, (now) => {
      now.source = () => {
        const at = now.nowMs - began;
        if (at < 2 * hour) return schedule('cron: "0 * * * *"');
        if (at < 8 * hour) return new HypersdkError("SourceUnavailable", "no route to host");
        if (at < 14 * hour) return "version: v2\nschedules: [{name: x}]\n";
        return schedule('cron: "0 * * * *", priority: 60');
      };
    });
    expect(fired(runs)).toEqual(expected("0 * * * *", "UTC", began, began + 18 * hour));
    const told = world.events.map(({ type }) => type).filter((type) => ["source_lost", "source_back", "revision_rejected", "config_applied"].includes(type));
    expect(told).toEqual(["config_applied", "source_lost", "source_back", "revision_rejected", "config_applied"]);
  });

  it("a provider that cannot be reached, or shows fewer VMs, ends no protection; what it missed is caught up", async () => {
    const { runs, state, world } = await live(schedule('cron: "0 2 * * *", retry: {attempts: 0}'), began + 4 * day, (world) => {
      const all = world.disks as Map<string, Buffer>;
      world.turn = () => {
        const days = (world.nowMs - began) / day;
        world.disks = days > 0.5 && days < 0.8 ? undefined : days > 1.5 && days < 1.8 ? new Map([["a", all.get("a") as Buffer]]) : all;
      };
    });
    expect(state.recorded(instantOf(began)).protections.map(({ vmPath, state: now }) => [vmPath, now])).toEqual([
      ["/datacenter/vm/a", "active"],
      ["/datacenter/vm/b", "active"],
    ]);
    // while it was gone nothing was due; afterwards the last fire time was
    for (const vm of vms) expect(fired(runs, vm)).toEqual(expected("0 2 * * *", "UTC", began, began + 4 * day));
    const drifted = world.events.flatMap((event) => (event.type === "drifted" ? [`${event.kind} ${event.reason}`] : []));
    expect(drifted).toEqual(
      expect.arrayContaining([
        expect.stringContaining("unknown: provider.local"),
        expect.stringMatching(/^vm-missing nightly \/datacenter\/vm\/b/),
      ]) as string[],
    );
    // each told once, however many passes saw it
    expect(new Set(drifted).size).toBe(drifted.length);
  });
});
