import { closeSync, openSync, statSync, writeSync } from "node:fs";
import { readSlice } from "../converters/machine/read-slice.ts";
import type { EngineEvent } from "../engine/events.ts";
import { unreachable } from "../model/brand.ts";
import { errnoText, HypersdkError } from "../model/errors.ts";
import { lazily } from "../model/lazily.ts";
import { clock } from "./compose.ts";
import { refuseForeign } from "./output-file.ts";
import { toolVersion } from "./tool-version.ts";

/** `--events`: one JSON object a line, the first of type `version`. `-` is stderr. */
export interface EventLog {
  write(event: EngineEvent): void;
  close(): void;
}

const pino = lazily<typeof import("pino").pino>("pino");

/** Progress is told at most twice a second for each disk. */
const progressEveryMs = 500;

/** @param appends whether what an earlier process told stays */
export function openEventLog(target: string | undefined, logLevel: string | undefined, appends: boolean): EventLog {
  const log = logLevel === undefined ? undefined : pino()({ level: logLevel, base: null }, pino().destination({ dest: 2, sync: true }));
  const tell = (event: EngineEvent): void => void log?.[event.type === "export_progress" ? "debug" : levelOf(event)](withoutType(event), messageOf(event));
  if (target === undefined) return { write: tell, close() {} };
  if (target !== "-") refuseForeign(target, "--events", eventsBegin);
  let descriptor: number;
  try {
    descriptor = target === "-" ? 2 : openSync(target, appends ? "a" : "w", 0o600);
  } catch (error) {
    throw new HypersdkError("Usage", `cannot write the events to ${target}: ${errnoText(error)}`, { cause: error });
  }
  let isBroken = false;
  // a process that was killed may have written half of its last line
  let begins = appends && target !== "-" && isCut(target) ? "\n" : "";
  const line = (object: object): void => {
    if (isBroken) return;
    try {
      const text = `${begins}${JSON.stringify(object)}\n`;
      begins = "";
      // a pipe takes what it has room for: the stream keeps the rest until its reader is ready
      if (target === "-") process.stderr.write(text);
      else writeWhole(descriptor, Buffer.from(text));
    } catch (error) {
      // a full disk under the log must not end an export
      isBroken = true;
      process.stderr.write(`warning: the events are no longer written to ${target}: ${errnoText(error)}\n`);
    }
  };
  line({ type: "version", at: clock.now(), level: "info", message: `hypersdk ${toolVersion()}`, formatVersion: 1, version: toolVersion() });
  const progress = new Map<string, { bytes: number; toldMs: number }>();
  return {
    write(event) {
      tell(event);
      if (event.type !== "export_progress")
        return line({ type: event.type, at: clock.now(), level: levelOf(event), message: messageOf(event), ...withoutType(event) });
      const key = `${event.run.id} ${event.disk}`;
      const known = progress.get(key) ?? { bytes: 0, toldMs: 0 };
      known.bytes += event.bytes;
      progress.set(key, known);
      if (Date.now() - known.toldMs < progressEveryMs) return;
      known.toldMs = Date.now();
      line({ type: event.type, at: clock.now(), level: "debug", message: messageOf(event), ...withoutType(event), bytes: known.bytes });
    },
    close() {
      if (target !== "-") closeSync(descriptor);
    },
  };
}

/** What every line begins with: whoever keeps the log short may have cut off the first. */
const eventsBegin = '{"type":"';

/** Whether a file ends in the middle of a line. A pipe has no end, and of what cannot be read nothing is known. */
function isCut(path: string): boolean {
  try {
    const { size } = statSync(path);
    return size > 0 && readSlice(path, size - 1, 1).toString() !== "\n";
  } catch {
    return false;
  }
}

function writeWhole(descriptor: number, bytes: Buffer): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(descriptor, bytes, done);
}

function withoutType({ type: _type, ...rest }: EngineEvent): object {
  return rest;
}

const levels: Readonly<Partial<Record<EngineEvent["type"], "warn" | "error">>> = {
  export_failed: "error",
  pass_failed: "error",
  revision_rejected: "error",
  source_lost: "warn",
  drifted: "warn",
  export_retried: "warn",
  warning: "warn",
  export_interrupted: "warn",
  export_not_started: "warn",
  export_skipped: "warn",
};

function levelOf({ type }: EngineEvent): "info" | "warn" | "error" {
  return levels[type] ?? "info";
}

function messageOf(event: EngineEvent): string {
  const about = "run" in event ? `${event.run.schedule} ${event.run.vmPath}` : "";
  switch (event.type) {
    case "watch_started":
      return `watching ${event.source}`;
    case "watch_stopped":
      return `the watch ended: ${event.reason}`;
    case "revision_found":
      return `revision ${event.commit ?? "without a commit"}`;
    case "revision_rejected":
      return `revision ${event.commit ?? "without a commit"} cannot be applied: ${event.reason}`;
    case "drifted":
      return event.reason;
    case "source_lost":
      return `the source cannot be read: ${event.reason}`;
    case "source_back":
      return "the source can be read again";
    case "pass_failed":
      return event.reason;
    case "config_applied":
      return `configuration applied, serial ${event.serial}`;
    case "run_recovered":
      return `${about}: an earlier run was cut off (${event.outcome})`;
    case "export_started":
      return `${about}: started, attempt ${event.attempt}`;
    case "export_progress":
      return `${about}: disk ${event.disk}`;
    case "disk_stored":
      return `${about}: disk ${event.disk} stored`;
    case "export_verifying":
      return `${about}: verifying (${event.verify})`;
    case "export_completed":
      return `${about}: completed`;
    case "export_retried":
      return `${about}: ${event.reason}; retry ${event.attempt}`;
    case "export_failed":
      return `${about}: ${event.reason}`;
    case "export_skipped":
      return `${about}: skipped, ${event.reason}`;
    case "export_not_started":
      return `${about}: not started, ${event.reason}`;
    case "export_interrupted":
      return `${about}: interrupted`;
    case "point_removed":
      return `${event.schedule} ${event.vmPath}: expired restore point removed`;
    case "warning":
      return event.text;
    default:
      return unreachable(event);
  }
}
