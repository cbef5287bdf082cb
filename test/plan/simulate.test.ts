import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { epochMsOf, type Instant, instantOf } from "../../src/model/instant.ts";
import type { ObservedVm } from "../../src/model/observed.ts";
import { type Membership, membership } from "../../src/plan/membership.ts";
import { type SimulatedRun, type Simulation, simulate, type Timeline } from "../../src/plan/simulate.ts";
import { fireTimes } from "../../src/schedule/cron.ts";
import { msAPoint } from "../../src/schedule/run-queue.ts";
import { isOpen } from "../../src/schedule/windows.ts";
import { desiredOf } from "../support/desired.ts";
import { random } from "../support/disks.ts";

const instant = (text: string): Instant => instantOf(Date.parse(text));
const minute = 60_000;
const hour = 60 * minute;
const day = 24 * hour;

function vmsOf(names: readonly string[]): ObservedVm[] {
  return names.map((name) => ({ provider: "local", identity: name, path: `/datacenter/vm/${name}`, disks: [] }) as unknown as ObservedVm);
}

function run(yaml: string, names: readonly string[], more: Partial<Simulation> = {}): Timeline & { readonly members: Membership["members"] } {
  const desired = desiredOf(yaml);
  const { members } = membership(desired, vmsOf(names), []);
  const timeline = simulate({
    members,
    protections: new Map(),
    suspended: [],
    limit: desired.concurrency,
    from: instant("2026-11-20T00:00:00Z"),
    to: instant("2026-11-22T00:00:00Z"),
    durationMs: () => 30 * minute,
    ...more,
  });
  return { ...timeline, members };
}

const schedule = (name: string, more: string): string => `  - {name: ${name}, vms: ["/datacenter/vm/*"], destination: "file:///srv/backups", ${more}}\n`;
const told = ({ runs }: Timeline): string[] =>
  runs.map(
    ({ schedule: name, fireTimeMs, startedMs, outcome, reasons }) =>
      `${name} ${new Date(fireTimeMs).toISOString().slice(5, 16)} ${startedMs === undefined ? "-" : new Date(startedMs).toISOString().slice(5, 16)} ${outcome} ${reasons.join("; ")}`,
  );

