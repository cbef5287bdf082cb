import type { EngineEvent, RunName } from "../engine/events.ts";
import { formatBytes } from "../model/bytes.ts";
import { formatDuration } from "../model/duration.ts";
import { printable, type Style } from "./style.ts";

interface Going {
  readonly name: RunName;
  readonly startedMs: number;
  readonly disks: { readonly name: string; readonly totalBytes: number; doneBytes: number; isStored: boolean }[];
  phase: string;
}

export interface ProgressTarget {
  write(text: string): void;
  readonly isTerminal: boolean;
  readonly columns: number;
}

const lineEveryMs = 10_000;

/**
 * Exports while they go: a line each on a terminal, redrawn ten times a second; elsewhere a line every ten seconds for what
 * takes that long. What has ended stays as one line.
 */
export class ProgressView {
  readonly #target: ProgressTarget;
  readonly #style: Style;
  readonly #nowMs: () => number;
  readonly #going = new Map<string, Going>();
  #drawn = 0;
  #shown = "";
  #lastDrawMs = 0;
  readonly #timer: NodeJS.Timeout;
  readonly #below: () => readonly string[];

  /** @param below what a terminal shows under the exports all the time */
  constructor(target: ProgressTarget, style: Style, nowMs: () => number, below: () => readonly string[] = () => []) {
    this.#below = below;
    this.#target = target;
    this.#style = style;
    this.#nowMs = nowMs;
    this.#lastDrawMs = nowMs();
    this.#timer = setInterval(() => this.#tick(), target.isTerminal ? 100 : 1000);
    this.#timer.unref();
  }

