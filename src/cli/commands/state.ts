import { resolve } from "node:path";
import { HypersdkError } from "../../model/errors.ts";
import { parsePattern } from "../../model/pattern.ts";
import { State } from "../../state/state.ts";
import { plural } from "../../ui/plan-view.ts";
import { printable } from "../../ui/style.ts";
import { renderTable } from "../../ui/table.ts";
import { clock, random } from "../compose.ts";
import type { Io } from "../io.ts";
import { load, loadIfPossible, type SourceOptions, statePathFor } from "../load.ts";
import { isRecordedSpec } from "../recorded-spec.ts";

/** For commands that read: the state file of where we are, or a word that there is none. */
export async function readState<T>(options: SourceOptions, io: Io, work: (state: State) => T): Promise<T> {
  const statePath = await statePathFor(options, io.env, io.cwd);
  const state = State.openForReading(statePath);
  if (!state) throw new HypersdkError("NotFound", `there is no state file yet at ${statePath}`, { hint: "hypersdk apply makes it" });
  try {
    return work(state);
  } finally {
    state.close();
  }
}

export function list(options: SourceOptions, io: Io): Promise<number> {
  return readState(options, io, (state) => {
    const addresses = state.configuration.resources().map(({ address }) => address);
    if (io.json) io.result("state-list", { lineage: state.lineage, serial: state.serial, resources: addresses });
    else io.out(addresses.map((address) => `${address}\n`).join(""));
    return 0;
  });
}

export function show(address: string, options: SourceOptions, io: Io): Promise<number> {
  return readState(options, io, (state) => {
    const found = state.configuration.resources().find((each) => each.address === address);
    if (!found) throw new HypersdkError("NotFound", `the state has no ${JSON.stringify(address)}`, { hint: "hypersdk state list names what it has" });
    const spec = JSON.parse(found.spec) as object;
    if (io.json) io.result("state-show", { address, file: found.file, spec });
    else io.out(`${address}  from ${found.file}\n${JSON.stringify(spec, null, 2)}\n`);
    return 0;
  });
}

export async function backup(target: string, options: SourceOptions, io: Io): Promise<number> {
  const { statePath } = await load(options, io.env, io.cwd);
  const state = State.openForReading(statePath);
  if (!state) throw new HypersdkError("NotFound", `there is no state file yet at ${statePath}`);
  try {
    // a rotation of backups must not replace the last sound one
    state.refuseDamaged(isRecordedSpec);
    await state.backup(resolve(io.cwd, target));
  } finally {
    state.close();
  }
  if (io.json) io.result("state-backup", { file: target });
  else io.out(`${target}: a consistent copy of ${statePath}\n`);
  return 0;
}

/** Drops missing VMs from the protections, so that they are counted and alerted no more. Their restore points stay. */
export async function forget(pattern: string, options: SourceOptions, io: Io): Promise<number> {
  const matcher = parsePattern(pattern);
  if (typeof matcher === "string") throw new HypersdkError("Usage", `${JSON.stringify(pattern)} is no VM pattern: ${matcher}`);
  const { statePath, revision } = await load(options, io.env, io.cwd);
  const state = State.openForWriting(statePath, random);
  try {
    const gone = state.configuration.protections().filter((each) => matcher.matches(each.vmPath));
    const present = gone.filter((each) => each.state !== "missing");
    if (present.length > 0)
      throw new HypersdkError("Failed", `${present[0]?.vmPath} was not missing when the providers were last asked by apply or watch`, {
        hint: "where it is gone since, apply comes first; one that is there is excluded in the files",
      });
    if (gone.length === 0) throw new HypersdkError("NotFound", `no missing VM matches ${pattern}`);
    const lease = await state.take("reconcile", "state forget", 0, clock, random);
    state.write(lease, () => {
      for (const each of gone) {
        state.configuration.endProtection(each);
        state.audit.append({
          at: clock.now(),
          type: "protection.forgotten",
          subject: `${each.schedule}:${each.vmPath}`,
          detail: {},
          commit: revision?.commit ?? null,
          author: null,
        });
      }
      state.leases.release(lease);
    });
    if (io.json) io.result("state-forget", { forgotten: gone.map(({ schedule, vmPath }) => ({ schedule, vmPath })) });
    else io.out(`${plural(gone.length, "protection")} forgotten; restore points stay\n`);
    return 0;
  } finally {
    state.close();
  }
}

