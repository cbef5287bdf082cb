import { HypersdkError } from "../model/errors.ts";
import type { Plan, Revision } from "../plan/plan.ts";
import type { EngineContext } from "./context.ts";
import { tellDrift } from "./drift.ts";
import { type Reconciled, reconcile } from "./reconcile.ts";
import { noteRevision, rejection } from "./revisions.ts";
import type { ConfigurationSource, WatchOptions } from "./watch.ts";

/**
 * One reading and one pass, as a timer outside would start them: what a watcher does once.
 * @throws what was wrong with the revision, once it is recorded
 */
export async function watchOnce(
  source: ConfigurationSource,
  context: EngineContext,
  options: Omit<WatchOptions, "intervalMs" | "onStatus" | "onRefresh">,
): Promise<OncePassed> {
  const { state, clock, random, emit, signal } = context;
  const { lockTimeoutMs, parallelism } = options;
  const lease = await state.take("watcher", "watch --once", lockTimeoutMs, clock, random, signal);
  try {
    const reading = await source.read(signal).catch((error: unknown) => {
      // what an interrupt cut off is no failure of the source
      signal.throwIfAborted();
      throw error;
    });
    if (!reading) throw new HypersdkError("SourceUnavailable", `${source.name} gave nothing`);
    const { revision, content, warnings = [] } = reading;
    for (const { code, text } of warnings) emit({ type: "warning", code, text });
    const problem = "problem" in content ? content.problem : undefined;
    if (problem) emit(rejection(revision, problem, undefined));
    noteRevision(revision, problem, lease, context);
    if ("problem" in content) throw content.problem;
    const approve = async (plan: Plan): Promise<Plan> => {
      tellDrift(plan, new Map(), emit);
      return plan;
    };
    return { revision, result: await reconcile(content.desired, { ...context, revision }, { lockTimeoutMs, parallelism, exports: true, approve }) };
  } finally {
    state.release(lease);
  }
}

interface OncePassed {
  readonly revision: Revision | null;
  readonly result: Reconciled;
}
