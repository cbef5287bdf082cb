import { getOrNothing } from "../destinations/gone.ts";
import { epochMsOf, type Instant } from "../model/instant.ts";
import { locksFolder } from "./layout.ts";
import type { Repository } from "./repository.ts";

/** A lock older than this is that of a process that died; a later run of the same state removes its own before. */
const freshMs = 24 * 3_600_000;

/** Says that an export is under way. Nothing depends on it but who has to try again: see {@link publishPoint}. */
export async function lockForExport(repository: Repository, runId: string, at: Instant): Promise<{ release(): Promise<void> }> {
  const path = lockPath(runId);
  await repository.destination.put(path, `${JSON.stringify({ at, operation: "export" })}\n`);
  return { release: () => repository.destination.remove(path).catch(() => {}) };
}

export function lockPath(runId: string): string {
  return `${locksFolder}/${runId}.json`;
}

/** When the oldest export that may still go on began; undefined where there is none. */
export async function oldestExport(repository: Repository, now: Instant): Promise<number | undefined> {
  let oldest: number | undefined;
  for (const { path } of await repository.list(locksFolder)) {
    const bytes = await getOrNothing(repository.destination, path, 65_536);
    if (!bytes) continue;
    let atMs: number;
    try {
      atMs = epochMsOf((JSON.parse(bytes.toString("utf8")) as { at?: Instant } | null)?.at ?? ("" as Instant));
    } catch {
      // half of one that somebody wrote by hand
      continue;
    }
    if (Number.isFinite(atMs) && epochMsOf(now) - atMs < freshMs) oldest = Math.min(oldest ?? atMs, atMs);
  }
  return oldest;
}
