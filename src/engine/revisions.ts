import { HypersdkError } from "../model/errors.ts";
import type { Revision } from "../plan/plan.ts";
import type { Lease } from "../state/leases.ts";
import type { EngineContext } from "./context.ts";
import type { EngineEvent } from "./events.ts";

/** Records which revision was looked at last, and why it was refused. */
export function noteRevision(revision: Revision | null, problem: HypersdkError | undefined, lease: Lease, { state, clock }: EngineContext): void {
  const commit = revision?.commit ?? null;
  state.write(lease, () => {
    state.configuration.setMeta("attempted_revision", JSON.stringify({ ...revision, at: clock.now(), problem: problem?.message ?? null }));
    if (!problem) return;
    const { code, message: reason } = problem;
    const author = revision?.author ?? null;
    state.audit.append({ at: clock.now(), type: "config.rejected", subject: commit ?? "work tree", detail: { code, reason }, commit, author });
  });
}

/** How long a refusal waits for who is at work, to be recorded. */
const refusalWaitsMs = 5000;

/** Records that a plan was not carried out since somebody, or what is true now, refused it. */
export async function noteRefusal({ code, message: reason }: HypersdkError, { state, clock, random, revision, emit }: EngineContext): Promise<void> {
  try {
    const lease = await state.take("reconcile", "a refused plan", refusalWaitsMs, clock, random);
    try {
      const commit = revision?.commit ?? null;
      state.write(lease, () =>
        state.audit.append({
          at: clock.now(),
          type: "plan.refused",
          subject: commit ?? "work tree",
          detail: { code, reason },
          commit,
          author: revision?.author ?? null,
        }),
      );
    } finally {
      state.release(lease);
    }
  } catch (error) {
    if (!(error instanceof HypersdkError)) throw error;
    emit({ type: "warning", code: error.code, text: `that the plan was refused is not in the audit log: ${error.message}` });
  }
}

/** @param applied what goes on meanwhile */
export function rejection(
  revision: Revision | null,
  { code, message, hint }: HypersdkError,
  applied: { readonly revision: Revision | null } | undefined,
): EngineEvent {
  const goesOn = applied ? { goesOn: applied.revision?.commit ?? null } : {};
  return { type: "revision_rejected", commit: revision?.commit ?? null, dirty: revision?.dirty ?? false, ...goesOn, code, reason: message, hint: hint ?? null };
}