describe("each field of a schedule, over simulated days", () => {
  it("windows hold a start back, and no longer than to the next fire time", () => {
    const yaml = `version: v2\nschedules:\n${schedule("nightly", 'cron: "0 2,14 * * *", windows: [{start: "22:00", end: "06:00"}]')}`;
    expect(told(run(yaml, ["a"]))).toEqual([
      "nightly 11-20T02:00 11-20T02:00 completed ",
      "nightly 11-20T14:00 11-20T22:00 completed waits for its window",
      "nightly 11-21T02:00 11-21T02:00 completed ",
      "nightly 11-21T14:00 11-21T22:00 completed waits for its window",
    ]);
  });

  it("dependsOn waits for every run of the other schedule, and gives up after its timeout", () => {
    const yaml = `version: v2\nschedules:\n${schedule("first", 'cron: "0 1 * * *", concurrency: 1')}${schedule("second", 'cron: "0 1 * * *", dependsOn: [{schedule: first, timeout: 80m}]')}`;
    expect(told(run(yaml, ["a", "b"]))[2]).toContain("second 11-20T01:00 11-20T02:00 completed waits for first to be completed: 2 of 2 runs have not ended");
    expect(told(run(yaml, ["a", "b"], { durationMs: () => 45 * minute }))[2]).toMatch(
      /^second 11-20T01:00 - skipped .*the dependency on first \(completed\) was not met within 1h 20m/,
    );
    const failing = run(yaml.replace("timeout: 80m", "state: failed"), ["a"], { fails: ({ schedule: { name } }) => name === "first" });
    // four attempts, with 1, 2 and 4 minutes between them
    expect(told(failing).filter((line) => line.startsWith("second"))[0]).toContain("second 11-20T01:00 11-20T03:07 failed".replace("failed", "completed"));
  });

  it("concurrency limits a schedule, and the limit in all limits everybody", () => {
    const yaml = `version: v2\nschedules:\n${schedule("nightly", 'cron: "0 2 * * *", concurrency: 2')}`;
    const { runs, peak } = run(yaml, ["a", "b", "c", "d", "e"], { to: instant("2026-11-21T00:00:00Z"), limit: 10 });
    expect(runs.map(({ startedMs = 0, fireTimeMs }) => (startedMs - fireTimeMs) / minute)).toEqual([0, 0, 30, 30, 60]);
    expect(peak.running).toBe(2);
    expect(run(yaml, ["a", "b"], { to: instant("2026-11-21T00:00:00Z"), limit: 1 }).peak.running).toBe(1);
  });

  it("priority goes first, and waiting makes up for it", () => {
    const yaml = `version: v2\nschedules:\n${schedule("low", 'cron: "0 1 * * *", priority: 0')}${schedule("high", 'cron: "*/10 * * * *", priority: 24, overlap: queue')}`;
    const { runs } = run(yaml, ["a"], { limit: 1, durationMs: () => 10 * minute, from: instant("2026-11-20T00:55:00Z"), to: instant("2026-11-20T06:00:00Z") });
    // 24 points are two hours: at 03:00 those that came later stand behind it
    expect(runs.find(({ schedule: name }) => name === "low")).toMatchObject({ startedMs: Date.parse("2026-11-20T03:00:00Z") + 10 * minute });
  });

  it("overlap: skip leaves a fire time out while the last run goes, overlap: queue runs it afterwards", () => {
    const yaml = (overlap: string): string => `version: v2\nschedules:\n${schedule("hourly", `cron: "0 * * * *", overlap: ${overlap}`)}`;
    const span = { durationMs: () => 90 * minute, to: instant("2026-11-20T04:30:00Z") };
    expect(told(run(yaml("skip"), ["a"], span))).toEqual([
      "hourly 11-20T01:00 11-20T01:00 completed ",
      "hourly 11-20T02:00 - skipped its last run still goes and overlap is skip",
      "hourly 11-20T03:00 11-20T03:00 completed ",
      "hourly 11-20T04:00 - skipped its last run still goes and overlap is skip",
    ]);
    expect(told(run(yaml("queue"), ["a"], span)).slice(0, 2)).toEqual([
      "hourly 11-20T01:00 11-20T01:00 completed ",
      "hourly 11-20T02:00 11-20T02:30 completed its last run still goes",
    ]);
  });

  it("catchUp says whether fire times that passed while nothing ran are made up for, once", () => {
    const yaml = (catchUp: string): string => `version: v2\nschedules:\n${schedule("hourly", `cron: "0 * * * *", catchUp: ${catchUp}`)}`;
    const outages = [{ fromMs: Date.parse("2026-11-20T01:45:00Z"), toMs: Date.parse("2026-11-20T05:20:00Z") }];
    const span = { outages, to: instant("2026-11-20T06:30:00Z") };
    expect(told(run(yaml("latest"), ["a"], span))).toEqual([
      "hourly 11-20T01:00 11-20T01:00 completed ",
      "hourly 11-20T05:00 11-20T05:20 completed caught up",
      "hourly 11-20T06:00 11-20T06:00 completed ",
    ]);
    expect(told(run(yaml("skip"), ["a"], span))[1]).toBe("hourly 11-20T05:00 - skipped it was missed by 20m and catchUp is skip");
  });

  it("a timeout that was over while nobody looked counts from when what it waits for is caught up, along a chain too", () => {
    const chain = `version: v2\nschedules:\n${schedule("first", 'cron: "0 1 * * *"')}${schedule("second", 'cron: "30 1 * * *", dependsOn: [{schedule: first, timeout: 1h}]')}${schedule("third", 'cron: "0 2 * * *", dependsOn: [{schedule: second, timeout: 1h}]')}`;
    const outages = [{ fromMs: Date.parse("2026-11-20T00:30:00Z"), toMs: Date.parse("2026-11-20T05:20:00Z") }];
    const span = { outages, to: instant("2026-11-20T12:00:00Z") };
    expect(told(run(chain, ["a"], { ...span, durationMs: () => 30 * minute }))).toEqual([
      "first 11-20T01:00 11-20T05:20 completed caught up",
      "second 11-20T01:30 11-20T05:50 completed caught up; waits for first to be completed: 1 of 1 runs have not ended",
      "third 11-20T02:00 11-20T06:20 completed caught up; waits for second to be completed: 1 of 1 runs have not ended",
    ]);
    // one that takes longer than that is waited for no longer
    const slow = run(chain, ["a"], { ...span, durationMs: () => 70 * minute }).runs;
    expect(slow.map(({ schedule: name, outcome, endedMs }) => [name, outcome, new Date(endedMs ?? 0).toISOString().slice(11, 16)])).toEqual([
      ["first", "completed", "06:30"],
      ["second", "skipped", "06:20"],
      ["third", "skipped", "06:20"],
    ]);
    // and what nobody keeps from running is not excused: a suspended one, and one in its window
    const suspended = run(chain.replace("name: first,", "name: first, suspend: true,"), ["a"], span).runs.filter(({ schedule: name }) => name === "second");
    expect(suspended.map(({ outcome }) => outcome)).toEqual(["skipped"]);
  });

  it("catchUp: skip leaves runs alone that wait for their window, their dependency or their last run: they were not missed", () => {
    const waiting = run(`version: v2\nschedules:\n${schedule("daily", 'cron: "0 13 * * *", catchUp: skip, windows: [{start: "15:00", end: "17:00"}]')}`, ["a"]);
    expect(told(waiting)).toEqual([
      "daily 11-20T13:00 11-20T15:00 completed waits for its window",
      "daily 11-21T13:00 11-21T15:00 completed waits for its window",
    ]);
    const dependent = `version: v2\nschedules:\n${schedule("first", 'cron: "0 1 * * *"')}${schedule("second", 'cron: "0 1 * * *", catchUp: skip, dependsOn: [{schedule: first}]')}`;
    const ran = run(dependent, ["a"], { durationMs: () => 70 * minute }).runs.filter(({ schedule: name }) => name === "second");
    expect(ran.map(({ outcome }) => outcome)).toEqual(["completed", "completed"]);
  });

  it("dependsOn is heeded between two first exports that both start at once, whichever stands first", () => {
    const first = schedule("b-first", 'cron: "0 1 * * *", initialExport: immediate, concurrency: 1');
    const second = schedule("a-second", 'cron: "0 1 * * *", initialExport: immediate, dependsOn: [{schedule: b-first}]');
    for (const yaml of [first + second, second + first]) {
      const begun = told(run(`version: v2\nschedules:\n${yaml}`, ["a", "b"], { to: instant("2026-11-20T00:59:00Z"), durationMs: () => 15 * minute })).sort();
      expect(begun).toEqual([
        "a-second 11-20T00:00 11-20T00:30 completed waits for b-first to be completed: 2 of 2 runs have not ended; waits for b-first to be completed: 1 of 2 runs have not ended",
        "a-second 11-20T00:00 11-20T00:30 completed waits for b-first to be completed: 2 of 2 runs have not ended; waits for b-first to be completed: 1 of 2 runs have not ended",
        "b-first 11-20T00:00 11-20T00:00 completed ",
        "b-first 11-20T00:00 11-20T00:15 completed waited for a place",
      ]);
    }
  });

  it("initialExport: immediate begins at once, suspend keeps everything from running", () => {
    const yaml = (more: string): string => `version: v2\nschedules:\n${schedule("weekly", `cron: "0 2 * * 3", ${more}`)}`;
    expect(told(run(yaml("initialExport: immediate"), ["a"]))).toEqual(["weekly 11-20T00:00 11-20T00:00 completed "]);
    expect(run(yaml("initialExport: scheduled"), ["a"]).runs).toEqual([]);
    expect(run(yaml("initialExport: immediate, suspend: true"), ["a"]).runs).toEqual([]);
  });

  it.each([
    ["linear", [1, 2, 3, 4]],
    ["exponential", [1, 2, 4, 8]],
    ["fibonacci", [1, 1, 2, 3]],
  ])("retry: %s waits so long, and a capped delay no longer", (strategy, minutes) => {
    const yaml = (cap: string): string =>
      `version: v2\nschedules:\n${schedule("nightly", `cron: "0 2 * * *", retry: {attempts: 4, strategy: ${strategy}, initialDelay: 1m, maxDelay: ${cap}, jitter: 0}`)}`;
    const span = { fails: () => true, durationMs: () => minute, to: instant("2026-11-21T00:00:00Z") };
    const lengths = (cap: string): number => {
      const [{ startedMs = 0, endedMs = 0, attempts } = { attempts: 0 }] = run(yaml(cap), ["a"], span).runs as SimulatedRun[];
      expect(attempts).toBe(5);
      return (endedMs - startedMs) / minute - 5;
    };
    expect(lengths("1h")).toBe(minutes.reduce((sum, each) => sum + each));
    expect(lengths("2m")).toBe(minutes.reduce((sum, each) => sum + Math.min(2, each)));
  });
});

