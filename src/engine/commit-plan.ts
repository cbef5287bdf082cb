import type { DesiredState, ScheduleSpec } from "../model/desired.ts";
import { HypersdkError } from "../model/errors.ts";
import { epochMsOf, type Instant, instantOf } from "../model/instant.ts";
import type { Plan, PlannedExport, Revision } from "../plan/plan.ts";
import { fireTimes } from "../schedule/cron.ts";
import type { Lease } from "../state/leases.ts";
import type { RunRow } from "../state/runs.ts";
import type { EngineContext } from "./context.ts";
import { runNameOf } from "./events.ts";

/**
 * Everything of a plan that has no effect outside the state, in one transaction: changes, protections, expiry marks, skipped
 * fire times, the runs that are about to start, their audit rows and the new serial. A half-applied revision does not exist.
 * @throws PlanStale when the state moved since the plan was made
 */
export function commitPlan(plan: Plan, desired: DesiredState, lease: Lease, context: EngineContext): void {
  const { state, random, revision, emit } = context;
  const { configuration, runs, artifacts } = state;
  const at = plan.at;
  const audit = (type: string, subject: string, detail: unknown): void =>
    state.audit.append({ at, type, subject, detail, commit: revision?.commit ?? null, author: revision?.author ?? null });
  const isChange = plan.changes.length + plan.protections.length > 0;
  const skipped: { readonly run: RunRow; readonly reason: string }[] = [];
  state.write(lease, () => {
    if (state.serial !== plan.serial)
      throw new HypersdkError("PlanStale", `the state moved from serial ${plan.serial} to ${state.serial} since the plan was made`, {
        hint: "make a new plan",
      });
    const serial = isChange ? plan.serial + 1 : plan.serial;
    for (const change of plan.changes) {
      if (change.kind === "delete") configuration.removeResource(change.address);
      else configuration.setResource(change.address, change.after, change.file, serial);
      audit(`config.${change.kind}`, change.address, change.kind === "update" ? { fields: change.fields } : { file: change.file });
    }
    for (const protection of plan.protections) {
      switch (protection.kind) {
        case "begin":
          configuration.beginProtection(protection, protection.vmPath, at);
          break;
        case "end":
          configuration.endProtection(protection);
          break;
        case "missing":
          configuration.setProtectionState(protection, "missing");
          break;
        case "found":
          configuration.setProtectionState(protection, "active");
          break;
        case "renamed":
          configuration.renameProtection(protection, protection.vmPath);
          break;
        case "restarted":
          configuration.restartProtection(protection, at);
          break;
      }
      audit(`protection.${protection.kind}`, `${protection.schedule}:${protection.vmPath}`, {});
    }
    for (const { point, expiresAt, rule } of plan.expiry.mark) {
      artifacts.mark(point, expiresAt, rule);
      audit("point.marked", point, { expiresAt, rule });
    }
    for (const { point, reason } of plan.expiry.withdraw) {
      artifacts.withdraw(point);
      audit("point.kept", point, { reason });
    }
    const schedules = new Map(desired.schedules.map((schedule) => [schedule.name, schedule]));
    const urls = new Map(desired.destinations.map(({ name, url }) => [name, url]));
    const open = Map.groupBy(
      runs.open().filter(({ kind, state: now }) => kind === "scheduled" && now === "queued"),
      keyOf,
    );
    const enqueue = (each: PlannedExport) => {
      const run = runs.enqueue({ ...each, id: random.uuid(), kind: "scheduled", destinationUrl: urls.get(each.destination) ?? "" }, at);
      for (const older of open.get(keyOf(run)) ?? []) {
        if (older.fireTime >= run.fireTime) continue;
        runs.end(older.id, "skipped", at, { code: "Superseded", message: `superseded by the fire time ${run.fireTime}` });
        audit("run.skipped", `${older.schedule}:${older.vmPath}`, { fireTime: older.fireTime, reason: "superseded" });
        skipped.push({ run: older, reason: `superseded by the fire time ${run.fireTime}` });
      }
      return run;
    };
    for (const each of plan.skipped) {
      const run = enqueue(each);
      runs.end(run.id, "skipped", at, { code: "Skipped", message: each.reason });
      configuration.markHandled(each, each.fireTime);
      audit("run.skipped", `${each.schedule}:${each.vmPath}`, { fireTime: each.fireTime, reason: each.reason });
      skipped.push({ run, reason: each.reason });
    }
    for (const due of plan.exports) enqueue(due);
    // a first export that has to wait is no fire time of the cron: without a run nobody would know of it
    const begun = new Set(plan.protections.filter(({ kind }) => kind === "begin").map(keyOf));
    for (const deferred of plan.deferred) if (begun.has(keyOf(deferred))) enqueue(deferred);
    for (const each of [...plan.exports, ...plan.deferred, ...plan.skipped]) {
      const run = recordSuperseded(each, schedules.get(each.schedule) as ScheduleSpec, urls.get(each.destination) ?? "", context, at);
      if (run) skipped.push({ run, reason: `superseded by the fire time ${each.fireTime}` });
    }
    cancelRunsWithoutProtection(plan, context);
    if (isChange) configuration.setMeta("serial", String(serial));
    const applied = JSON.parse(configuration.meta("applied_revision") ?? "null") as ({ readonly at: Instant } & Partial<Revision>) | null;
    const isSame = applied !== null && !isChange && applied.commit === revision?.commit && applied.dirty === revision?.dirty;
    configuration.setMeta("applied_revision", JSON.stringify({ ...revision, at: isSame ? applied.at : at }));
    if (isChange) audit("config.applied", revision?.commit ?? "work tree", { serial, changes: plan.changes.length, protections: plan.protections.length });
  });
  for (const { run, reason } of skipped) emit({ type: "export_skipped", run: runNameOf(run), reason });
  if (isChange) emit({ type: "config_applied", serial: state.serial, changes: plan.changes.length, protections: plan.protections.length });
}

