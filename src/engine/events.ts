import type { Instant } from "../model/instant.ts";
import type { VmPath } from "../model/vm-path.ts";

/** What the engine tells while it works. Typed and coded; `ui/` gives them words, `--events` writes them as they are. */
export type EngineEvent =
  /** A watcher follows `source`: a branch of a repository, or a work tree. */
  | { readonly type: "watch_started"; readonly source: string }
  | { readonly type: "watch_stopped"; readonly reason: string }
  /** What the branch holds now; what is applied goes on until this one is. */
  | { readonly type: "revision_found"; readonly commit: string | null; readonly branch: string | null; readonly dirty: boolean }
  /** A revision that cannot be applied; `goesOn` is the commit of the last good one, and undefined where there was none. */
  | {
      readonly type: "revision_rejected";
      readonly commit: string | null;
      readonly dirty: boolean;
      readonly goesOn?: string | null;
      readonly code: string;
      readonly reason: string;
      readonly hint: string | null;
    }
  /** Something of the world is not what was recorded, as `plan` and `drift` say it; told when it begins. */
  | { readonly type: "drifted"; readonly kind: string; readonly reason: string }
  | { readonly type: "source_lost"; readonly code: string; readonly reason: string }
  | { readonly type: "source_back" }
  /** What a pass should have done was not done; it is tried again. */
  | { readonly type: "pass_failed"; readonly code: string; readonly reason: string; readonly hint: string | null }
  | { readonly type: "config_applied"; readonly serial: number; readonly changes: number; readonly protections: number }
  | { readonly type: "run_recovered"; readonly run: RunName; readonly outcome: "completed" | "queued" | "failed" | "cancelled" }
  | {
      readonly type: "export_started";
      readonly run: RunName;
      readonly attempt: number;
      readonly disks: readonly { readonly name: string; readonly dataBytes: number; readonly virtualBytes: number }[];
    }
  | { readonly type: "export_progress"; readonly run: RunName; readonly disk: number; readonly bytes: number }
  | { readonly type: "disk_stored"; readonly run: RunName; readonly disk: number; readonly storedBytes: number }
  | { readonly type: "export_verifying"; readonly run: RunName; readonly verify: string }
  | {
      readonly type: "export_completed";
      readonly run: RunName;
      readonly point: string;
      readonly folder: string;
      readonly readBytes: number;
      readonly storedBytes: number;
      readonly durationMs: number;
    }
  | {
      readonly type: "export_retried";
      readonly run: RunName;
      readonly attempt: number;
      readonly delayMs: number;
      readonly code: string;
      readonly reason: string;
    }
  | { readonly type: "export_failed"; readonly run: RunName; readonly code: string; readonly reason: string; readonly hint: string | null }
  /** A fire time that will never run, and why. */
  | { readonly type: "export_skipped"; readonly run: RunName; readonly reason: string }
  | { readonly type: "export_not_started"; readonly run: RunName; readonly reason: string }
  | { readonly type: "export_interrupted"; readonly run: RunName }
  | { readonly type: "point_removed"; readonly point: string; readonly vmPath: VmPath; readonly schedule: string; readonly storedBytes: number }
  | { readonly type: "warning"; readonly code: string; readonly text: string };

export interface RunName {
  readonly id: string;
  readonly schedule: string;
  readonly vmPath: VmPath;
  readonly fireTime: Instant;
}

export function runNameOf({ id, schedule, vmPath, fireTime }: RunName): RunName {
  return { id, schedule, vmPath, fireTime };
}

export type Emit = (event: EngineEvent) => void;
