import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { hypersdk, workTree } from "../support/cli.ts";
import { KiB } from "../support/disks.ts";
import { result } from "../support/schemas.ts";

/** A night of two schedules, over the autumn's change of the clock; the second waits for the first and for its window. */
function night(): string {
  const folder = workTree(`version: v2
providers: [{name: lab, type: local, path: ./machines, root: /lab}]
defaults: {timezone: Europe/Berlin}
schedules:
  - {name: databases, cron: "30 2 * * *", vms: [/lab/db-*], destination: "file:./exports", concurrency: 1}
  - name: web
    cron: "45 2 * * *"
    vms: [/lab/web]
    destination: file:./exports
    dependsOn: [{schedule: databases}]
    windows: [{start: "03:00", end: "05:00"}]
  - {name: later, cron: "0 0 1 1 *", vms: [/lab/web], destination: "file:./exports"}
`);
  for (const vm of ["db-1", "db-2", "web"]) {
    mkdirSync(join(folder, "machines", vm), { recursive: true });
    writeFileSync(join(folder, "machines", vm, "disk.raw"), Buffer.alloc(600 * KiB, 1));
  }
  return folder;
}

const span = ["--from", "2026-10-24T12:00:00Z", "--to", "2026-10-25T12:00:00Z", "--provider-speed", "1KiB/s"];

interface Simulated {
  readonly timeline: readonly { schedule: string; vmPath: string; fireTime: string; started: string | null; outcome: string; reasons: string[] }[];
  readonly schedules: readonly { schedule: string; runs: number }[];
}

describe("simulate", () => {
  it("tells when each run starts, for what it waits, and what comes of each schedule", async () => {
    const folder = night();
    const { timeline, schedules } = result<Simulated>((await hypersdk(folder, ["simulate", ...span, "--json"])).stdout);
    // 02:30 is there twice: the first counts. A disk takes ten minutes, and one at a time may run.
    expect(
      timeline.map(({ schedule, vmPath, fireTime, started, reasons }) => [schedule, vmPath, fireTime.slice(11, 16), started?.slice(11, 16), ...reasons]),
    ).toMatchInlineSnapshot(`
      [
        [
          "databases",
          "/lab/db-1",
          "00:30",
          "00:30",
        ],
        [
          "databases",
          "/lab/db-2",
          "00:30",
          "00:40",
          "waited for a place",
        ],
        [
          "web",
          "/lab/web",
          "00:45",
          "02:00",
          "waits for databases to be completed: 1 of 2 runs have not ended",
          "waits for its window",
        ],
      ]
    `);
    expect(schedules).toMatchObject([
      { schedule: "databases", runs: 2, completed: 2 },
      { schedule: "later", runs: 0 },
      { schedule: "web", runs: 1, completed: 1 },
    ]);
  });

  it("tells of one schedule alone, with what the others do to it", async () => {
    const folder = night();
    const { timeline } = result<Simulated>((await hypersdk(folder, ["simulate", ...span, "--schedule", "web", "--json"])).stdout);
    expect(timeline).toMatchObject([{ schedule: "web", started: expect.stringContaining("T02:00") as string }]);
    const { stdout } = await hypersdk(folder, ["simulate", ...span, "--schedule", "web"]);
    expect(stdout).toMatchInlineSnapshot(`
      "fires                  starts   ends     schedule  VM
      Sun 25 Oct 02:45 CEST  +1h 15m  +1h 25m  web       /lab/web  completed  waits for databases to be completed: 1 of 2 runs have not ended; waits for its window

      1 run: 1 completed, 0 missed, 0 not ended by then. The longest wait was 1h 15m.
      In all, 4 protections: at most 1 export at once (Sun 25 Oct 00:30 UTC), at most 1 waiting for a place.
      "
    `);
    expect(await hypersdk(folder, ["simulate", "--schedule", "databasse"])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('did you mean "databases"?') as string,
    });
  });
});