export function lockShow(options: SourceOptions, io: Io): Promise<number> {
  return readState(options, io, (state) => {
    const rows = state.leases.list();
    if (io.json)
      io.result("lock-show", {
        locks: rows.map(({ scope, holder, host, pid, operation, since, alive }) => ({ scope, holder, host, pid, operation, since, alive })),
      });
    else if (rows.length === 0) io.out("no lock is held\n");
    else
      io.out(
        renderTable(
          ["id", "scope", "operation", "host", "pid", "since", "alive"],
          rows.map((row) => [row.holder, row.scope, row.operation, row.host, String(row.pid), row.since, row.alive ? "yes" : "no"]),
        ),
      );
    return 0;
  });
}

export async function forceUnlock(id: string, options: SourceOptions, io: Io): Promise<number> {
  const statePath = await statePathFor(options, io.env, io.cwd);
  const state = State.openForWriting(statePath, random);
  try {
    const count = state.writeUnlocked(() => {
      const broken = state.leases.break(id);
      if (broken > 0) state.audit.append({ at: clock.now(), type: "lock.broken", subject: id, detail: { locks: broken }, commit: null, author: null });
      return broken;
    });
    if (count === 0) throw new HypersdkError("NotFound", `no lock has the id ${JSON.stringify(id)}`, { hint: "hypersdk lock show lists them" });
    if (io.json) io.result("force-unlock", { broken: count });
    else io.out(`${plural(count, "lock")} broken; the process that held ${count === 1 ? "it" : "them"} cannot write any more\n`);
    return 0;
  } finally {
    state.close();
  }
}

/** `suspend` and `resume`: an override in the state, shown in every plan, until it is taken back. */
export async function setSuspended(name: string, suspended: boolean, options: SourceOptions, io: Io): Promise<number> {
  const { statePath, desired, revision } = await loadIfPossible(options, io.env, io.cwd, (reason) =>
    io.err(`${io.errStyle.yellow("warning")}: ${printable(reason)}\n`),
  );
  const state = State.openForWriting(statePath, random);
  try {
    const known = new Set([
      ...state.configuration
        .resources()
        .filter(({ address }) => address.startsWith("schedule."))
        .map(({ address }) => address.slice("schedule.".length)),
      ...(desired?.schedules ?? []).map((each) => each.name),
      ...state.configuration.suspensions(),
    ]);
    if (!known.has(name))
      throw new HypersdkError("NotFound", `no schedule is named "${name}"`, { hint: `schedules: ${[...known].sort().slice(0, 10).join(", ") || "none"}` });
    const at = clock.now();
    const changed = state.writeUnlocked(() => {
      const changed = suspended ? state.configuration.suspend(name, at) : state.configuration.resume(name);
      // fire times that passed meanwhile are not made up for
      if (changed && !suspended) state.configuration.restartSchedule(name, at);
      if (changed)
        state.audit.append({
          at,
          type: suspended ? "schedule.suspended" : "schedule.resumed",
          subject: name,
          detail: {},
          commit: revision?.commit ?? null,
          author: null,
        });
      return changed;
    });
    const word = suspended ? "suspended" : "resumed";
    if (io.json) io.result(suspended ? "suspend" : "resume", { schedule: name, changed });
    else io.out(changed ? `${name} is ${word}\n` : suspended ? `${name} was suspended already\n` : `${name} was not suspended by command\n`);
    return 0;
  } finally {
    state.close();
  }
}
