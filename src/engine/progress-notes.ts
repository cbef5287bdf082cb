import { epochMsOf } from "../model/instant.ts";
import type { Lease } from "../state/leases.ts";
import type { RunRow } from "../state/runs.ts";
import type { EngineContext } from "./context.ts";

/** Each note is a write that reaches the disk. */
const noteEveryMs = 2000;

/** Notes in the state how far an export has come, for `status` in another process. */
export function progressNotes(run: RunRow, lease: Lease, { state, clock }: EngineContext): { expect(totalBytes: number): void; add(bytes: number): void } {
  let [totalBytes, readBytes, notedMs] = [0, 0, 0];
  const note = (): void => {
    notedMs = epochMsOf(clock.now());
    try {
      state.write(lease, () => state.runs.noteProgress(run.id, readBytes, Math.max(totalBytes, readBytes)));
    } catch {
      // it costs a bar; what is wrong with the state, the next step that matters will find
    }
  };
  return {
    expect(bytes) {
      totalBytes = bytes;
      note();
    },
    add(bytes) {
      readBytes += bytes;
      // by the clock, which may go back
      if (Math.abs(epochMsOf(clock.now()) - notedMs) >= noteEveryMs) note();
    },
  };
}
