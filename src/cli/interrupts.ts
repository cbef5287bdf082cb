import { exitCodes } from "./exit-codes.ts";

/** The first interrupt asks to stop, the second leaves at once: the journal holds what is needed to go on. */
export interface Interrupts {
  readonly signal: AbortSignal;
  /** 130, 143 or, when the terminal went away, 129, once one came. */
  readonly exitCode: number | undefined;
  dispose(): void;
}

/** @param onHangUp what a hang-up means to a daemon; without it, that the terminal went away */
export function listenForInterrupts(tell: (text: string) => void, onHangUp?: () => void): Interrupts {
  const controller = new AbortController();
  let exitCode: number | undefined;
  const on = (code: number) => (): void => {
    if (controller.signal.aborted) process.exit(code);
    exitCode = code;
    tell("stopping: nothing new is started; once more to leave at once\n");
    controller.abort(new Error("interrupted"));
  };
  const [onInt, onTerm, onHup] = [on(exitCodes.interrupted), on(exitCodes.terminated), onHangUp ?? on(exitCodes.hungUp)];
  process.on("SIGINT", onInt).on("SIGTERM", onTerm).on("SIGHUP", onHup);
  return {
    signal: controller.signal,
    get exitCode() {
      return exitCode;
    },
    dispose: () => void process.off("SIGINT", onInt).off("SIGTERM", onTerm).off("SIGHUP", onHup),
  };
}
