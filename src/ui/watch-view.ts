import type { EngineEvent } from "../engine/events.ts";
import type { WatchStatus } from "../engine/watch.ts";
import { formatDuration } from "../model/duration.ts";
import { epochMsOf, type Instant } from "../model/instant.ts";
import { printable, type Style } from "./style.ts";
import { formatTime } from "./times.ts";

const shownRuns = 5;
const shownResults = 5;
/** `Sat 21 Nov 15:42 GMT+5:45` */
const timeColumns = 22;

/** What a watcher's terminal shows under the running exports: the last results, the next runs, the revision. */
export class WatchView {
  readonly #style: Style;
  readonly #timezoneOf: (schedule: string) => string;
  readonly #results: { readonly at: Instant; readonly schedule: string; readonly text: string }[] = [];
  readonly #now: () => Instant;
  #status: WatchStatus | undefined;

  constructor(style: Style, timezoneOf: (schedule: string) => string, now: () => Instant) {
    this.#now = now;
    this.#style = style;
    this.#timezoneOf = timezoneOf;
  }

  update(status: WatchStatus): void {
    this.#status = status;
  }

  handle(event: EngineEvent): void {
    const { green, red } = this.#style;
    if (event.type === "export_completed")
      this.#note(event.run.schedule, `${green("✓")} ${event.run.schedule}  ${printable(event.run.vmPath)}  took ${formatDuration(event.durationMs)}`);
    if (event.type === "export_failed") this.#note(event.run.schedule, `${red("✗")} ${event.run.schedule}  ${printable(event.run.vmPath)}  ${event.code}`);
  }

  /** Lines, without their ends. */
  lines(now: Instant): string[] {
    const { bold, dim, red, yellow } = this.#style;
    const status = this.#status;
    if (!status) return [];
    const { applied, rejected, sourceProblem, passProblem, unknown, next, waiting, running, serial } = status;
    const revision = applied
      ? applied.commit
        ? `${applied.branch ?? "detached"}@${applied.commit.slice(0, 7)}${applied.dirty ? " with changes" : ""}`
        : "files without a commit"
      : "nothing applied yet";
    const lines = ["", `${bold("revision")}  ${printable(revision)}  serial ${serial}  ${running} running, ${waiting} waiting`];
    if (rejected) lines.push(red(`rejected  ${rejected.commit?.slice(0, 7) ?? ""} ${printable(rejected.reason)}`));
    if (sourceProblem) lines.push(yellow(`since ${formatTime(sourceProblem.since, "UTC", now)}: ${printable(sourceProblem.reason)}`));
    for (const each of unknown.slice(0, 3)) lines.push(yellow(printable(each)));
    if (passProblem) lines.push(red(printable(passProblem.reason)));
    if (this.#results.length > 0)
      lines.push(
        bold("last"),
        ...this.#results.map(({ at, schedule, text }) => `  ${formatTime(at, this.#timezoneOf(schedule), now).padEnd(timeColumns)}  ${text}`),
      );
    lines.push(bold("next"));
    for (const { schedule, at } of next.slice(0, shownRuns)) {
      const inMs = Math.max(0, epochMsOf(at) - epochMsOf(now));
      lines.push(
        `  ${formatTime(at, this.#timezoneOf(schedule), now).padEnd(timeColumns)}  ${schedule}  ${dim(`in ${formatDuration(Math.ceil(inMs / 1000) * 1000)}`)}`,
      );
    }
    if (next.length === 0) lines.push(`  ${dim("no schedule runs")}`);
    if (next.length > shownRuns) lines.push(`  ${dim(`and ${next.length - shownRuns} more schedules`)}`);
    return lines;
  }

  #note(schedule: string, text: string): void {
    this.#results.push({ at: this.#now(), schedule, text });
    if (this.#results.length > shownResults) this.#results.shift();
  }
}
