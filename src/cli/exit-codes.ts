import type { ErrorCode } from "../model/errors.ts";

/** Every exit code of the program, and the words for it in `--help`. */
export const exitCodes = {
  done: 0,
  failed: 1,
  difference: 2,
  configInvalid: 3,
  denied: 4,
  locked: 5,
  stale: 6,
  partlyFailed: 7,
  declined: 8,
  timedOut: 9,
  sourceUnavailable: 10,
  damaged: 11,
  usage: 64,
  bug: 70,
  interrupted: 130,
  hungUp: 129,
  terminated: 143,
} as const;

export const exitCodeHelp = `Exit codes:
  0  done; for plan also when there are changes, unless --detailed-exitcode
  1  an error that none below names
  2  a difference was found, and nothing else
  3  the configuration is invalid
  4  a guardrail denied it
  5  the lock is held
  6  the plan is stale or belongs to another state; or the destination does
  7  applied in part: something failed, or could not be looked at
  8  declined, or approval was needed and nobody could answer
  9  a time limit passed
 10  the source cannot be had: fetch, authentication, signature
 11  an image or an artifact is damaged
 64  wrong usage        70  a bug
129  the terminal was closed        130  interrupted        143  terminated`;

const byError: Readonly<Record<ErrorCode, number>> = {
  ConfigInvalid: exitCodes.configInvalid,
  NotAvailableYet: exitCodes.configInvalid,
  Usage: exitCodes.usage,
  NotFound: exitCodes.failed,
  AlreadyExists: exitCodes.failed,
  SourceUnavailable: exitCodes.sourceUnavailable,
  SignatureRefused: exitCodes.sourceUnavailable,
  SourceChanged: exitCodes.failed,
  SourceLocked: exitCodes.failed,
  ProviderUnreachable: exitCodes.sourceUnavailable,
  DestinationUnreachable: exitCodes.failed,
  DestinationDenied: exitCodes.failed,
  DestinationForeign: exitCodes.stale,
  DestinationFull: exitCodes.failed,
  DestinationChanged: exitCodes.failed,
  ImageDamaged: exitCodes.damaged,
  ImageUnsupported: exitCodes.failed,
  ImageUnsafe: exitCodes.damaged,
  ArtifactDamaged: exitCodes.damaged,
  NotBooted: exitCodes.damaged,
  KeyRefused: exitCodes.sourceUnavailable,
  StateUnusable: exitCodes.failed,
  StateFull: exitCodes.failed,
  LockHeld: exitCodes.locked,
  LeaseLost: exitCodes.locked,
  PlanStale: exitCodes.stale,
  PlanInvalid: exitCodes.failed,
  Declined: exitCodes.declined,
  TimedOut: exitCodes.timedOut,
  Interrupted: exitCodes.interrupted,
  PartlyFailed: exitCodes.partlyFailed,
  Failed: exitCodes.failed,
};

export function exitCodeOf(code: ErrorCode): number {
  return byError[code];
}