/** A night that never comes to its end: schedules that wait for what cannot be. */
const futile = `version: v2
providers: [{name: lab, type: local, path: ./machines, root: /lab}]
schedules:
  - {name: gap, vms: [/lab/web], destination: "file:./exports", cron: "0 1 * * *", timezone: Europe/Berlin, windows: [{start: "02:15", end: "02:45"}]}
  - {name: off, vms: [/lab/web], destination: "file:./exports", cron: "0 1 * * *", suspend: true}
  - {name: after-off, vms: [/lab/web], destination: "file:./exports", cron: "0 2 * * *", dependsOn: [{schedule: off}]}
  - {name: late, vms: [/lab/web], destination: "file:./exports", cron: "0 1 * * *", windows: [{start: "06:00", end: "07:00"}]}
  - {name: after-late, vms: [/lab/web], destination: "file:./exports", cron: "30 5 * * *", dependsOn: [{schedule: late, timeout: 10m}]}
  - {name: then, vms: [/lab/web], destination: "file:./exports", cron: "30 5 * * *", dependsOn: [{schedule: late, timeout: 1h}]}
`;

describe("schedule preview", () => {
  it("promises no start that the simulator does not make", async () => {
    const folder = workTree(futile);
    mkdirSync(join(folder, "machines", "web"), { recursive: true });
    writeFileSync(join(folder, "machines", "web", "disk.raw"), "data");
    const [from, to] = ["2027-03-27T00:00:00Z", "2027-03-30T00:00:00Z"];
    const simulated = result<Simulated>((await hypersdk(folder, ["simulate", "--from", from, "--to", to, "--json"])).stdout).timeline;
    for (const name of ["gap", "after-off", "late", "after-late", "then"]) {
      const { stdout } = await hypersdk(folder, ["schedule", "preview", name, "--from", from, "--count", "2", "--json"]);
      const items = result<{ items: { fireTime: string; starts: string | null }[] }>(stdout).items;
      for (const { fireTime, starts } of items) {
        const started = simulated.find((run) => run.schedule === name && run.fireTime === fireTime)?.started;
        // what it waits for takes a millisecond
        expect([name, fireTime, starts?.slice(0, 16)]).toEqual([name, fireTime, started?.slice(0, 16)]);
      }
    }
  });

  it("answers at once, however many ways lead to what it depends on", async () => {
    const layers = Array.from({ length: 40 }, (_, i) =>
      ["a", "b"].map(
        (side) =>
          `  - {name: s${i}${side}, cron: "0 0 * * *", vms: [/lab/web], destination: "file:./exports"${i === 0 ? "" : `, dependsOn: [{schedule: s${i - 1}a}, {schedule: s${i - 1}b}]`}}\n`,
      ),
    );
    const folder = workTree(`version: v2\nschedules:\n${layers.flat().join("")}`);
    expect(await hypersdk(folder, ["schedule", "preview", "s39a", "--count", "1"])).toMatchObject({
      code: 0,
      stdout: expect.stringContaining("s38b of") as string,
    });
  });

  it("of files that are not valid says that they are not", async () => {
    const folder = workTree('version: v2\nschedules: [{name: x, cron: "0 25 * * *", vms: [/lab/web], destination: "file:./exports"}]\n');
    expect(await hypersdk(folder, ["schedule", "preview", "x"])).toMatchObject({ code: 3, stderr: expect.stringContaining("hypersdk validate") as string });
  });

  it("says when it fires, when it starts and why then", async () => {
    const { stdout } = await hypersdk(night(), ["schedule", "preview", "web", "--from", "2026-10-24T12:00:00Z", "--count", "3"]);
    expect(stdout).toMatchInlineSnapshot(`
      "fires                  starts                window       because                                                                             after
      Sun 25 Oct 02:45 CEST  Sun 25 Oct 03:00 CET  03:00-05:00  the clock goes back over its time: the first of two; its window opens 1h 15m later  databases of Sun 25 Oct 02:30 CEST completed
      Mon 26 Oct 02:45 CET   Mon 26 Oct 03:00 CET  03:00-05:00  its window opens 15m later                                                          databases of Mon 26 Oct 02:30 CET completed
      Tue 27 Oct 02:45 CET   Tue 27 Oct 03:00 CET  03:00-05:00  its window opens 15m later                                                          databases of Tue 27 Oct 02:30 CET completed
      "
    `);
  });
});
