import { noteHold } from "../../exports/holds.ts";
import { errnoOf, HypersdkError } from "../../model/errors.ts";
import { State } from "../../state/state.ts";
import { printable } from "../../ui/style.ts";
import { adapters, clock, random } from "../compose.ts";
import type { Io } from "../io.ts";
import { load, type SourceOptions } from "../load.ts";

interface HoldOptions extends SourceOptions {
  readonly reason: string;
}

/** Keeps a restore point, whatever retention says, until it is let go again. The destination learns of it too. */
export async function hold(id: string, options: HoldOptions, io: Io): Promise<number> {
  return setHeld(id, options.reason, options, io);
}

export async function unhold(id: string, options: SourceOptions, io: Io): Promise<number> {
  return setHeld(id, undefined, options, io);
}

async function setHeld(id: string, reason: string | undefined, options: SourceOptions, io: Io): Promise<number> {
  const { statePath, revision, desired } = await load(options, io.env, io.cwd);
  const state = State.openForWriting(statePath, random);
  try {
    const found = state.artifacts.list().filter((point) => point.id.startsWith(id));
    const point = found[0];
    if (!point || found.length > 1)
      throw new HypersdkError(
        "NotFound",
        found.length === 0 ? `no restore point has the id ${JSON.stringify(id)}` : `${found.length} restore points begin with ${id}`,
        {
          hint: "hypersdk get artifacts lists them",
        },
      );
    if (reason === undefined && !point.held)
      throw new HypersdkError("NotFound", `${point.id.slice(0, 8)} of ${point.vmPath}, ${point.instant}, is not held`, {
        hint: "hypersdk get artifacts shows which are",
      });
    state.writeUnlocked(() => {
      state.artifacts.setHeld(point.id, reason);
      // a mark would have let it go
      if (reason !== undefined) state.artifacts.withdraw(point.id);
      state.audit.append({
        at: clock.now(),
        type: reason === undefined ? "point.released" : "point.held",
        subject: point.id,
        detail: { vmPath: point.vmPath, ...(reason === undefined ? {} : { reason }) },
        commit: revision?.commit ?? null,
        author: null,
      });
    });
    const address = desired?.destinations.find(({ url }) => url === point.destinationUrl) ?? { name: point.destination, url: point.destinationUrl };
    try {
      await noteHold(await adapters.openDestination(address), state.lineage, point.id, clock.now(), reason);
    } catch (error) {
      if (!(error instanceof HypersdkError || errnoOf(error))) throw error;
      io.err(`${io.errStyle.yellow("warning")}: this is known to the state alone, not at ${point.destination}: ${printable((error as Error).message)}\n`);
    }
    if (io.json) io.result("hold", { point: point.id, held: reason !== undefined, reason: reason ?? null });
    else io.out(`${point.id.slice(0, 8)} of ${point.vmPath}, ${point.instant}, is ${reason === undefined ? "no longer held" : "held"}\n`);
    return 0;
  } finally {
    state.close();
  }
}