/**
 * The fire time before, where nothing ever ran for it: whoever depends on it need not wait, and the history says what became of it.
 * @returns what was recorded
 */
function recordSuperseded(
  each: PlannedExport,
  { cron, timezone }: ScheduleSpec,
  destinationUrl: string,
  { state, random, revision }: EngineContext,
  at: Instant,
): RunRow | undefined {
  if (each.waitingSince >= each.fireTime) return undefined;
  const fireTime = instantOf(fireTimes(cron, timezone).latest(epochMsOf(each.fireTime) - 1));
  if (fireTime < each.waitingSince || state.runs.isKnown(each, fireTime)) return undefined;
  const run = state.runs.enqueue({ ...each, fireTime, id: random.uuid(), kind: "scheduled", destinationUrl }, at);
  state.runs.end(run.id, "skipped", at, { code: "Superseded", message: `superseded by the fire time ${each.fireTime}` });
  state.audit.append({
    at,
    type: "run.skipped",
    subject: `${each.schedule}:${each.vmPath}`,
    detail: { fireTime, since: each.waitingSince, reason: "superseded" },
    commit: revision?.commit ?? null,
    author: revision?.author ?? null,
  });
  return run;
}

/** A run that waits for a protection that ends will never start. */
function cancelRunsWithoutProtection(plan: Plan, { state }: EngineContext): void {
  const ended = new Set(plan.protections.filter(({ kind }) => kind === "end").map(keyOf));
  if (ended.size === 0) return;
  for (const run of state.runs.open()) {
    if (run.state === "queued" && run.kind === "scheduled" && ended.has(keyOf(run))) {
      state.runs.end(run.id, "cancelled", plan.at, { code: "Cancelled", message: "its protection ended" });
    }
  }
}

function keyOf({ schedule, provider, identity }: { readonly schedule: string; readonly provider: string; readonly identity: string }): string {
  return `${schedule}\n${provider}\n${identity}`;
}
