import { exitCodes } from "./exit-codes.ts";

/** The first interrupt asks to stop, the second leaves at once: the journal holds what is needed to go on. */
export interface Interrupts {
  readonly signal: AbortSignal;
  /** 130 or 143 once one came. */
  readonly exitCode: number | undefined;
  dispose(): void;
}

export function listenForInterrupts(tell: (text: string) => void): Interrupts {
  const controller = new AbortController();
  let exitCode: number | undefined;
  const on = (code: number) => (): void => {
    if (controller.signal.aborted) process.exit(code);
    exitCode = code;
    tell("stopping: nothing new is started; once more to leave at once\n");
    controller.abort(new Error("interrupted"));
  };
  const [onInt, onTerm] = [on(exitCodes.interrupted), on(exitCodes.terminated)];
  process.on("SIGINT", onInt).on("SIGTERM", onTerm);
  return {
    signal: controller.signal,
    get exitCode() {
      return exitCode;
    },
    dispose: () => void process.off("SIGINT", onInt).off("SIGTERM", onTerm),
  };
}