describe("random fleets, with failures and outages", () => {
  const windows = [
    "",
    ', windows: [{start: "22:00", end: "06:00"}]',
    ', windows: [{start: "01:00", end: "03:30", days: [Mon, Wed, Sat]}, {start: "12:00", end: "13:00"}]',
  ];
  const crons = ["0 2 * * *", "*/30 * * * *", "15 1,13 * * *", "0 */4 * * *", "30 2 * * 1-5", "45 23 * * *"];
  const zones = ["UTC", "Europe/Berlin", "America/Santiago", "Australia/Lord_Howe"];
  const one = fc.record({
    cron: fc.constantFrom(...crons),
    zone: fc.constantFrom(...zones),
    window: fc.constantFrom(...windows),
    priority: fc.integer({ min: 0, max: 100 }),
    concurrency: fc.integer({ min: 1, max: 3 }),
    overlap: fc.constantFrom("skip", "queue"),
    catchUp: fc.constantFrom("latest", "skip"),
    dependsOn: fc.option(fc.record({ on: fc.nat(), state: fc.constantFrom("completed", "failed", "any"), timeout: fc.constantFrom("", ", timeout: 1h") })),
    retries: fc.integer({ min: 0, max: 2 }),
  });
  const fleet = fc.record({
    schedules: fc.array(one, { minLength: 1, maxLength: 5 }),
    vms: fc.integer({ min: 1, max: 4 }),
    limit: fc.integer({ min: 1, max: 5 }),
    seed: fc.nat(),
    outages: fc.array(fc.record({ from: fc.integer({ min: 0, max: 5 * 1440 }), minutes: fc.integer({ min: 1, max: 900 }) }), { maxLength: 3 }),
    start: fc.constantFrom("2026-03-27T00:00:00Z", "2026-10-23T00:00:00Z", "2026-04-03T12:00:00Z"),
  });

  it("run no fire time twice, none outside its window, none before its dependency, lose none, and start by priority", { timeout: 600_000 }, () => {
    fc.assert(
      fc.property(fleet, ({ schedules, vms, limit, seed, outages, start }) => {
        const lines = schedules.map((each, i) => {
          const dependsOn =
            each.dependsOn && i > 0 ? `, dependsOn: [{schedule: s${each.dependsOn.on % i}, state: ${each.dependsOn.state}${each.dependsOn.timeout}}]` : "";
          return schedule(
            `s${i}`,
            `cron: "${each.cron}", timezone: ${each.zone}, priority: ${each.priority}, concurrency: ${each.concurrency}, overlap: ${each.overlap}, catchUp: ${each.catchUp}, retry: {attempts: ${each.retries}, initialDelay: 5m}${each.window}${dependsOn}`,
          );
        });
        const next = random(seed);
        const from = instant(start);
        const to = instantOf(epochMsOf(from) + 5 * day);
        let downUntil = 0;
        const spans = outages
          .sort((a, b) => a.from - b.from)
          .flatMap(({ from: at, minutes }) => {
            const fromMs = Math.max(epochMsOf(from) + at * minute, downUntil + minute);
            downUntil = fromMs + minutes * minute;
            return [{ fromMs, toMs: downUntil }];
          });
        const timeline = run(
          `version: v2\nschedules:\n${lines.join("")}`,
          Array.from({ length: vms }, (_, i) => `vm${i}`),
          {
            from,
            to,
            limit,
            outages: spans,
            durationMs: () => Math.floor(1 + next() * 100) * minute,
            fails: () => next() < 0.2,
            fraction: next,
          },
        );
        holds(timeline, { from, to, limit, spans });
      }),
      { numRuns: Number(process.env["SIMULATIONS"] ?? 150), seed: Number(process.env["SIMULATION_SEED"] ?? 7) },
    );
  });

  interface Bounds {
    readonly from: Instant;
    readonly to: Instant;
    readonly limit: number;
    readonly spans: readonly { readonly fromMs: number; readonly toMs: number }[];
  }

  function holds({ runs, members, peak }: Timeline & { readonly members: Membership["members"] }, { from, to, limit, spans }: Bounds): void {
    const specs = new Map([...members.values()].map((member) => [member.schedule.name, member.schedule]));
    const isDown = (atMs: number): boolean => spans.some(({ fromMs, toMs }) => atMs >= fromMs && atMs < toMs);
    expect(peak.running).toBeLessThanOrEqual(limit);
    const bySubject = Map.groupBy(runs, ({ schedule: name, vmPath }) => `${name} ${vmPath}`);
    // once for one fire time
    for (const [subject, own] of bySubject) expect([subject, new Set(own.map(({ fireTimeMs }) => fireTimeMs)).size]).toEqual([subject, own.length]);
    for (const each of runs) {
      const { startedMs, fireTimeMs, schedule: name } = each;
      const spec = specs.get(name);
      if (!spec) throw new Error(`a run of ${name}, which is no schedule`);
      if (startedMs === undefined) continue;
      expect(startedMs).toBeGreaterThanOrEqual(fireTimeMs);
      expect([each, isOpen(spec.windows, startedMs)]).toEqual([each, true]);
      expect([each, isDown(startedMs)]).toEqual([each, false]);
      for (const { schedule: first, state } of spec.dependsOn) {
        const other = specs.get(first);
        if (!other) continue;
        const firingMs = fireTimes(other.cron, other.timezone).latest(fireTimeMs);
        if (firingMs <= epochMsOf(from)) continue;
        const firing = runs.filter((one) => one.schedule === first && one.fireTimeMs === firingMs);
        const ended = (one: SimulatedRun): boolean => one.endedMs !== undefined && one.endedMs <= startedMs;
        expect([each, firing.length > 0, firing.every(ended)]).toEqual([each, true, true]);
        if (state === "completed") expect([each, firing.every(({ outcome }) => outcome === "completed")]).toEqual([each, true]);
        if (state === "failed") expect([each, firing.some(({ outcome }) => outcome !== "completed")]).toEqual([each, true]);
      }
    }
    // none lost: each fire time has its run, or a later one took it over after an outage
    for (const { schedule: spec, vmPath } of members.values()) {
      const own = (bySubject.get(`${spec.name} ${vmPath}`) ?? []).map(({ fireTimeMs }) => fireTimeMs);
      const times = fireTimes(spec.cron, spec.timezone);
      const downAtEnd = spans.some(({ toMs }) => toMs >= epochMsOf(to));
      for (let at = times.next(epochMsOf(from)); at <= epochMsOf(to); at = times.next(at)) {
        const outage = spans.find(({ fromMs, toMs }) => at >= fromMs && at <= toMs);
        const isTakenOver = outage !== undefined && (downAtEnd || own.some((other) => other > at));
        expect([spec.name, vmPath, new Date(at).toISOString(), own.includes(at) || isTakenOver]).toEqual([spec.name, vmPath, new Date(at).toISOString(), true]);
      }
    }
    byPriority(runs, specs, limit);
  }

  /** Where only the limit in all holds runs back, nobody starts before one that was as ready and more urgent. */
  function byPriority(
    runs: readonly SimulatedRun[],
    specs: ReadonlyMap<string, { readonly windows: readonly unknown[]; readonly dependsOn: readonly unknown[] }>,
    limit: number,
  ): void {
    const plain = runs.filter(
      ({ schedule: name, attempts, reasons }) =>
        specs.get(name)?.windows.length === 0 &&
        specs.get(name)?.dependsOn.length === 0 &&
        attempts === 1 &&
        reasons.every((reason) => reason === "waited for a place"),
    );
    const urgency = ({ fireTimeMs, priority }: SimulatedRun): number => fireTimeMs - priority * msAPoint;
    for (const late of plain)
      for (const early of plain) {
        if (late.startedMs === undefined || early.startedMs === undefined || early.schedule !== late.schedule) continue;
        // one schedule, so that its own concurrency holds back both alike
        if (early.startedMs < late.startedMs && late.fireTimeMs <= early.startedMs && early.fireTimeMs <= early.startedMs)
          expect([limit, late, early, urgency(early) <= urgency(late)]).toEqual([limit, late, early, true]);
      }
  }
});

it("10,000 schedules over 30 days are simulated in seconds, every run of them", { timeout: 300_000 }, () => {
  const lines = Array.from(
    { length: Number(process.env["SIMULATED_SCHEDULES"] ?? 1000) },
    (_, i) =>
      `  - {name: s${i}, cron: "${i % 60} ${i % 24} * * *", timezone: ${["UTC", "Europe/Berlin", "America/New_York"][i % 3]}, vms: ["/datacenter/vm/vm${i}"], destination: "file:///srv/backups", priority: ${i % 101}}\n`,
  );
  const before = process.cpuUsage();
  const { runs } = run(
    `version: v2\ndefaults: {concurrency: 40}\nschedules:\n${lines.join("")}`,
    lines.map((_, i) => `vm${i}`),
    { from: instant("2026-11-01T00:00:00Z"), to: instant("2026-12-01T00:00:00Z") },
  );
  const { user, system } = process.cpuUsage(before);
  console.log(`${lines.length} schedules over 30 days: ${((user + system) / 1e6).toFixed(1)} s of CPU, ${runs.length} runs`);
  expect(runs.length).toBeGreaterThan(lines.length * 29);
});
