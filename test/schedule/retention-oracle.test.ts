import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { RetentionSpec } from "../../src/model/desired.ts";
import { type RetainablePoint, retain } from "../../src/schedule/retention.ts";
import { temporaryFolder } from "../support/cli.ts";
import { random } from "../support/disks.ts";

/** `npm run test:retention`: it takes minutes to make the snapshots. */
const isAsked = process.env["RETENTION_ORACLE"] === "restic";
if (!isAsked) process.stderr.write("retention is not compared with restic here: npm run test:retention does\n");
const snapshots = 400;
const cases = 300;

interface Snapshot {
  readonly id: string;
  readonly time: string;
  readonly tags?: readonly string[];
}

describe.skipIf(!isAsked)("retention beside restic forget", () => {
  it(`keeps the same of ${snapshots} snapshots in ${cases} random subsets, and the oldest one while a rule has count left`, { timeout: 3_600_000 }, () => {
    const folder = temporaryFolder();
    const repository = join(folder, "restic");
    writeFileSync(join(folder, "file"), "x");
    const restic = (...args: readonly string[]): string =>
      execFileSync("restic", ["-r", repository, "--json", ...args], {
        cwd: folder,
        encoding: "utf8",
        env: { ...process.env, RESTIC_PASSWORD: "x", TZ: "UTC", XDG_CACHE_HOME: folder },
        maxBuffer: 2 ** 28,
      });
    restic("init");
    const next = random(20_261_121);
    // restic leaves snapshots of the future out of "within", as we do: all of these lie in the past
    const start = Date.UTC(2020, 0, 1);
    for (let i = 0; i < snapshots; i++) {
      // over six years, leap days and an ISO week 53 among them; some close together
      const at = new Date(start + Math.floor((1 - next() ** (i % 3 === 0 ? 1 : 3)) * 2300) * 86_400_000 + Math.floor(next() * 86_400) * 1000);
      const tags = Array.from({ length: cases }, (_, tag) => tag).filter(() => next() < 0.1);
      restic("backup", "-q", "--time", at.toISOString().replace("T", " ").slice(0, 19), "--tag", tags.map((tag) => `t${tag}`).join(",") || "none", "file");
    }
    const all = JSON.parse(restic("snapshots")) as Snapshot[];
    expect(all).toHaveLength(snapshots);
    for (let tag = 0; tag < cases; tag++) {
      const chosen = all.filter(({ tags }) => tags?.includes(`t${tag}`));
      if (chosen.length === 0) continue;
      const count = (most: number): number => (next() < 0.5 ? 0 : 1 + Math.floor(next() * most));
      const rules: Record<string, number> = {
        keepLast: count(5),
        hourly: count(30),
        daily: count(30),
        weekly: count(20),
        monthly: count(20),
        yearly: count(4),
      };
      const days = count(400);
      if (days === 0 && Object.values(rules).every((value) => value === 0)) rules["daily"] = 3;
      const flags = Object.entries({ last: rules["keepLast"], ...rules }).flatMap(([name, value]) =>
        name === "keepLast" || !value ? [] : [`--keep-${name}`, String(value)],
      );
      if (days > 0) flags.push("--keep-within", `${days}d`);
      const [group] = JSON.parse(restic("forget", "--dry-run", "--group-by", "", "--tag", `t${tag}`, ...flags)) as { keep: Snapshot[] | null }[];
      const theirs = new Set((group?.keep ?? []).map(({ id }) => id));
      const points = chosen.map(({ id, time }): RetainablePoint => ({ id, atMs: Date.parse(time), isGood: true, isHeld: false }));
      const spec = {
        ...Object.fromEntries(Object.entries(rules).filter(([, value]) => value > 0)),
        ...(days > 0 ? { withinMs: days * 86_400_000 } : {}),
      } as RetentionSpec;
      const ours = new Set(
        retain(points, spec, "UTC", Date.now())
          .filter(({ keptBy }) => keptBy.length > 0)
          .map(({ id }) => id),
      );
      const oldest = points.reduce((a, b) => (b.atMs < a.atMs ? b : a)).id;
      const what = `subset ${tag} of ${chosen.length}, ${JSON.stringify(spec)}`;
      const missed = (group?.keep ?? []).filter(({ id }) => !ours.has(id)).map(({ time }) => time);
      expect([what, missed]).toEqual([what, []]);
      // restic 0.14 does not know the rule of the oldest one
      expect([what, [...ours].filter((id) => !theirs.has(id) && id !== oldest)]).toEqual([what, []]);
    }
  });
});
