import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import type { Destination } from "../../src/destinations/destination.ts";
import type { EngineContext } from "../../src/engine/context.ts";
import type { EngineEvent } from "../../src/engine/events.ts";
import { type Reconciled, reconcile } from "../../src/engine/reconcile.ts";
import { HypersdkError } from "../../src/model/errors.ts";
import { type Instant, instantOf } from "../../src/model/instant.ts";
import type { VmPath } from "../../src/model/vm-path.ts";
import { State } from "../../src/state/state.ts";
import { memoryDestination } from "../fakes/memory-destination.ts";
import { memoryProvider } from "../fakes/memory-provider.ts";
import { temporaryFolder } from "../support/cli.ts";
import { desiredOf } from "../support/desired.ts";
import { bytes } from "../support/disks.ts";

const yaml = `version: v2\nschedules:\n  - {name: nightly, cron: "0 * * * *", vms: ["/datacenter/vm/*"], destination: "file:///srv/backups", verify: checksum, initialExport: immediate}\n`;
const disks = new Map([["a", bytes(64 * 1024, 1)]]);

/** A state, a store in memory, and one pass over them after the other, each in a process of its own. */
function installation() {
  const random = { uuid: randomUUID, fraction: () => 0.5 };
  const state = State.openForWriting(join(temporaryFolder(), "state.db"), random);
  onTestFinished(() => state.close());
  const files = new Map<string, Buffer>();
  let nowMs = Date.parse("2026-03-27T12:00:00Z");
  const now = (): Instant => instantOf(nowMs);
  const provider = memoryProvider(disks);
  const pass = async (
    on: (event: EngineEvent, stop: () => void) => void,
    broken: (destination: Destination) => Destination,
    desired = desiredOf(yaml),
  ): Promise<Pass> => {
    const interrupt = new AbortController();
    const events: EngineEvent[] = [];
    const context: EngineContext = {
      state,
      clock: {
        now,
        async sleep(ms) {
          nowMs += ms;
        },
      },
      random,
      toolVersion: "0",
      openProvider: async () => ({
        ...provider,
        name: "local",
        async inventory() {
          const { vms, problems } = await provider.inventory();
          return { problems, vms: vms.map((vm) => ({ ...vm, provider: "local", path: `/datacenter/vm/${vm.identity}` as VmPath })) };
        },
        snapshot: async (identity) => ({ ...(await provider.snapshot(identity)), instant: now() }),
      }),
      openDestination: async (spec) => broken(memoryDestination(spec, files)),
      emit(event) {
        events.push(event);
        on(event, () => interrupt.abort(new Error("interrupted")));
      },
      signal: interrupt.signal,
      revision: null,
      adopt: false,
    };
    const done = await reconcile(desired, context, { lockTimeoutMs: 0, parallelism: undefined, exports: true, approve: async (plan) => plan });
    return { done, types: events.map(({ type }) => type).filter((type) => type.startsWith("export_") && type !== "export_progress"), events };
  };
  return { state, pass, files };
}

/** An installation whose first export was published, and interrupted in its proof. */
async function interruptedInItsProof() {
  const made = installation();
  const first = await made.pass(
    ({ type }, stop) => {
      if (type === "export_verifying") stop();
    },
    (destination) => destination,
  );
  return { ...made, first };
}

const quietly = (): void => {};
const asItIs = (destination: Destination): Destination => destination;

interface Pass {
  readonly done: Reconciled;
  readonly types: readonly string[];
  readonly events: readonly EngineEvent[];
}

describe("an export whose lock is broken while it works", () => {
  it("publishes nothing", async () => {
    const { state, pass, files } = installation();
    const breaking = pass(({ type }) => {
      if (type === "disk_stored") for (const { holder } of state.leases.list()) state.leases.break(holder);
    }, asItIs);
    await expect(breaking).rejects.toMatchObject({ code: "LeaseLost" });
    expect([...files.keys()].filter((path) => path.endsWith("manifest.json"))).toEqual([]);
    expect(state.artifacts.list()).toEqual([]);
    // the run is not lost
    expect((await pass(quietly, asItIs)).done).toMatchObject({ completed: 1 });
  });
});

describe("a destination that is unmounted while an export writes", () => {
  it("is no place of a restore point: the next attempt makes it", async () => {
    const { state, pass, files } = installation();
    let stored = 0;
    const { types, events } = await pass(({ type }) => {
      // in its place is a folder that takes everything, and has nothing of what was there
      if (type === "disk_stored" && stored++ === 0) files.delete("hypersdk-destination.json");
    }, asItIs);
    expect(types.filter((type) => type !== "export_verifying")).toEqual(["export_started", "export_retried", "export_started", "export_completed"]);
    expect(events.find(({ type }) => type === "export_retried")).toMatchObject({ code: "DestinationUnreachable" });
    expect(state.artifacts.list()).toHaveLength(1);
  });
});

