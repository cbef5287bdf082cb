import { monotonicMs } from "../../model/monotonic.ts";
import { progressText } from "../../ui/progress.ts";
import type { Io } from "../io.ts";

export interface ByteProgress {
  readonly add: (bytes: number) => void;
  /** Once it is known better. */
  readonly setTotal: (bytes: number) => void;
  readonly stop: () => void;
}

/** Progress of one thing that is counted in bytes: shown after a second, ten times a second on a terminal, else every 10 s. */
export function byteProgress(io: Io, estimatedBytes: number): ByteProgress {
  const isTerminal = process.stderr.isTTY === true && !io.env["CI"];
  const started = monotonicMs();
  let [done, shown, totalBytes] = [0, false, estimatedBytes];
  if (io.quiet || io.json) return { add() {}, setTotal() {}, stop() {} };
  const draw = (): void => {
    const seconds = (monotonicMs() - started) / 1000;
    if (seconds < 1) return;
    shown = true;
    const text = progressText(done, Math.max(totalBytes, done), done / seconds);
    io.err(isTerminal ? `\r\u001b[K  ${text}` : `  ${text}\n`);
  };
  const timer = setInterval(draw, isTerminal ? 100 : 10_000);
  return {
    add: (bytes) => void (done += bytes),
    setTotal: (bytes) => void (totalBytes = bytes),
    stop() {
      clearInterval(timer);
      if (shown && isTerminal) io.err("\r\u001b[K");
      shown = false;
    },
  };
}
