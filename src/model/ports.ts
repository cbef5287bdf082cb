import type { Instant } from "./instant.ts";

/** The only way to the time of day. `cli/compose.ts` makes the real one. */
export interface Clock {
  now(): Instant;
  /** Resolves after `ms`; rejects with the signal's reason when it is aborted first. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

/** The only way to chance: identifiers and jitter. */
export interface Random {
  /** A version 4 UUID. */
  uuid(): string;
  /** 0 ≤ x < 1. */
  fraction(): number;
}

/** Texts that are kept between two runs and may be gone at any time: losing one costs time only. */
export interface Cache {
  get(key: string): string | undefined;
  put(key: string, text: string): void;
}
