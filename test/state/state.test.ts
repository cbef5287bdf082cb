import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { mkdirSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import Database from "better-sqlite3";
import { describe, expect, it } from "vitest";
import { instantOf } from "../../src/model/instant.ts";
import type { Clock, Random } from "../../src/model/ports.ts";
import { State } from "../../src/state/state.ts";
import { temporaryFolder } from "../support/cli.ts";

const random: Random = { uuid: randomUUID, fraction: () => 0.5 };
const clock: Clock = { now: () => instantOf(Date.UTC(2026, 10, 21)), sleep: async () => {} };
const entry = (subject: string) => ({ at: clock.now(), type: "test", subject, detail: { n: 1 }, commit: null, author: null });

describe("the state file", () => {
  it("is made with mode 0600, a lineage and serial 0", () => {
    const path = join(temporaryFolder(), "deep", "state.db");
    const state = State.openForWriting(path, random);
    expect(state.lineage).toMatch(/^[0-9a-f-]{36}$/);
    expect(state.serial).toBe(0);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    state.close();
  });

  it("of an earlier version that is only looked at is not damaged for what it has not", () => {
    const path = join(temporaryFolder(), "state.db");
    State.openForWriting(path, random).close();
    const db = new Database(path);
    db.exec("ALTER TABLE protections DROP COLUMN last_disks; PRAGMA user_version = 1");
    db.close();
    const state = State.openForReading(path);
    expect(() => state?.refuseDamaged(() => true)).not.toThrow();
    state?.close();
    const spoilt = new Database(path);
    spoilt.exec("UPDATE meta SET key = 'applied_revision' WHERE key = 'serial'");
    spoilt.close();
    const again = State.openForReading(path);
    expect(() => again?.refuseDamaged(() => true)).toThrow("value of meta is not what was written");
    again?.close();
  });

  it.each([
    ["a folder", (path: string) => mkdirSync(path)],
    ["no database", (path: string) => writeFileSync(path, "hello, this is no database at all, really not one")],
    ["a database of another program", (path: string) => new Database(path).exec("CREATE TABLE x (y)").close()],
    [
      "of a newer version",
      (path: string) => {
        State.openForWriting(path, random).close();
        const db = new Database(path);
        db.pragma("user_version = 99");
        db.close();
      },
    ],
  ])("that is %s is refused", (_, make) => {
    const path = join(temporaryFolder(), "state.db");
    make(path);
    expect(() => State.openForWriting(path, random)).toThrowError(expect.objectContaining({ code: "StateUnusable" }) as Error);
    expect(() => State.openForReading(path)).toThrowError(expect.objectContaining({ code: "StateUnusable" }) as Error);
  });

  it("has an audit chain that shows a changed, a removed and an inserted row", () => {
    for (const tamper of [
      "UPDATE events SET subject = 'x' WHERE seq = 2",
      "DELETE FROM events WHERE seq = 2",
      "UPDATE events SET seq = 9 WHERE seq = 3",
      "DELETE FROM events WHERE seq = 3",
    ]) {
      const path = join(temporaryFolder(), "state.db");
      const state = State.openForWriting(path, random);
      for (const subject of ["a", "b", "c"]) state.writeUnlocked(() => state.audit.append(entry(subject)));
      expect(state.audit.verify()).toMatchObject({ rows: 3, brokenAt: undefined });
      const other = new Database(path);
      other.exec(tamper);
      other.close();
      expect(state.audit.verify().brokenAt).toBeDefined();
      state.close();
    }
  });

  it("lets one process at a time hold a lease, and tells the other who does", async () => {
    const path = join(temporaryFolder(), "state.db");
    const [one, two] = [State.openForWriting(path, random), State.openForWriting(path, random)];
    const lease = await one.take("reconcile", "apply", 0, clock, random);
    await expect(two.take("reconcile", "apply", 0, clock, random)).rejects.toMatchObject({
      code: "LockHeld",
      message: expect.stringContaining(`pid ${process.pid}`) as string,
    });
    one.writeUnlocked(() => one.leases.release(lease));
    await expect(two.take("reconcile", "apply", 0, clock, random)).resolves.toBeDefined();
    one.close();
    two.close();
  });

  it("is begun by several processes at once, and all of them get it", async () => {
    const folder = temporaryFolder();
    const at = Date.now() + 1500;
    const code = `
      const { State } = await import(${JSON.stringify(join(import.meta.dirname, "../../src/state/state.ts"))});
      for (let i = 0; i < 20; i++) {
        while (Date.now() < ${at} + i * 50);
        State.openForWriting(${JSON.stringify(folder)} + "/" + i + ".db", { uuid: () => crypto.randomUUID(), fraction: Math.random }).close();
      }`;
    const processes = Array.from({ length: 3 }, () => promisify(execFile)(process.execPath, ["--input-type=module", "-e", code]));
    await Promise.all(processes);
    expect(readdirSync(folder).filter((name) => name.endsWith(".db"))).toHaveLength(20);
  });

  it("takes a lease over from a process that is gone", async () => {
    const path = join(temporaryFolder(), "state.db");
    const dead = State.openForWriting(path, random);
    await dead.take("reconcile", "apply", 0, clock, random);
    dead.close();
    const next = State.openForWriting(path, random);
    await expect(next.take("reconcile", "apply", 0, clock, random)).resolves.toBeDefined();
    next.close();
  });

  it("stops a process whose lock was broken from writing", async () => {
    const path = join(temporaryFolder(), "state.db");
    const [sleeper, other] = [State.openForWriting(path, random), State.openForWriting(path, random)];
    const lease = await sleeper.take("reconcile", "apply", 0, clock, random);
    other.writeUnlocked(() => other.leases.break(lease.token));
    expect(() => sleeper.write(lease, () => sleeper.configuration.setMeta("serial", "7"))).toThrowError(
      expect.objectContaining({ code: "LeaseLost" }) as Error,
    );
    expect(other.serial).toBe(0);
    sleeper.close();
    other.close();
  });
});
