import { describe, expect, it } from "vitest";
import { retryDelayMs } from "../../src/schedule/backoff.ts";
import { isOpen, nextOpening, type Window } from "../../src/schedule/windows.ts";
import { complaints } from "../support/desired.ts";

const at = (text: string): number => Date.parse(text);
const night: Window = { startMinute: 22 * 60, endMinute: 6 * 60, days: [5], timezone: "Europe/Berlin" };

describe("windows that contradict", () => {
  const wrong = (more: string): string =>
    complaints({
      "infrastructure.yaml": `version: v2\nschedules:\n  - {name: first, cron: "0 1 * * *", vms: ["/d/*"], destination: "file:///srv/b", suspend: true}\n  - {name: nightly, vms: ["/d/*"], destination: "file:///srv/b", ${more}}\n`,
    });

  it("are told of: a cron outside of them, retries after they close, a dependency that is suspended", () => {
    expect(wrong('cron: "0 12 * * *", windows: [{start: "02:00", end: "03:00"}]')).toContain("HSW006");
    expect(wrong('cron: "0 2 * * *", windows: [{start: "02:00", end: "03:00"}], retry: {initialDelay: 2h, maxDelay: 3h}')).toContain("HSW016");
    expect(wrong('cron: "0 2 * * *", dependsOn: [{schedule: first}]')).toContain("HSW017");
    expect(wrong('cron: "0 2 * * *", windows: [{start: "02:00", end: "03:00"}]')).toBe("");
  });
});

describe("a window", () => {
  it("past midnight belongs to the day on which it starts; start inclusive, end exclusive", () => {
    // Friday 20 November 2026, Berlin is UTC+1
    expect(isOpen([night], at("2026-11-20T21:00:00Z"))).toBe(true);
    expect(isOpen([night], at("2026-11-20T20:59:00Z"))).toBe(false);
    expect(isOpen([night], at("2026-11-21T04:59:00Z"))).toBe(true);
    expect(isOpen([night], at("2026-11-21T05:00:00Z"))).toBe(false);
  });

  it("opens next on its day", () => {
    expect(nextOpening([night], at("2026-11-21T12:00:00Z"))).toBe(at("2026-11-27T21:00:00Z"));
  });

  it("that opens inside the spring gap opens right after it", () => {
    const gap: Window = { startMinute: 150, endMinute: 300, days: [0], timezone: "Europe/Berlin" };
    expect(nextOpening([gap], at("2026-03-28T12:00:00Z"))).toBe(at("2026-03-29T01:00:00Z"));
  });

  it("none at all is always open", () => {
    expect(isOpen([], 0)).toBe(true);
  });
});

describe("backoff", () => {
  it("grows as its strategy says, and no further than maxDelay", () => {
    const policy = (strategy: "linear" | "exponential" | "fibonacci") => ({ attempts: 6, strategy, initialDelayMs: 1000, maxDelayMs: 7000, jitter: 0 });
    expect([1, 2, 3, 4, 5].map((n) => retryDelayMs(policy("linear"), n, 0))).toEqual([1000, 2000, 3000, 4000, 5000]);
    expect([1, 2, 3, 4, 5].map((n) => retryDelayMs(policy("exponential"), n, 0))).toEqual([1000, 2000, 4000, 7000, 7000]);
    expect([1, 2, 3, 4, 5, 6].map((n) => retryDelayMs(policy("fibonacci"), n, 0))).toEqual([1000, 1000, 2000, 3000, 5000, 7000]);
  });

  it("is shortened by jitter only", () => {
    expect(retryDelayMs({ attempts: 1, strategy: "linear", initialDelayMs: 1000, maxDelayMs: 5000, jitter: 0.5 }, 1, 0.5)).toBe(750);
  });
});
