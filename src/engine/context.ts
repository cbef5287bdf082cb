import type { Destination } from "../destinations/destination.ts";
import type { DestinationAddress, ProviderSpec } from "../model/desired.ts";
import type { Clock, Random } from "../model/ports.ts";
import type { Revision } from "../plan/plan.ts";
import type { Provider } from "../providers/provider.ts";
import type { State } from "../state/state.ts";
import type { Emit } from "./events.ts";

/** What the engine works with; made in one place, `cli/compose.ts`. */
export interface EngineContext {
  readonly state: State;
  readonly clock: Clock;
  readonly random: Random;
  readonly toolVersion: string;
  readonly openProvider: (spec: ProviderSpec) => Promise<Provider>;
  readonly openDestination: (address: DestinationAddress) => Promise<Destination>;
  readonly emit: Emit;
  /** Aborted by the first interrupt: nothing new starts, what runs stops at its next piece. */
  readonly signal: AbortSignal;
  readonly revision: Revision | null;
  /** Take a destination over from another state. */
  readonly adopt: boolean;
}
