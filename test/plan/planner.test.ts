import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { DesiredState } from "../../src/model/desired.ts";
import { type Instant, instantOf, parseInstant } from "../../src/model/instant.ts";
import type { Observed, ObservedVm } from "../../src/model/observed.ts";
import type { Recorded, RecordedProtection, RestorePoint } from "../../src/model/recorded.ts";
import type { VmPath } from "../../src/model/vm-path.ts";
import { narrow } from "../../src/plan/narrow.ts";
import { isEmpty, type Plan } from "../../src/plan/plan.ts";
import { plan } from "../../src/plan/planner.ts";
import { resourcesOf } from "../../src/plan/resources.ts";
import { withRenames } from "../../src/plan/shown.ts";
import { unsafeReasons } from "../../src/plan/unsafe.ts";
import { emptyRecorded } from "../../src/state/state.ts";
import { planMarkdown } from "../../src/ui/plan-markdown.ts";
import { renderPlan } from "../../src/ui/plan-view.ts";
import { styleOf } from "../../src/ui/style.ts";
import { desiredOf, smallest } from "../support/desired.ts";

const instant = (text: string): Instant => parseInstant(text) as Instant;
const now = instant("2026-11-21T12:00:00Z");
const vm = (name: string): ObservedVm => ({
  provider: "local",
  path: `/datacenter/vm/${name}` as VmPath,
  identity: name,
  name,
  disks: [{ name: "disk.qcow2", format: "qcow2", virtualBytes: 40 * 2 ** 30, dataBytes: 1.2 * 2 ** 30 }],
});
const seen = (...names: string[]): Observed => ({
  vms: names.map(vm),
  problems: [],
  unknownProviders: [],
  unknownVms: [],
  destinations: [],
  unknownDestinations: [],
});
const protection = (name: string, more: Partial<RecordedProtection> = {}): RecordedProtection => ({
  schedule: "nightly",
  provider: "local",
  identity: name,
  vmPath: `/datacenter/vm/${name}` as VmPath,
  state: "active",
  effectiveSince: instant("2026-11-01T00:00:00Z"),
  handledUntil: instant("2026-11-21T02:00:00Z"),
  lastSuccessAt: instant("2026-11-21T02:00:00Z"),
  ...more,
});
/** The good restore point that a protection's last success left. */
const pointOf = ({ schedule, identity, vmPath, lastSuccessAt }: RecordedProtection): RestorePoint[] =>
  lastSuccessAt
    ? [
        {
          id: `${schedule}-${identity}`,
          schedule,
          provider: "local",
          identity,
          vmPath,
          destination: "file:///srv/backups",
          destinationUrl: "file:///srv/backups",
          manifestPath: `${schedule}/${identity}/manifest.json`,
          instant: lastSuccessAt,
          storedBytes: 1,
          state: "good",
          held: false,
        },
      ]
    : [];
const recordedOf = (desired: DesiredState, protections: RecordedProtection[], more: Partial<Recorded> = {}): Recorded => ({
  ...emptyRecorded,
  lineage: "9a1c0000",
  serial: 41,
  resources: resourcesOf(desired).map(({ address, spec, file }) => ({ address, spec, file })),
  protections,
  points: protections.flatMap(pointOf),
  ...more,
});
const make = (desired: DesiredState, recorded: Recorded, observed: Observed, at = now): Plan => plan({ desired, recorded, observed, revision: null, now: at });
const kinds = (made: Plan): string[] => made.protections.map(({ kind, vmPath }) => `${kind} ${vmPath.slice(15)}`);