describe("a point that is published and not yet proved", () => {
  it("is not exported again when the store is away for a moment: it is proved at the next attempt", async () => {
    const { state, pass } = installation();
    let verified = 0;
    const { done, types } = await pass(
      ({ type }) => {
        if (type === "export_verifying") verified++;
      },
      (destination) => ({
        ...destination,
        async open(path) {
          if (verified === 1) throw new HypersdkError("DestinationUnreachable", "the store is away");
          return destination.open(path);
        },
      }),
    );
    expect(types).toEqual(["export_started", "export_verifying", "export_retried", "export_verifying", "export_completed"]);
    expect(done).toMatchObject({ completed: 1, failed: [] });
    expect(state.artifacts.list()).toHaveLength(1);
    expect(state.runs.list(10)).toMatchObject([{ state: "completed", attempts: 2 }]);
  });

  it("stays open when it is interrupted, and the next apply proves it", async () => {
    const { state, pass, first } = await interruptedInItsProof();
    expect(first.types).toEqual(["export_started", "export_verifying", "export_interrupted"]);
    expect(first.done.interrupted).toHaveLength(1);
    expect(state.runs.list(10)).toMatchObject([{ state: "verifying" }]);
    // nobody may count on it, least of all retention
    expect(state.artifacts.list()).toMatchObject([{ state: "unproved" }]);
    const second = await pass(quietly, asItIs);
    expect(second.types).toEqual(["export_verifying", "export_completed"]);
    expect(second.events).toContainEqual(expect.objectContaining({ type: "run_recovered", outcome: "completed" }));
    expect(state.artifacts.list()).toMatchObject([{ state: "good" }]);
    expect(state.runs.list(10)).toMatchObject([{ state: "completed" }]);
  });

  it("is left for later while its destination is not mounted", async () => {
    const { state, pass } = await interruptedInItsProof();
    const empty = new Map<string, Buffer>();
    const { done, events } = await pass(quietly, ({ spec }) => memoryDestination(spec, empty));
    expect(done).toMatchObject({ completed: 0, failed: [] });
    expect(events).toContainEqual(expect.objectContaining({ type: "warning", code: "DestinationUnreachable" }));
    expect(state.runs.list(10)).toMatchObject([{ state: "verifying" }]);
    expect(empty.size).toBe(0);
    expect((await pass(quietly, asItIs)).types).toEqual(["export_verifying", "export_completed"]);
  });

  it("is bad when its manifest is found damaged, and its run is made anew", async () => {
    const { state, pass, files } = await interruptedInItsProof();
    const manifest = [...files.keys()].find((path) => path.endsWith("manifest.json")) as string;
    files.set(manifest, Buffer.from("garbage"));
    const { done, types } = await pass(quietly, asItIs);
    expect(types).toEqual(["export_started", "export_verifying", "export_completed"]);
    expect(done).toMatchObject({ completed: 1, failed: [] });
    // made within the same second, it lies where the damaged one lay
    expect(state.artifacts.list()).toMatchObject([{ state: "good" }]);
  });

  it("stops an apply that is told to stop while it proves: nothing else of the plan is done", async () => {
    const { state, pass } = await interruptedInItsProof();
    const serial = state.serial;
    await expect(
      pass(
        ({ type }, stop) => {
          if (type === "export_verifying") stop();
        },
        asItIs,
        desiredOf(yaml.replace("0 * * * *", "30 * * * *")),
      ),
    ).rejects.toThrow("interrupted");
    expect(state.serial).toBe(serial);
    expect(state.runs.list(10)).toMatchObject([{ state: "verifying" }]);
  });

  it("is bad when it is found damaged, and its run has failed", async () => {
    const { state, pass } = installation();
    let isStored = false;
    const { types } = await pass(
      ({ type }) => {
        isStored ||= type === "export_verifying";
      },
      (destination) => ({
        ...destination,
        async open(path) {
          const file = await destination.open(path);
          return isStored ? { ...file, sizeBytes: file.sizeBytes - 1 } : file;
        },
      }),
    );
    expect(types).toEqual(["export_started", "export_verifying", "export_failed"]);
    expect(state.artifacts.list()).toMatchObject([{ state: "bad" }]);
  });
});
