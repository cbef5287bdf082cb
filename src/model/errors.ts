/**
 * Stable codes of the failures a caller can react to. The words of a message are free; the code is a promise.
 * `cli/exit-codes.ts` says which process exit code each of them becomes.
 */
export type ErrorCode =
  | "ConfigInvalid"
  | "NotAvailableYet"
  | "Usage"
  | "NotFound"
  | "AlreadyExists"
  | "SourceUnavailable"
  | "SignatureRefused"
  | "SourceChanged"
  | "SourceLocked"
  | "ProviderUnreachable"
  | "DestinationUnreachable"
  | "DestinationDenied"
  | "DestinationForeign"
  | "DestinationFull"
  | "DestinationChanged"
  | "ImageDamaged"
  | "ImageUnsupported"
  | "ImageUnsafe"
  | "ArtifactDamaged"
  | "KeyRefused"
  | "NotBooted"
  | "StateUnusable"
  | "StateFull"
  | "LockHeld"
  | "LeaseLost"
  | "PlanStale"
  | "PlanInvalid"
  | "Declined"
  | "TimedOut"
  | "Interrupted"
  | "PartlyFailed"
  | "Failed";

/** Codes of failures that may pass by themselves, so that a retry makes sense. */
const transient: ReadonlySet<ErrorCode> = new Set([
  "SourceChanged",
  "ProviderUnreachable",
  "DestinationUnreachable",
  "DestinationFull",
  "DestinationChanged",
  "TimedOut",
]);

export interface ErrorDetails {
  readonly cause?: unknown;
  /** What the person can do about it, as one sentence. */
  readonly hint?: string;
}

/** An expected failure of the outside world, with a stable code. Anything else that is thrown is a bug. */
export class HypersdkError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = "HypersdkError";
    this.code = code;
    this.hint = details.hint;
  }

  get isTransient(): boolean {
    return transient.has(this.code);
  }
}

/** The errno of a system error (`ENOENT`, `ENOSPC`, …), or undefined for anything else. */
export function errnoOf(error: unknown): string | undefined {
  if (!(error instanceof Error)) return undefined;
  const { code, errno } = error as NodeJS.ErrnoException;
  return typeof code === "string" ? (unnamed.get(errno) ?? code) : undefined;
}

/** What Linux says and libuv has no name for: a network's file handle that is no more, a damaged file system, a quota. */
const unnamed: ReadonlyMap<number | undefined, string> = new Map([
  [-116, "ESTALE"],
  [-117, "EUCLEAN"],
  [-122, "EDQUOT"],
]);

const errnoWords: Readonly<Record<string, string>> = {
  EACCES: "no permission",
  EPERM: "no permission",
  ENOENT: "it is not there",
  EISDIR: "it is a folder",
  ENOTDIR: "a part of its path is no folder",
  ELOOP: "its links lead in a circle",
  ENOSPC: "no space left",
  EDQUOT: "no space left",
  ESTALE: "the file server knows it no more",
  EUCLEAN: "its file system is damaged",
  EROFS: "its file system is read-only",
  EADDRINUSE: "something else listens there",
  ECONNREFUSED: "nobody listens there",
};

/** A system error in words that fit behind a colon; its errno where it is a rare one. */
export function errnoText(error: unknown): string {
  const errno = errnoOf(error);
  return errno === undefined ? String(error) : (errnoWords[errno] ?? errno);
}
