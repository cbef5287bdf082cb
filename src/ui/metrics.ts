import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import type { EngineEvent } from "../engine/events.ts";
import type { WatchStatus } from "../engine/watch.ts";
import { epochMsOf, type Instant } from "../model/instant.ts";

/** What a scrape is told of a protection. */
interface Protected {
  readonly schedule: string;
  readonly vmPath: string;
  readonly state: "active" | "missing";
  readonly lastSuccessAt?: Instant;
}

/** No label gets more values than this: what is beyond is told as `other`. */
const maxLabelValues = 1000;
const seconds = (at: Instant): number => epochMsOf(at) / 1000;

/** The state of a watcher for Prometheus: names begin with `hypersdk_`, units are seconds and bytes. */
export class WatchMetrics {
  readonly registry: Registry = new Registry();
  readonly #schedules = new Set<string>();
  readonly #revision: Gauge<"commit" | "branch">;
  readonly #rejected: Gauge;
  readonly #sourceUp: Gauge;
  readonly #passUp: Gauge;
  readonly #lastPass: Gauge;
  readonly #unknown: Gauge;
  readonly #nextRun: Gauge<"schedule">;
  readonly #missing: Gauge;
  readonly #lastSuccess: Gauge<"schedule" | "vm">;
  readonly #protections: () => readonly Protected[];
  readonly #waiting: Gauge;
  readonly #running: Gauge;
  readonly #exports: Counter<"schedule" | "outcome">;
  readonly #failures: Counter<"code">;
  readonly #read: Counter<"schedule">;
  readonly #stored: Counter<"schedule">;
  readonly #duration: Histogram;
  #made: { readonly atMs: number; readonly text: Promise<string> } | undefined;

  /** @param protections asked at each scrape */
  constructor(version: string, protections: () => readonly Protected[]) {
    const registers = [this.registry];
    const gauge = <T extends string>(name: string, help: string, labelNames: readonly T[] = []): Gauge<T> =>
      new Gauge({ name: `hypersdk_${name}`, help, labelNames, registers });
    const counter = <T extends string>(name: string, help: string, labelNames: readonly T[] = []): Counter<T> =>
      new Counter({ name: `hypersdk_${name}`, help, labelNames, registers });
    gauge("build_info", "Always 1; the version as a label.", ["version"]).set({ version }, 1);
    this.#revision = gauge("applied_revision_info", "Always 1; the revision that is applied as labels.", ["commit", "branch"]);
    this.#rejected = gauge("revision_rejected", "1 while the newest revision cannot be applied.");
    this.#sourceUp = gauge("source_up", "1 while the repository can be read.");
    this.#passUp = gauge("pass_up", "1 while planning and applying works.");
    this.#unknown = gauge("unknown", "Providers, VMs and destinations that cannot be looked at.");
    this.#lastPass = gauge("last_pass_timestamp_seconds", "When the state was last compared and applied.");
    this.#nextRun = gauge("next_run_timestamp_seconds", "The next fire time of a schedule.", ["schedule"]);
    this.#waiting = gauge("queue_depth", "Exports that are due and wait for a place.");
    this.#running = gauge("exports_running", "Exports that run.");
    this.#exports = counter("exports_total", "Exports that ended, since the start of this process.", ["schedule", "outcome"]);
    this.#failures = counter("export_failures_total", "Attempts that failed, by error code.", ["code"]);
    this.#read = counter("read_bytes_total", "Bytes that exports read.", ["schedule"]);
    this.#stored = counter("stored_bytes_total", "Bytes that exports stored.", ["schedule"]);
    this.#duration = new Histogram({
      name: "hypersdk_export_duration_seconds",
      help: "How long completed exports took.",
      buckets: [1, 10, 60, 300, 900, 3600, 14_400, 43_200],
      registers,
    });
    this.#missing = gauge("missing_vms", "VMs that are protected, and that their provider no longer shows.");
    this.#lastSuccess = gauge("last_success_timestamp_seconds", "The instant of the newest good restore point of a VM.", ["schedule", "vm"]);
    this.#protections = protections;
    // its usual measure of the event loop wakes the process a hundred times a second, a hundredth of a processor for as long as it waits
    collectDefaultMetrics({ register: this.registry, eventLoopMonitoringPrecision: 1000 });
  }

  /** What a scrape gets; made once a second at most, however many ask. */
  text(nowMs: number): Promise<string> {
    if (!this.#made || nowMs < this.#made.atMs || nowMs - this.#made.atMs >= 1000) {
      this.#look();
      this.#made = { atMs: nowMs, text: this.registry.metrics() };
    }
    return this.#made.text;
  }

  #look(): void {
    const all = this.#protections();
    this.#missing.set(new Set(all.filter(({ state }) => state === "missing").map(({ vmPath }) => vmPath)).size);
    this.#lastSuccess.reset();
    const oldestFirst = all
      .flatMap(({ schedule, vmPath, lastSuccessAt }) => (lastSuccessAt === undefined ? [] : [{ schedule, vmPath, lastSuccessAt }]))
      .sort((a, b) => (a.lastSuccessAt < b.lastSuccessAt ? -1 : 1));
    // the oldest are those that somebody has to look at
    for (const { schedule, vmPath, lastSuccessAt } of oldestFirst.slice(0, maxLabelValues))
      this.#lastSuccess.set({ schedule, vm: vmPath }, seconds(lastSuccessAt));
    const next = oldestFirst[maxLabelValues];
    if (next) this.#lastSuccess.set({ schedule: "other", vm: "other" }, seconds(next.lastSuccessAt));
  }

  handle(event: EngineEvent): void {
    switch (event.type) {
      case "export_completed": {
        const schedule = this.#label(event.run.schedule);
        this.#exports.inc({ schedule, outcome: "completed" });
        this.#read.inc({ schedule }, event.readBytes);
        this.#stored.inc({ schedule }, event.storedBytes);
        this.#duration.observe(event.durationMs / 1000);
        return;
      }
      case "export_retried":
        this.#failures.inc({ code: event.code });
        return;
      case "export_failed":
        this.#failures.inc({ code: event.code });
        this.#exports.inc({ schedule: this.#label(event.run.schedule), outcome: "failed" });
        return;
      case "export_skipped":
        this.#exports.inc({ schedule: this.#label(event.run.schedule), outcome: "skipped" });
        return;
      case "export_interrupted":
        this.#exports.inc({ schedule: this.#label(event.run.schedule), outcome: "interrupted" });
        return;
    }
  }

  update({ applied, rejected, sourceProblem, passProblem, lastPassAt, unknown, next, waiting, running }: WatchStatus): void {
    this.#revision.reset();
    if (applied) this.#revision.set({ commit: applied.commit ?? "", branch: applied.branch ?? "" }, 1);
    this.#rejected.set(rejected ? 1 : 0);
    this.#sourceUp.set(sourceProblem ? 0 : 1);
    this.#passUp.set(passProblem ? 0 : 1);
    this.#unknown.set(unknown.length);
    if (lastPassAt) this.#lastPass.set(seconds(lastPassAt));
    this.#nextRun.reset();
    for (const { schedule, at } of next.slice(0, maxLabelValues)) this.#nextRun.set({ schedule }, seconds(at));
    this.#waiting.set(waiting);
    this.#running.set(running);
  }

  #label(schedule: string): string {
    if (this.#schedules.size < maxLabelValues) this.#schedules.add(schedule);
    return this.#schedules.has(schedule) ? schedule : "other";
  }
}
