import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { openDestination } from "../destinations/registry.ts";
import type { EngineContext } from "../engine/context.ts";
import type { Emit } from "../engine/events.ts";
import { readSecret } from "../files/read-secret.ts";
import { instantOf } from "../model/instant.ts";
import type { Clock, Random } from "../model/ports.ts";
import type { Revision } from "../plan/plan.ts";
import { openProvider } from "../providers/registry.ts";
import type { State } from "../state/state.ts";
import { cacheFolder } from "./cache-folder.ts";
import { toolVersion } from "./tool-version.ts";

/** The only place where adapters meet the engine, and where time and chance are real. */
export const clock: Clock = {
  now: () => instantOf(Date.now()),
  async sleep(ms, signal) {
    await sleep(ms, undefined, signal ? { signal } : {});
  },
};

export const random: Random = { uuid: randomUUID, fraction: Math.random };

/** Providers and destinations, for those who only look. */
export const adapters: Pick<EngineContext, "openProvider" | "openDestination"> = {
  openProvider: (spec) => openProvider(spec, clock, cacheFolder("heads", process.env)),
  openDestination: (spec) => openDestination(spec, random, (ref) => readSecret(ref, process.env)),
};

export function engineContext(
  state: State,
  options: { readonly emit: Emit; readonly signal: AbortSignal; readonly revision: Revision | null; readonly adopt: boolean },
): EngineContext {
  return { state, clock, random, toolVersion: toolVersion(), ...adapters, openDestination: eachOnce(adapters.openDestination), ...options };
}

/** Opens each destination once: exports to the same one share what one of them has read (`repository/shared-index.ts`). */
function eachOnce(open: EngineContext["openDestination"]): EngineContext["openDestination"] {
  const opened = new Map<string, ReturnType<typeof open>>();
  return ({ name, url, encryption, otherKeys }) => {
    const address = { name, url, ...(encryption ? { encryption } : {}), ...(otherKeys ? { otherKeys } : {}) };
    const key = JSON.stringify(address);
    const destination = opened.get(key) ?? open(address);
    opened.set(key, destination);
    destination.catch(() => opened.delete(key));
    return destination;
  };
}
