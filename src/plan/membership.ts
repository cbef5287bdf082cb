import type { DesiredState, ScheduleSpec } from "../model/desired.ts";
import type { ObservedVm } from "../model/observed.ts";
import { patternOf, select } from "../model/pattern.ts";
import type { RecordedProtection } from "../model/recorded.ts";
import type { VmPath } from "../model/vm-path.ts";

/** A VM that a schedule exports. */
export interface Member {
  readonly schedule: ScheduleSpec;
  readonly provider: string;
  readonly identity: string;
  readonly vmPath: VmPath;
  readonly vm: ObservedVm | undefined;
  readonly priority: number;
  readonly rpoMs?: number;
}

/** Any VM path that a pattern is held against, there or only remembered. */
interface Candidate {
  readonly provider: string;
  readonly identity: string;
  readonly path: VmPath;
  readonly vm: ObservedVm | undefined;
}

export interface Membership {
  readonly members: ReadonlyMap<string, Member>;
  /** Patterns that no VM matched, by schedule or policy address. */
  readonly unmatched: readonly { readonly address: string; readonly pattern: string }[];
}

/** `daily-backup`, provider and identity joined by a character that names cannot hold. */
export function protectionKey(schedule: string, provider: string, identity: string): string {
  return `${schedule}\n${provider}\n${identity}`;
}

/**
 * Joins schedules, policies and VMs. A remembered VM that its provider no longer shows still belongs where its path belongs,
 * so that a vanished VM is a missing one and not one that nobody ever wanted.
 */
export function membership(desired: DesiredState, vms: readonly ObservedVm[], recorded: readonly RecordedProtection[]): Membership {
  const candidates = candidatesOf(vms, recorded);
  const pathOf = (candidate: Candidate): string => candidate.path;
  const firstAt = new Map<string, number>();
  for (const [i, { path }] of candidates.entries()) if (path !== candidates[i - 1]?.path) firstAt.set(path, i);
  const members = new Map<string, Member>();
  const unmatched: { address: string; pattern: string }[] = [];
  const schedules = new Map(desired.schedules.map((schedule) => [schedule.name, schedule]));

  const add = (schedule: ScheduleSpec, candidate: Candidate, policy: { priority?: number; rpoMs?: number }): void => {
    if (isExcluded(schedule.exclude, candidate.path)) return;
    const key = protectionKey(schedule.name, candidate.provider, candidate.identity);
    const known = members.get(key);
    const fromPolicies = known && policyValues.get(key);
    const priority = highest(fromPolicies?.priority, policy.priority);
    const rpoMs = shortest(fromPolicies?.rpoMs, policy.rpoMs);
    policyValues.set(key, { ...(priority === undefined ? {} : { priority }), ...(rpoMs === undefined ? {} : { rpoMs }) });
    const rpo = rpoMs ?? schedule.rpoMs;
    members.set(key, {
      schedule,
      provider: candidate.provider,
      identity: candidate.identity,
      vmPath: candidate.path,
      vm: candidate.vm,
      priority: priority ?? schedule.priority,
      ...(rpo === undefined ? {} : { rpoMs: rpo }),
    });
  };
  const named = (path: string): Candidate[] => {
    const first = firstAt.get(path);
    let end = first ?? 0;
    while (candidates[end]?.path === path) end++;
    return first === undefined ? [] : candidates.slice(first, end);
  };
  const policyValues = new Map<string, { readonly priority?: number; readonly rpoMs?: number }>();
  const match = (patterns: readonly string[], address: string, each: (candidate: Candidate) => void): void => {
    for (const text of patterns) {
      const pattern = patternOf(text);
      const found = pattern.isLiteral ? named(pattern.prefix) : select(pattern, candidates, pathOf);
      if (!found.some(({ vm }) => vm !== undefined)) unmatched.push({ address, pattern: text });
      for (const candidate of found) each(candidate);
    }
  };

  for (const schedule of desired.schedules) match(schedule.vms, `schedule.${schedule.name}`, (candidate) => add(schedule, candidate, {}));
  for (const policy of desired.policies) {
    const schedule = schedules.get(policy.schedule) as ScheduleSpec;
    match(policy.match, `policy.${policy.name}`, (candidate) => {
      if (!isExcluded(policy.exclude, candidate.path)) add(schedule, candidate, policy);
    });
  }
  return { members, unmatched };
}

/** VMs that are there, and those that are remembered and gone, sorted by path. */
function candidatesOf(vms: readonly ObservedVm[], recorded: readonly RecordedProtection[]): Candidate[] {
  const seen = new Set<string>();
  const candidates: Candidate[] = [];
  for (const vm of vms) {
    seen.add(`${vm.provider}\n${vm.identity}`);
    candidates.push({ provider: vm.provider, identity: vm.identity, path: vm.path, vm });
  }
  for (const { provider, identity, vmPath } of recorded) {
    const key = `${provider}\n${identity}`;
    if (seen.has(key)) continue;
    seen.add(key);
    candidates.push({ provider, identity, path: vmPath, vm: undefined });
  }
  return candidates.sort((a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : a.provider < b.provider ? -1 : 1));
}

function isExcluded(patterns: readonly string[], path: string): boolean {
  return patterns.some((text) => patternOf(text).matches(path));
}

function highest(a: number | undefined, b: number | undefined): number | undefined {
  return a === undefined ? b : b === undefined ? a : Math.max(a, b);
}

function shortest(a: number | undefined, b: number | undefined): number | undefined {
  return a === undefined ? b : b === undefined ? a : Math.min(a, b);
}