  handle(event: EngineEvent): void {
    const { green, red, yellow, dim } = this.#style;
    switch (event.type) {
      case "export_started":
        this.#going.set(event.run.id, {
          name: event.run,
          startedMs: this.#nowMs(),
          phase: "",
          disks: event.disks.map(({ name, dataBytes }) => ({ name, totalBytes: dataBytes, doneBytes: 0, isStored: false })),
        });
        return;
      case "export_progress": {
        const disk = this.#going.get(event.run.id)?.disks[event.disk];
        if (disk) disk.doneBytes += event.bytes;
        return;
      }
      case "disk_stored": {
        const disk = this.#going.get(event.run.id)?.disks[event.disk];
        if (disk) disk.isStored = true;
        return;
      }
      case "export_verifying": {
        const going = this.#going.get(event.run.id);
        if (going) going.phase = event.verify === "none" ? "" : "verifying";
        return;
      }
      case "export_completed":
        this.#end(
          event.run,
          `${green("✓")} ${nameOf(event.run)}  ${formatBytes(event.readBytes)} read, ${formatBytes(event.storedBytes)} stored in ${formatDuration(event.durationMs)}`,
        );
        return;
      case "export_failed":
        this.#end(
          event.run,
          `${red("✗")} ${nameOf(event.run)}  ${event.code}: ${printable(event.reason)}${event.hint ? `\n    ${dim(printable(event.hint))}` : ""}`,
        );
        return;
      case "export_retried":
        this.#end(
          event.run,
          `${yellow("↻")} ${nameOf(event.run)}  ${event.code}: ${printable(event.reason)}; retry ${event.attempt} in ${formatDuration(event.delayMs)}`,
        );
        return;
      case "export_interrupted":
        this.#end(event.run, `${yellow("■")} ${nameOf(event.run)}  interrupted`);
        return;
      case "export_skipped":
        this.#line(`${yellow("-")} ${nameOf(event.run)}  skipped: ${printable(event.reason)}`);
        return;
      case "export_not_started":
        this.#end(event.run, `${yellow("~")} ${nameOf(event.run)}  not started: ${printable(event.reason)}`);
        return;
      case "run_recovered":
        this.#line(
          `${yellow("↻")} ${nameOf(event.run)}  an earlier run was cut off: ${event.outcome === "completed" ? "its export was complete" : event.outcome === "queued" ? "cleared, it starts anew" : "cleared"}`,
        );
        return;
      case "point_removed":
        this.#line(`${dim("-")} ${event.schedule}  ${printable(event.vmPath)}  expired restore point removed, ${formatBytes(event.storedBytes)} once stored`);
        return;
      case "watch_started":
        this.#line(`${dim("watching")} ${printable(event.source)}`);
        return;
      case "watch_stopped":
        this.#line(`${dim("the watch ended:")} ${printable(event.reason)}`);
        return;
      case "revision_found":
        this.#line(`${dim("·")} revision ${revisionText(event)}`);
        return;
      case "revision_rejected":
        this.#line(
          `${red("✗")} revision ${revisionText(event)} is not applied${event.goesOn === undefined ? "" : ", the last good one goes on"}: ${printable(event.reason)}`,
        );
        return;
      case "drifted":
        this.#line(`${yellow("drift")} ${printable(event.reason)}`);
        return;
      case "source_lost":
        this.#line(`${yellow("warning")} ${event.code}: ${printable(event.reason)}; it is asked again`);
        return;
      case "source_back":
        this.#line(`${green("✓")} the source can be read again`);
        return;
      case "pass_failed":
        this.#line(`${red("✗")} ${event.code}: ${printable(event.reason)}${event.hint ? `\n    ${dim(printable(event.hint))}` : ""}`);
        return;
      case "config_applied":
        this.#line(`${green("✓")} configuration applied, serial ${event.serial}`);
        return;
      case "warning":
        this.#line(`${yellow("warning")} ${event.code}: ${printable(event.text)}`);
        return;
    }
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#erase();
  }

  #end(run: RunName, line: string): void {
    this.#going.delete(run.id);
    this.#line(line);
  }

  #line(text: string): void {
    this.#erase();
    this.#target.write(`${text}\n`);
  }

  #tick(): void {
    const nowMs = this.#nowMs();
    if (this.#target.isTerminal) {
      const below = this.#below().map((line) => cut(line, this.#target.columns));
      if (this.#going.size === 0 && below.length === 0) return;
      const lines = [...this.#lines(nowMs), ...below];
      const text = lines.map((line) => `${line}\n`).join("");
      if (this.#drawn > 0 && text === this.#shown) return;
      this.#shown = text;
      const back = this.#drawn > 0 ? `\u001b[${this.#drawn}A\u001b[0J` : "";
      this.#target.write(back + text);
      this.#drawn = lines.length;
    } else if (this.#going.size > 0 && nowMs - this.#lastDrawMs >= lineEveryMs) {
      this.#lastDrawMs = nowMs;
      this.#target.write(
        this.#lines(nowMs)
          .map((line) => `${line}\n`)
          .join(""),
      );
    }
  }

  #lines(nowMs: number): string[] {
    const lines: string[] = [];
    let [done, total, rate] = [0, 0, 0];
    for (const { name, disks, startedMs, phase } of this.#going.values()) {
      const seconds = Math.max(0.001, (nowMs - startedMs) / 1000);
      const read = disks.reduce((sum, disk) => sum + disk.doneBytes, 0);
      const all = disks.reduce((sum, disk) => sum + (disk.isStored ? disk.doneBytes : Math.max(disk.totalBytes, disk.doneBytes)), 0);
      done += read;
      total += all;
      rate += read / seconds;
      const current = disks.find((disk) => !disk.isStored);
      const which = disks.length > 1 && current ? `  disk ${disks.indexOf(current) + 1}/${disks.length} ${printable(current.name)}` : "";
      lines.push(
        cut(
          `  ${nameOf(name)}${which}  ${this.#target.isTerminal ? `${barOf(read, all)}  ` : ""}${progressText(read, all, read / seconds)}${phase ? `  ${phase}` : ""}`,
          this.#target.columns,
        ),
      );
    }
    if (this.#going.size > 1) lines.push(cut(`  in all  ${progressText(done, total, rate)}`, this.#target.columns));
    return lines;
  }

  #erase(): void {
    if (this.#drawn > 0) this.#target.write(`\u001b[${this.#drawn}A\u001b[0J`);
    this.#drawn = 0;
  }
}

const barCells = 16;

export function barOf(done: number, total: number): string {
  const filled = total > 0 ? Math.min(barCells, Math.floor((done / total) * barCells)) : 0;
  return "█".repeat(filled) + "░".repeat(barCells - filled);
}

/** `42%  1.2 GiB of 2.9 GiB  310 MiB/s  ~5s`; totals are estimates until the end, so 100 % is never shown early. */
export function progressText(doneBytes: number, totalBytes: number, bytesPerSecond: number): string {
  const percent = totalBytes > 0 ? Math.min(99, Math.floor((doneBytes / totalBytes) * 100)) : 0;
  const left = bytesPerSecond > 0 ? `  ~${formatDuration(((totalBytes - doneBytes) / bytesPerSecond) * 1000)}` : "";
  return `${String(percent).padStart(2)}%  ${formatBytes(doneBytes)} of ${formatBytes(totalBytes)}  ${formatBytes(bytesPerSecond)}/s${left}`;
}

function revisionText({ commit, branch, dirty }: { readonly commit: string | null; readonly branch?: string | null; readonly dirty: boolean }): string {
  return commit === null ? "without a commit" : `${branch ? `${printable(branch)}@` : ""}${commit.slice(0, 7)}${dirty ? " with changes" : ""}`;
}

function nameOf({ schedule, vmPath }: RunName): string {
  return `${schedule}  ${printable(vmPath)}`;
}

function cut(line: string, columns: number): string {
  return columns > 0 && line.length > columns ? `${line.slice(0, columns - 1)}…` : line;
}
