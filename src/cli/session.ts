import type { EngineContext } from "../engine/context.ts";
import type { Emit } from "../engine/events.ts";
import { HypersdkError } from "../model/errors.ts";
import type { Revision } from "../plan/plan.ts";
import { State } from "../state/state.ts";
import { ProgressView } from "../ui/progress.ts";
import { engineContext, random } from "./compose.ts";
import { openEventLog } from "./event-log.ts";
import { type Interrupts, listenForInterrupts } from "./interrupts.ts";
import type { Io } from "./io.ts";

/** What a command that changes something works with. */
export interface Session {
  readonly state: State;
  readonly context: EngineContext;
  readonly interrupts: Interrupts;
  /** Hears every event, before the progress does. */
  listen(handler: Emit): void;
  /** Takes the progress off the terminal: what is printed next stands alone. */
  settle(): void;
}

export interface SessionOptions {
  readonly statePath: string;
  readonly revision: Revision | null;
  readonly adopt?: boolean | undefined;
  readonly progress?: ProgressView | undefined;
  /** What a hang-up means to a daemon; without it, that the terminal went away. */
  readonly onHangUp?: () => void;
}

/**
 * Opens the state and everything that goes with it, and closes it again, whatever becomes of the work.
 * @returns what the interrupt says, where one came, and otherwise what the work does
 */
export async function inSession(io: Io, options: SessionOptions, work: (session: Session) => Promise<number>): Promise<number> {
  const { statePath, revision, adopt = false, progress, onHangUp } = options;
  const events = openEventLog(io.eventsTarget, io.logLevel, onHangUp !== undefined);
  const interrupts = listenForInterrupts(io.err, onHangUp);
  let state: State | undefined;
  try {
    state = State.openForWriting(statePath, random);
    const handlers: Emit[] = [(event) => events.write(event)];
    const context = engineContext(state, {
      signal: interrupts.signal,
      revision,
      adopt,
      emit: (event) => {
        for (const handle of handlers) handle(event);
        progress?.handle(event);
      },
    });
    const code = await work({ state, context, interrupts, listen: (handler) => void handlers.push(handler), settle: () => progress?.stop() });
    return interrupts.exitCode ?? code;
  } catch (error) {
    // it stopped since it was told to; anything else is to be heard of
    if (interrupts.exitCode === undefined || !isInterrupt(error, interrupts.signal)) throw error;
    if (io.json) io.result("error", { code: "Interrupted", message: "interrupted before there was a result", hint: null, diagnostics: [] });
    return interrupts.exitCode;
  } finally {
    progress?.stop();
    interrupts.dispose();
    events.close();
    state?.close();
  }
}

function isInterrupt(error: unknown, { reason }: AbortSignal): boolean {
  return (
    error === reason ||
    (error instanceof Error && (error.name === "AbortError" || error.cause === reason)) ||
    (error instanceof HypersdkError && error.code === "Interrupted")
  );
}

/** @param lines what stands under the bars */
export function progressOn(io: Io, lines?: () => readonly string[]): ProgressView {
  const isTerminal = process.stderr.isTTY === true && !io.env["CI"];
  return new ProgressView({ write: io.err, isTerminal, columns: process.stderr.columns ?? 0 }, io.errStyle, Date.now, lines);
}