describe("a plan", () => {
  const desired = desiredOf(smallest);

  it("of a new file adds what it says, and exports nothing before the first fire time", () => {
    const made = make(desired, emptyRecorded, seen("web", "db"));
    expect(made.changes.map(({ kind, address }) => `${kind} ${address}`)).toEqual(["create provider.local", "create schedule.nightly"]);
    expect(kinds(made)).toEqual(["begin db", "begin web"]);
    expect(made.exports).toEqual([]);
  });

  it("of what was applied is empty", () => {
    const made = make(desired, recordedOf(desired, [protection("web")]), seen("web"));
    expect(isEmpty(made)).toBe(true);
    expect(renderPlan(made, { style: styleOf(false), summary: true, timezoneOf: () => "UTC" })).toBe(
      "Plan: 0 to add, 0 to change, 0 to remove, 2 unchanged. 0 exports due, 0 deferred. 0 restore points expire.\n",
    );
  });

  it("runs the latest missed fire time once", () => {
    const made = make(
      desired,
      recordedOf(desired, [protection("web", { handledUntil: instant("2026-11-18T02:00:00Z"), lastSuccessAt: instant("2026-11-20T02:00:00Z") })]),
      seen("web"),
    );
    expect(made.exports.map(({ fireTime }) => fireTime)).toEqual(["2026-11-21T02:00:00.000Z"]);
  });

  it("lets missed fire times go with catchUp: skip, and records that", () => {
    const skipping = desiredOf(`${smallest}    catchUp: skip\n`);
    const made = make(skipping, recordedOf(skipping, [protection("web", { handledUntil: instant("2026-11-20T02:00:00Z") })]), seen("web"));
    expect([made.exports.length, made.skipped.length]).toEqual([0, 1]);
    const inTime = make(
      skipping,
      recordedOf(skipping, [protection("web", { handledUntil: instant("2026-11-20T02:00:00Z") })]),
      seen("web"),
      instant("2026-11-21T02:05:00Z"),
    );
    expect(inTime.exports.length).toBe(1);
  });

  it("exports a new VM at once with initialExport: immediate", () => {
    const immediate = desiredOf(`${smallest}    initialExport: immediate\n`);
    expect(make(immediate, emptyRecorded, seen("web")).exports.map(({ vmPath, fireTime }) => [vmPath, fireTime])).toEqual([["/datacenter/vm/web", now]]);
  });

  it("lets a first export wait for the first exports that it depends on", () => {
    const two = desiredOf(
      `${smallest}    initialExport: immediate\n  - {name: after, cron: "0 2 * * *", vms: [/datacenter/vm/*], destination: "file:///srv/backups", initialExport: immediate, dependsOn: [{schedule: nightly}]}\n`,
    );
    const made = make(two, emptyRecorded, seen("web"));
    expect(made.exports.map(({ schedule }) => schedule)).toEqual(["nightly"]);
    expect(made.deferred).toMatchObject([{ schedule: "after", reason: "waits for nightly to be completed: 1 of 1 runs have not ended" }]);
    // what was applied: both began, both are queued; then the one has ended
    const begun = [protection("web", { effectiveSince: now }), protection("web", { schedule: "after", effectiveSince: now })];
    const runOf = (schedule: string, state: "queued" | "completed" | "failed") => ({
      id: schedule,
      schedule,
      provider: "local",
      identity: "web",
      vmPath: "/datacenter/vm/web" as VmPath,
      kind: "scheduled" as const,
      fireTime: now,
      state,
    });
    const later = instant("2026-11-21T12:10:00Z");
    const once = (state: "queued" | "completed" | "failed") =>
      make(two, recordedOf(two, begun, { runs: [runOf("nightly", state), runOf("after", "queued")] }), seen("web"), later);
    expect(once("queued").exports.map(({ schedule }) => schedule)).toEqual(["nightly"]);
    expect(once("completed").exports.map(({ schedule, fireTime }) => [schedule, fireTime])).toEqual([["after", now]]);
    expect(once("failed").deferred).toMatchObject([{ schedule: "after", reason: "waits for nightly to be completed: it has not completed" }]);
  });

  it("that is narrowed to a schedule takes along what its exports need, and leaves them out where that is excluded", () => {
    const two = desiredOf(
      `version: v2\nproviders: [{name: local, type: local, path: /srv/vms}]\ndestinations:\n  - {name: here, url: "file:///srv/here"}\n  - {name: there, url: "file:///srv/there"}\nschedules:\n${["here", "there"].map((name) => `  - {name: to-${name}, cron: "0 2 * * *", vms: [/datacenter/vm/*], destination: ${name}, initialExport: immediate}\n`).join("")}`,
    );
    const made = make(two, emptyRecorded, seen("web"));
    const told = (part: Plan): string[][] => [part.changes.map(({ address }) => address), part.exports.map(({ schedule }) => schedule)];
    expect(told(narrow(made, ["schedule.to-here"], []))).toEqual([["destination.here", "provider.local", "schedule.to-here"], ["to-here"]]);
    expect(told(narrow(made, [], ["destination.here"]))).toEqual([
      ["destination.there", "provider.local", "schedule.to-here", "schedule.to-there"],
      ["to-there"],
    ]);
    expect(told(narrow(made, [], ["provider.local"]))[1]).toEqual([]);
    expect(told(narrow(made, ["destination.here"], []))).toEqual([["destination.here"], []]);
  });

  it("fires nothing because a cron expression changed or a schedule was resumed", () => {
    const changed = desiredOf(smallest.replace("0 2", "0 11"));
    const made = make(changed, recordedOf(desired, [protection("web")]), seen("web"));
    expect(made.exports).toEqual([]);
    expect(kinds(made)).toEqual(["restarted web"]);
  });

  it("waits for a window and says when it opens", () => {
    const windowed = desiredOf(`${smallest}    windows: [{start: "22:00", end: "06:00"}]\n`.replace("0 2", "0 11"));
    const made = make(windowed, recordedOf(windowed, [protection("web")]), seen("web"));
    expect(made.deferred).toMatchObject([{ waitsFor: "window", until: "2026-11-21T22:00:00.000Z", deadline: "2026-11-22T11:00:00.000Z" }]);
  });

  it("waits for a dependency, goes on when it has completed, and gives up after the timeout", () => {
    const two = desiredOf(
      `${smallest}  - name: weekly\n    cron: "30 2 * * *"\n    vms: [/datacenter/vm/*]\n    destination: file:///srv/backups\n    dependsOn: [{schedule: nightly, timeout: 5h}]\n`,
    );
    const weekly = protection("web", { schedule: "weekly", handledUntil: instant("2026-11-20T02:30:00Z") });
    const first = protection("web");
    const run = {
      id: "r",
      schedule: "nightly",
      provider: "local",
      identity: "web",
      vmPath: first.vmPath,
      kind: "scheduled" as const,
      fireTime: instant("2026-11-21T02:00:00Z"),
      state: "running" as const,
    };
    const at = instant("2026-11-21T03:00:00Z");
    const waits = make(two, recordedOf(two, [first, weekly], { runs: [run] }), seen("web"), at);
    expect(waits.deferred.filter(({ schedule }) => schedule === "weekly")).toMatchObject([
      { waitsFor: "dependency", reason: "waits for nightly to be completed: 1 of 1 runs have not ended" },
    ]);
    expect(
      make(two, recordedOf(two, [first, weekly], { runs: [{ ...run, state: "completed" }] }), seen("web"), at).exports.map(({ schedule }) => schedule),
    ).toEqual(["weekly"]);
    expect(make(two, recordedOf(two, [first, weekly], { runs: [run] }), seen("web"), instant("2026-11-21T08:00:00Z")).skipped).toMatchObject([
      { schedule: "weekly" },
    ]);
  });

  it("calls a vanished VM missing, and an unreachable provider's VMs unknown", () => {
    const recorded = recordedOf(desired, [protection("web")]);
    expect(kinds(make(desired, recorded, seen()))).toEqual(["missing web"]);
    const unreachable: Observed = { ...seen(), unknownProviders: [{ name: "local", reason: "it does not answer" }] };
    const made = make(desired, recorded, unreachable);
    expect(kinds(made)).toEqual([]);
    expect(made.drift).toMatchObject([{ kind: "unknown", what: "provider.local" }]);
    // so is one whose disks, or whose folder, cannot be read
    const below = { ...protection("prod/db"), identity: "prod/db" };
    const unread: Observed = {
      ...seen(),
      unknownVms: [
        { provider: "local", identity: "web", reason: "its header is missing" },
        { provider: "local", identity: "prod", reason: "cannot be read" },
      ],
    };
    const unseen = make(desired, recordedOf(desired, [protection("web"), below, protection("gone")]), unread);
    expect([kinds(unseen), unseen.warnings]).toEqual([["missing gone"], []]);
  });

  it("says which disks of a VM are new, gone or of another size since its last export", () => {
    const lastDisks = [
      { name: "disk.qcow2", virtualBytes: 20 * 2 ** 30 },
      { name: "data.qcow2", virtualBytes: 2 ** 30 },
    ];
    const differs = make(desired, recordedOf(desired, [protection("a", { lastDisks }), protection("b", { lastDisks: [] })]), seen("a", "b"));
    expect(differs.drift).toEqual([
      {
        kind: "vm-changed",
        schedule: "nightly",
        vmPath: "/datacenter/vm/a",
        message: `since its last export disk disk.qcow2 has ${40 * 2 ** 30} bytes instead of ${20 * 2 ** 30}, disk data.qcow2 is gone`,
      },
      { kind: "vm-changed", schedule: "nightly", vmPath: "/datacenter/vm/b", message: "since its last export disk disk.qcow2 is new" },
    ]);
    const same = [{ name: "disk.qcow2", virtualBytes: 40 * 2 ** 30 }];
    expect(make(desired, recordedOf(desired, [protection("a", { lastDisks: same }), protection("b")]), seen("a", "b")).drift).toEqual([]);
  });

  it("knows a renamed VM by what renames says", () => {
    const renamed = desiredOf(`${smallest}renames:\n  - {vm: /datacenter/vm/www, formerly: /datacenter/vm/web}\n`);
    expect(make(renamed, recordedOf(renamed, [protection("web")]), seen("www")).protections).toMatchObject([
      { kind: "renamed", identity: "web", from: "/datacenter/vm/web", vmPath: "/datacenter/vm/www" },
    ]);
  });

  it.each([
    ["a folder", "", ""],
    ["an image of its own", ".qcow2", ".qcow2"],
    ["an archive", ".ova", ".ova"],
  ])("knows %s that was renamed, also where two have changed their names", (_, ofA, ofB) => {
    const renamed = desiredOf(
      `${smallest}renames:\n  - {vm: /datacenter/vm/a, formerly: /datacenter/vm/b}\n  - {vm: /datacenter/vm/b, formerly: /datacenter/vm/a}\n`,
    );
    const shown = {
      ...seen("a", "b"),
      vms: [
        { ...vm("a"), identity: `a${ofB}` },
        { ...vm("b"), identity: `b${ofA}` },
      ],
    };
    const as = (name: string, identity: string): RecordedProtection => ({ ...protection(name), identity });
    const before = recordedOf(renamed, [as("a", `a${ofA}`), as("b", `b${ofB}`)]);
    expect(make(renamed, before, shown).protections.map(({ kind, identity, vmPath }) => [kind, identity, vmPath])).toEqual([
      ["renamed", `b${ofB}`, "/datacenter/vm/a"],
      ["renamed", `a${ofA}`, "/datacenter/vm/b"],
    ]);
    // once that is applied it stays so
    const behind = recordedOf(renamed, [as("b", `a${ofA}`), as("a", `b${ofB}`)]);
    expect(make(renamed, behind, shown).protections).toEqual([]);
  });

  it.each<[string, [vm: string, formerly: string][], string[], [identity: string, path: string][], string[]]>([
    [
      "that was renamed twice, by both entries",
      [
        ["b", "a"],
        ["c", "b"],
      ],
      ["c"],
      [["a", "b"]],
      ["renamed a c"],
    ],
    [
      "that was renamed twice, once both are applied",
      [
        ["b", "a"],
        ["c", "b"],
      ],
      ["c"],
      [["a", "c"]],
      [],
    ],
    ["that was renamed twice, by the last entry alone", [["c", "b"]], ["c"], [["a", "b"]], ["renamed a c"]],
    ["that was renamed twice, once the last alone is applied", [["c", "b"]], ["c"], [["a", "c"]], []],
    ["that is not moved yet", [["b", "a"]], ["a"], [["a", "a"]], []],
    ["whose old path has a new one", [["x", "a"]], ["a", "x"], [["a", "a"]], ["begin a//new a", "renamed a x"]],
    [
      "whose old path has a new one, beside one that is called (new)",
      [["x", "a"]],
      ["a", "a (new)", "x"],
      [
        ["a", "a"],
        ["a (new)", "a (new)"],
      ],
      ["begin a//new a", "renamed a x"],
    ],
    [
      "whose new one has been called (new) before",
      [["x", "a"]],
      ["a", "x"],
      [
        ["a", "x"],
        ["a (new)", "a"],
      ],
      [],
    ],
    [
      "that is away for a while, and whose old path has a new one",
      [["x", "a"]],
      ["a"],
      [
        ["a", "x"],
        ["a//new", "a"],
      ],
      ["missing a x"],
    ],
  ])("knows a VM %s", (_, renames, there, protectedAs, changes) => {
    const path = (name: string): string => `"/datacenter/vm/${name}"`;
    const renamed = desiredOf(`${smallest}renames:\n${renames.map(([vm, formerly]) => `  - {vm: ${path(vm)}, formerly: ${path(formerly)}}\n`).join("")}`);
    const recorded = recordedOf(
      renamed,
      protectedAs.map(([identity, name]) => ({ ...protection(name), identity })),
    );
    const made = make(renamed, recorded, seen(...there));
    expect(made.protections.map(({ kind, identity, vmPath }) => `${kind} ${identity} ${vmPath.slice(15)}`)).toEqual(changes);
  });

  it("takes no two VMs for one, whatever is renamed, there and protected", () => {
    const names = ["a", "b", "c", "d"];
    const some = fc.subarray(names);
    const pairs = fc.array(fc.tuple(fc.constantFrom(...names), fc.constantFrom(...names)), { maxLength: 4 });
    fc.assert(
      fc.property(some, pairs, pairs, (there, renames, protectedAs) => {
        const unique = renames.filter(([vm, old], i) => vm !== old && renames.findIndex(([x, y]) => x === vm || y === old) === i);
        const path = (name: string): string => `"/datacenter/vm/${name}"`;
        const renamed = desiredOf(`${smallest}renames: [${unique.map(([vm, old]) => `{vm: ${path(vm)}, formerly: ${path(old)}}`).join(", ")}]\n`);
        const protections = new Map(protectedAs.map(([identity, name]) => [identity, { ...protection(name), identity }]));
        const shown = withRenames(renamed, seen(...there).vms, [...protections.values()]);
        expect(shown.map(({ path: at }) => at)).toEqual(there.map((name) => `/datacenter/vm/${name}`));
        expect(new Set(shown.map(({ identity }) => identity)).size).toBe(there.length);
      }),
    );
  });

  it("lets nothing expire for the sake of a restore point that is gone or altered", () => {
    const keepsTwo = desiredOf(`${smallest}    retention: {keepLast: 2}\n`);
    const recorded = (...days: number[]): Recorded => {
      const web = protection("web", { lastSuccessAt: instant("2026-11-21T02:00:00Z") });
      const points = days.map((day): RestorePoint => {
        const [point] = pointOf({ ...web, lastSuccessAt: instant(`2026-11-${day}T02:00:00Z`) }) as [RestorePoint];
        return { ...point, id: `of the ${day}th`, manifestPath: `${day}/manifest.json` };
      });
      return recordedOf(keepsTwo, [web], { points });
    };
    const { name, url } = keepsTwo.destinations[0] as DesiredState["destinations"][number];
    const showing = (...points: [day: number, storedBytes: number | null][]): Observed => ({
      ...seen("web"),
      destinations: [{ name, url, lineage: "9a1c0000", points: points.map(([day, storedBytes]) => ({ manifestPath: `${day}/manifest.json`, storedBytes })) }],
    });
    const expiry = (observed: Observed): unknown => {
      const { mark, blocked } = make(keepsTwo, recorded(18, 19, 20, 21), observed).expiry;
      return { mark: mark.map(({ point }) => point), blocked: blocked.map(({ points, reason }) => [points, reason]) };
    };
    expect(expiry(showing([18, 1], [19, 1], [20, 1], [21, 1]))).toEqual({ mark: ["of the 18th", "of the 19th"], blocked: [] });
    // the two that are kept are two that are there
    expect(expiry(showing([18, 1], [19, 1], [21, 1]))).toEqual({ mark: ["of the 18th", "of the 20th"], blocked: [] });
    expect(expiry(showing([18, 1], [19, 1], [20, 0], [21, null]))).toEqual({ mark: ["of the 18th", "of the 20th"], blocked: [] });
    // and while the newest one is doubtful, nothing goes
    expect(expiry(showing([18, 1], [19, 1], [20, 1]))).toEqual({ mark: [], blocked: [[2, "the last restore point is gone"]] });
    expect(expiry(showing([18, 1], [19, 1], [20, 1], [21, 0]))).toEqual({
      mark: [],
      blocked: [[2, "the files of the last restore point are not what was stored"]],
    });
    expect(make(keepsTwo, recorded(18), showing()).drift).toMatchObject([
      { kind: "overdue", vmPath: "/datacenter/vm/web" },
      { kind: "point-missing", schedule: "nightly", vmPath: "/datacenter/vm/web", destination: name },
    ]);
  });

  it("says that a protection is overdue, and lets nothing expire meanwhile", () => {
    const kept = desiredOf(`${smallest}    retention: {keepLast: 1}\n`);
    const point = (id: string, at: string): RestorePoint => ({
      id,
      schedule: "nightly",
      provider: "local",
      identity: "web",
      vmPath: "/datacenter/vm/web" as VmPath,
      destination: "file:///srv/backups",
      destinationUrl: "file:///srv/backups",
      manifestPath: `${id}/manifest.json`,
      instant: instant(at),
      storedBytes: 1,
      state: "good",
      held: false,
    });
    const points = [point("old", "2026-11-10T02:00:00Z"), point("new", "2026-11-11T02:00:00Z")];
    const late = make(kept, recordedOf(kept, [protection("web", { lastSuccessAt: instant("2026-11-11T02:00:00Z") })], { points }), seen("web"));
    expect(late.drift.map(({ kind }) => kind)).toEqual(["overdue"]);
    expect([late.expiry.mark.length, late.expiry.blocked.length]).toEqual([0, 1]);
    // a clock that was ahead once keeps nothing fresh
    const ahead = recordedOf(kept, [protection("web")], { points: [...points, point("ahead", "2027-11-11T02:00:00Z")] });
    expect(make(kept, ahead, seen("web")).drift.map(({ kind }) => kind)).toEqual(["overdue"]);
    points[1] = point("new", "2026-11-21T02:00:00Z");
    const fresh = make(kept, recordedOf(kept, [protection("web")], { points }), seen("web"));
    expect(fresh.expiry.mark).toMatchObject([{ point: "old", expiresAt: "2026-11-28T12:00:00.000Z" }]);
    // and takes nobody's place as the newest
    const pinned = make(kept, recordedOf(kept, [protection("web")], { points: [...points, point("ahead", "2027-11-11T02:00:00Z")] }), seen("web"));
    expect(pinned.expiry.mark.map((mark) => mark.point)).toEqual(["old"]);
    const over = make(
      kept,
      recordedOf(kept, [protection("web")], {
        points: points.map((each) => ({ ...each, ...(each.id === "old" ? { expiresAt: instant("2026-11-20T00:00:00Z") } : {}) })),
      }),
      seen("web"),
    );
    expect(over.expiry.remove.map((mark) => mark.point)).toEqual(["old"]);
  });

  it("keeps the restore points of a schedule that was removed, and calls that unsafe", () => {
    const gone = desiredOf("version: v2\nproviders: [{name: local, type: local}]\n");
    const made = make(gone, recordedOf(desired, [protection("web")]), seen("web"));
    expect(made.expiry).toEqual({ mark: [], withdraw: [], remove: [], blocked: [] });
    expect(unsafeReasons(made)).toEqual(expect.arrayContaining(["removes schedule.nightly", "nightly no longer protects /datacenter/vm/web"]) as string[]);
  });

  it.each([
    ["retention: {daily: 7}", "retention: {daily: 6}", "changes retention of schedule.nightly"],
    ["retention: {daily: 7, weekly: 4}", "retention: {daily: 7}", "changes retention of schedule.nightly"],
    ["", "retention: {daily: 9}", "changes retention of schedule.nightly"],
    ["verify: restore", "verify: stored", "changes verify of schedule.nightly"],
    ["rpo: 1d", "rpo: 2d", "changes rpo of schedule.nightly"],
    ["rpo: 1d", "", "changes rpo of schedule.nightly"],
    ["catchUp: latest", "catchUp: skip", "changes catchUp of schedule.nightly"],
    ["", "windows: [{start: '01:00', end: '05:00'}]", "changes windows of schedule.nightly"],
    ["", "suspend: true", "changes suspend of schedule.nightly"],
    ["incremental: {fullReadEvery: 7d}", "incremental: {fullReadEvery: 8d}", "changes incremental of schedule.nightly"],
  ])("is not safe with %s -> %s, and safe the other way", (strong, weak, reason) => {
    const of = (line: string): DesiredState => desiredOf(`${smallest}${line === "" ? "" : `    ${line}\n`}`);
    const reasons = (before: string, after: string): string[] => unsafeReasons(make(of(after), recordedOf(of(before), [protection("web")]), seen("web")));
    expect(reasons(strong, weak)).toEqual([reason]);
    expect(reasons(weak, strong)).toEqual([]);
  });

  it("is not safe where a schedule runs less often, a provider looks elsewhere, or a time of grace is shorter", () => {
    const of = (cron: string, path: string, grace: string): DesiredState =>
      desiredOf(
        `version: v2\nproviders: [{name: local, type: local, path: ${path}}]\ndestinations: [{name: d, url: "file:///srv/d", expiryGrace: ${grace}}]\n` +
          `schedules: [{name: n, cron: "${cron}", vms: ["/datacenter/vm/*"], destination: d}]\n`,
      );
    const [strong, weak] = [of("0 2 * * *", "./a", "30d"), of("0 2 1 * *", "./b", "1d")];
    const made = (before: DesiredState, after: DesiredState): string[] => unsafeReasons(make(after, recordedOf(before, []), seen()));
    expect(made(strong, weak)).toEqual(["changes expiryGrace of destination.d", "changes path of provider.local", "schedule.n runs less often"]);
    expect(made(weak, strong)).toEqual(["changes path of provider.local"]);
  });

  it("is not safe where a destination would hold another layout: exports to what is there would fail", () => {
    const of = (line: string): DesiredState => desiredOf(`${smallest}${line}`);
    const reasons = (before: string, after: string): string[] => unsafeReasons(make(of(after), recordedOf(of(before), [protection("web")]), seen("web")));
    const incremental = "    incremental: true\n";
    const layout = (name: string): DesiredState => desiredOf(`${smallest}destinations: [{name: d, url: "file:///srv/d", layout: ${name}}]\n`);
    expect(reasons(incremental, "")).toEqual(["changes incremental of schedule.nightly"]);
    expect(reasons("", incremental)).toEqual(["changes incremental of schedule.nightly"]);
    expect(reasons(incremental, incremental)).toEqual([]);
    const made = make(layout("image"), recordedOf(layout("repository"), [protection("web")]), seen("web"));
    expect(unsafeReasons(made)).toEqual(["changes layout of destination.d"]);
  });

  it("counts only what goes for the change: what would have gone anyway keeps no change from being safe", () => {
    const of = (daily: number): DesiredState => desiredOf(`${smallest}    retention: {daily: ${daily}}\n`);
    const days = Array.from({ length: 12 }, (_, i) => String(9 + i).padStart(2, "0"));
    const points = days.flatMap((day) =>
      pointOf(protection("web", { lastSuccessAt: instant(`2026-11-${day}T02:00:00Z`) })).map((point) => ({
        ...point,
        id: day,
        manifestPath: `${day}/manifest.json`,
      })),
    );
    const made = (before: number, after: number): Plan => make(of(after), recordedOf(of(before), [protection("web")], { points }), seen("web"));
    expect(made(7, 9).expiry.mark.length).toBe(3);
    expect(unsafeReasons(made(7, 9))).toEqual([]);
    expect(made(7, 5).expiry.mark.length).toBe(7);
    expect(unsafeReasons(made(7, 5))).toEqual(["schedule.nightly makes 2 restore points expirable", "changes retention of schedule.nightly"]);
  });

  it("takes a policy's priority and rpo, whatever the order of files", () => {
    const policies = desiredOf(
      `${smallest}policies:\n  - {name: a, match: /datacenter/vm/db, schedule: nightly, priority: low, rpo: 2d}\n  - {name: b, match: /datacenter/vm/d*, schedule: nightly, priority: high, rpo: 9d}\n`,
    );
    const due = make(
      policies,
      recordedOf(policies, [
        protection("web", { handledUntil: instant("2026-11-20T02:00:00Z") }),
        protection("db", { handledUntil: instant("2026-11-20T02:00:00Z") }),
      ]),
      seen("web", "db"),
    );
    expect(due.exports.map(({ vmPath, priority }) => [vmPath.slice(15), priority])).toEqual([
      ["db", 75],
      ["web", 50],
    ]);
  });

  it("is drawn as the design draws it", () => {
    const before = desiredOf(`${smallest}    retention: {daily: 7}\n`);
    const after = desiredOf(
      `${smallest.replace('"0 2 * * *"', '"30 1 * * *"')}    retention: {daily: 14}\n  - name: weekly\n    cron: "0 3 * * 0"\n    timezone: Europe/Berlin\n    vms: [/datacenter/vm/db]\n    destination: file:///srv/backups\n`,
    );
    const recorded = recordedOf(before, [protection("web", { handledUntil: instant("2026-11-20T02:00:00Z") }), protection("db")], {
      resources: [...resourcesOf(before), { address: "schedule.old", spec: '{"cron":"0 1 * * *","timezone":"UTC"}', file: "infra/schedules.yaml" }],
    });
    expect(
      renderPlan(make(after, recorded, seen("web", "db")), {
        style: styleOf(false),
        summary: false,
        timezoneOf: (name) => (name === "weekly" ? "Europe/Berlin" : "UTC"),
      }),
    ).toMatchInlineSnapshot(`
      "infrastructure at files without a commit · state 9a1c…  serial 41

        ~ schedule.nightly
            cron         "0 2 * * *" -> "30 1 * * *"
            retention    daily 7 -> daily 14
            next run     Sun 22 Nov 02:00 UTC -> Sun 22 Nov 01:30 UTC

        - schedule.old        because it is no longer in infra/schedules.yaml

        + schedule.weekly
            cron         "0 3 * * 0"
            timezone     "Europe/Berlin"
            destination  "file:///srv/backups"
            format       "qcow2"
            next run     Sun 22 Nov 03:00 CET
            protects     1 VM: /datacenter/vm/db

      Plan: 1 to add, 1 to change, 1 to remove, 1 unchanged. 0 exports due, 0 deferred. 0 restore points expire.
      "
    `);
  });

  it("says of a new destination how long marked restore points stay there, unless that goes without saying", () => {
    const places = ["expiryGrace: 0s", "expiryGrace: 7d"].map((grace, i) => `  - {name: place-${i}, url: "file:///srv/${i}", ${grace}}\n`);
    const text = renderPlan(make(desiredOf(`${smallest}destinations:\n${places.join("")}`), emptyRecorded, seen("web")), {
      style: styleOf(false),
      summary: false,
      timezoneOf: () => "UTC",
    });
    expect(text.match(/^ {6}(layout|expiryGrace).*/gm)).toEqual(['      layout       "image"', "      expiryGrace  0s", '      layout       "image"']);
  });

  it("cannot be made to break out of its Markdown", () => {
    const evil = desiredOf(smallest.replace("nightly", "nightly").replace("/datacenter/vm/*", "/datacenter/vm/```x"));
    const text = planMarkdown(make(evil, emptyRecorded, seen("```x")), () => "UTC");
    expect(text).toContain("\n````text\n");
    expect(text.trimEnd().endsWith("\n````")).toBe(true);
  });

  it("is the same to the byte for shuffled inputs", () => {
    const names = ["web", "db", "mail", "cache", "ci-1", "ci-2"];
    const files = desiredOf(
      `${smallest}    retention: {daily: 2}\n  - {name: extra, cron: "5 * * * *", vms: ["/datacenter/vm/c*"], destination: "file:///srv/backups", initialExport: immediate}\npolicies:\n  - {name: a, match: /datacenter/vm/d*, schedule: nightly, priority: low}\n  - {name: b, match: /datacenter/vm/*, schedule: extra, priority: 60}\n`,
    );
    const points = names.flatMap((name, i) =>
      [1, 2, 3].map(
        (day): RestorePoint => ({
          id: `${name}-${day}`,
          schedule: "nightly",
          provider: "local",
          identity: name,
          vmPath: `/datacenter/vm/${name}` as VmPath,
          destination: "file:///srv/backups",
          destinationUrl: "file:///srv/backups",
          manifestPath: `${name}/${day}`,
          instant: instantOf(Date.UTC(2026, 10, day + 17, 2) + i),
          storedBytes: day,
          state: "good",
          held: false,
        }),
      ),
    );
    const base = {
      desired: files,
      recorded: recordedOf(
        files,
        names.slice(0, 4).map((name) => protection(name)),
        { points },
      ),
      observed: seen(...names.slice(1)),
      revision: null,
      now,
    };
    const expected = JSON.stringify(plan(base));
    const shuffled = <T>(list: readonly T[], order: readonly number[]): T[] =>
      list
        .map((item, i) => ({ item, key: order[i % order.length] ?? 0 }))
        .sort((a, b) => a.key - b.key)
        .map(({ item }) => item);
    fc.assert(
      fc.property(fc.array(fc.nat(1000), { minLength: 7, maxLength: 7 }), (order) => {
        const again = plan({
          ...base,
          desired: { ...files, schedules: shuffled(files.schedules, order), policies: shuffled(files.policies, order) },
          recorded: {
            ...base.recorded,
            points: shuffled(points, order),
            protections: shuffled(base.recorded.protections, order),
            resources: shuffled(base.recorded.resources, order),
          },
          observed: { ...base.observed, vms: shuffled(base.observed.vms, order) },
        });
        expect(JSON.stringify({ ...again, desiredDigest: "" })).toBe(JSON.stringify({ ...JSON.parse(expected), desiredDigest: "" }));
      }),
      { numRuns: 200, seed: 3 },
    );
  });
});
