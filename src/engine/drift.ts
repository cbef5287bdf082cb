import type { Plan } from "../plan/plan.ts";
import type { EngineContext } from "./context.ts";

/** What cannot be looked at begins so, in words. */
export const unknownStart = "unknown: ";

/** What drifted, in words, by what it is: the words may count days. */
export type Drifted = ReadonlyMap<string, string>;

/** Tells of drift that was not there at the pass before. @returns all that is there now */
export function tellDrift({ drift }: Plan, told: Drifted, emit: EngineContext["emit"]): Drifted {
  const now = new Map<string, string>();
  for (const each of drift) {
    const what =
      each.kind === "unknown"
        ? each.what
        : "point" in each
          ? `restore point ${each.point.slice(0, 8)} of ${each.schedule} ${each.vmPath} at ${each.destination}`
          : `${each.schedule} ${each.vmPath}`;
    const reason = `${each.kind === "unknown" ? unknownStart : ""}${what}: ${each.message}`;
    const key = `${each.kind} ${what}`;
    now.set(key, reason);
    if (!told.has(key)) emit({ type: "drifted", kind: each.kind, reason });
  }
  return now;
}
