type BackoffStrategy = "linear" | "exponential" | "fibonacci";

export interface RetryPolicy {
  /** Retries after the first try, 0–10. */
  readonly attempts: number;
  readonly strategy: BackoffStrategy;
  readonly initialDelayMs: number;
  readonly maxDelayMs: number;
  /** 0–1: the share of the delay that chance may take away. */
  readonly jitter: number;
  /** Error codes that are retried; undefined means every transient one. */
  readonly on?: readonly string[];
}

/** How long to wait before retry `n` (1 is the first), in milliseconds. `fraction` is the chance, 0 ≤ x < 1. */
export function retryDelayMs(policy: RetryPolicy, n: number, fraction: number): number {
  const delay = Math.min(policy.initialDelayMs * factor(policy.strategy, n), policy.maxDelayMs);
  return Math.round(delay * (1 - policy.jitter * fraction));
}

function factor(strategy: BackoffStrategy, n: number): number {
  if (strategy === "linear") return n;
  if (strategy === "exponential") return 2 ** (n - 1);
  let [current, next] = [1, 1];
  for (let i = 1; i < n; i++) [current, next] = [next, current + next];
  return current;
}
