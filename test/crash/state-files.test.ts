import { randomUUID } from "node:crypto";
import { copyFileSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { instantOf } from "../../src/model/instant.ts";
import type { Clock, Random } from "../../src/model/ports.ts";
import { State } from "../../src/state/state.ts";
import { temporaryFolder } from "../support/cli.ts";

const random: Random = { uuid: randomUUID, fraction: () => 0.5 };
const clock: Clock = { now: () => instantOf(Date.UTC(2026, 10, 21)), sleep: async () => {} };
/** Each sector with `npm run test:crash`. */
const stride = process.env["CRASH"] === "whole" ? 512 : 512 * 23;
const transactions = 60;

/** Audit rows, a lease and a marker that says how many there are, in one transaction each. */
async function work(path: string, after: (committed: number) => void): Promise<void> {
  const state = State.openForWriting(path, random);
  const lease = await state.take("reconcile", "a test", 0, clock, random);
  for (let i = 1; i <= transactions; i++) {
    state.write(lease, () => {
      state.configuration.setMeta("serial", String(i));
      state.audit.append({ at: clock.now(), type: "test", subject: String(i), detail: { text: "x".repeat(i * 7) }, commit: null, author: null });
    });
    after(i);
  }
  // left as a process leaves it that is killed: the log is not written back
}

it("a state whose write-ahead log was cut, torn or zeroed anywhere opens, with some number of whole transactions and an audit chain that holds", {
  timeout: 3_600_000,
}, async () => {
  const folder = temporaryFolder();
  const path = join(folder, "state.db");
  /** The log's length behind each transaction. */
  const lengths: number[] = [];
  await work(path, () => lengths.push(readFileSync(`${path}-wal`).length));
  const [db, wal] = [readFileSync(path), readFileSync(`${path}-wal`)];
  expect(wal.length).toBeGreaterThan(50_000);
  const losses: readonly (readonly [string, (at: number) => Buffer])[] = [
    ["cut", (at) => wal.subarray(0, at)],
    ["zeroed", (at) => Buffer.concat([wal.subarray(0, at), Buffer.alloc(wal.length - at)])],
    // one sector did not reach the disk, those behind it did
    ["with a hole", (at) => Buffer.concat([wal.subarray(0, at), Buffer.alloc(Math.min(512, wal.length - at)), wal.subarray(Math.min(wal.length, at + 512))])],
  ];
  const copy = join(folder, "copy.db");
  for (let at = 0; at <= wal.length; at += stride)
    for (const [how, loss] of losses) {
      for (const name of [copy, `${copy}-wal`, `${copy}-shm`]) rmSync(name, { force: true });
      writeFileSync(copy, db);
      writeFileSync(`${copy}-wal`, loss(at));
      const state = State.openForWriting(copy, random);
      const { brokenAt, rows } = state.audit.verify();
      // what was committed and synced before the damage is there, and nothing is half there
      const whole = lengths.filter((length) => length <= at).length;
      expect([how, at, brokenAt, state.serial === rows, state.serial >= whole]).toEqual([how, at, undefined, true, true]);
      state.close();
    }
});

it("the files beside a state that a killed process leaves, damaged or not, stop nobody", { timeout: 180_000 }, async () => {
  const folder = temporaryFolder();
  const path = join(folder, "state.db");
  await work(path, () => {});
  const locks = `${path}.locks`;
  expect(readdirSync(locks).length).toBeGreaterThan(0);
  const there = join(folder, "there");
  for (const damage of [(): Buffer => Buffer.alloc(0), (): Buffer => Buffer.from("no database"), (): Buffer => Buffer.alloc(4096, 0xff)]) {
    const copy = `${there}-${randomUUID().slice(0, 4)}.db`;
    for (const ending of ["", "-wal"]) copyFileSync(path + ending, copy + ending);
    // shared memory is made from the log, whatever is in it
    writeFileSync(`${copy}-shm`, damage());
    const state = State.openForWriting(copy, random);
    expect([state.serial, state.audit.verify().brokenAt]).toEqual([transactions, undefined]);
    // the lease of a holder whose lock is no lock is free
    for (const { holder } of state.leases.list()) if (existsSync(`${copy}.locks`)) writeFileSync(join(`${copy}.locks`, `${holder}.lock`), damage());
    const lease = await state.take("reconcile", "the next one", 0, clock, random);
    expect(state.leases.list().map(({ token }) => token)).toContain(lease.token);
    state.close();
  }
});
