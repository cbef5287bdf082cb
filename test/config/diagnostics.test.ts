import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { complaints, read, smallest } from "../support/desired.ts";

const codes = (yaml: string, wasNamed = false): string[] =>
  read({ "a.yaml": yaml }, wasNamed).diagnostics.map(({ code, line, column }) => `${code} ${line}:${column}`);
const schedule = (lines: string): string =>
  `version: v2\nschedules:\n  - name: nightly\n    cron: "0 2 * * *"\n    vms: [/datacenter/vm/*]\n    destination: file:///srv/backups\n${lines}`;

describe("an error", () => {
  it("in one field does not hide those in the others of its entry", () => {
    const broken = schedule("    priority: urgent\n    timezone: Europe/Berln\n    surprise: 1\n")
      .replace("0 2 * * *", "0 25 * * *")
      .replace("/datacenter/vm/*", "datacenter");
    expect(codes(broken)).toEqual(["HSE015 4:11", "HSE009 5:11", "HSE009 7:15", "HSE016 8:15", "HSE006 9:5"]);
  });

  it("is a destination inside the folder that machines come from", () => {
    const inside =
      "version: v2\nproviders:\n  - {name: lab, type: local, path: ./machines}\ndestinations:\n  - {name: backups, url: file:./machines/exports}\n";
    expect(codes(inside)).toEqual(["HSE025 5:26"]);
    expect(codes(inside.replace("./machines/exports", "./machines-exports"))).toEqual([]);
    expect(codes(smallest.replace("file:///srv/backups", "file:./machines"))).toEqual(["HSE025 6:18"]);
  });

  it("in an entry hides neither what it refers to nor a circle that it is in", () => {
    const entry = (name: string, more: string): string =>
      `  - {name: ${name}, cron: "0 2 * * *", vms: [bad], destination: "file:///b", dependsOn: [{schedule: ${more}}]}\n`;
    const text = `version: v2\nschedules:\n${entry("a", "nobody")}${entry("f", "g")}${entry("g", "f")}policies:\n  - {name: p, match: [bad], schedule: nobody}\n`;
    const { diagnostics } = read({ "a.yaml": text });
    expect(diagnostics.map(({ code, line }) => `${code} ${line}`)).toEqual([
      "HSE009 3",
      "HSE013 3",
      "HSE009 4",
      "HSE020 4",
      "HSE009 5",
      "HSE009 7",
      "HSE013 7",
    ]);
  });

  it("is a key that stands twice, once by an alias", () => {
    expect(codes(schedule("    retention: {&k keepLast: 30, *k : 1}\n"))).toEqual(["HSE005 7:34"]);
  });

  it("is a rename that two VMs claim, or none", () => {
    const renames = (...list: string[]): string => `${smallest}renames:\n${list.map((each) => `  - ${each}\n`).join("")}`;
    const lines = smallest.split("\n").length;
    expect(codes(renames("{vm: /d/x, formerly: /d/a}", "{vm: /d/y, formerly: /d/a}"))).toEqual([`HSE030 ${lines + 2}:26`]);
    expect(codes(renames("{vm: /d/x, formerly: /d/a}", "{vm: /d/x, formerly: /d/b}"))).toEqual([`HSE030 ${lines + 2}:10`]);
    expect(codes(renames("{vm: /d/x, formerly: /d/x}"))).toEqual([`HSE030 ${lines + 1}:26`]);
    expect(codes(renames("{vm: /d/x, formerly: /d/y}", "{vm: /d/y, formerly: /d/x}"))).toEqual([]);
  });

  it("points at the value, says why, and what was probably meant", () => {
    expect(
      complaints({
        "infra/schedules.yaml": smallest
          .replace("file:///srv/backups", "backup")
          .replace("schedules:", "destinations:\n  - {name: backups, url: file:///srv/b}\nschedules:"),
      }),
    ).toMatchInlineSnapshot(`
      "error: unknown destination "backup"                                         HSE012
        ┌─ infra/schedules.yaml:8:18
        │
      8 │     destination: backup
        │                  ^^^^^^ no destination has this name; did you mean "backups"?
      "
    `);
  });

  it("about something that never ends points at the end of what is there", () => {
    const open = smallest.replace("file:///srv/backups", '"file:///srv/backups');
    const lines = open.trimEnd().split("\n");
    for (const { line, column, source } of read({ "a.yaml": `${open}\n\n` }).diagnostics)
      expect({ line, column, source }).toEqual({ line: lines.length, column: expect.any(Number) as number, source: lines.at(-1) });
    expect(codes(`${open}\n\n`).length).toBeGreaterThan(0);
  });

  it("about an unknown key points at the key", () => {
    expect(codes(schedule("    retentoin: 30d\n"))).toEqual(["HSE006 7:5"]);
  });

  it.each([
    ["a wrong type", '    suspend: "yes"\n', "HSE008 7:14"],
    ["months as a duration", "    retention: 6m\n", "HSE018 7:16"],
    ["a cron of six fields", "    cron: x\n", "HSE005 7:5"],
    ["an unknown timezone", "    timezone: Europe/Berlim\n", "HSE016 7:15"],
    ["a compressed raw image", "    format: raw\n    compression: zlib\n", "HSE023 8:18"],
    ["a secret in plain text", "    encryption: {key: hunter2}\n", "HSE019 7:23"],
    ["a dependency on itself", "    dependsOn: [{schedule: nightly}]\n", "HSE020 7:16"],
    ["an unknown schedule", "    dependsOn: [{schedule: nigthly}]\n", "HSE013 7:28"],
    ["an unknown schedule beside another error", "    dependsOn: [{schedule: nigthly}]\n    retention: 6m\n", "HSE013 7:28"],
  ])("%s has its code and its place", (_, lines, expected) => {
    expect(codes(schedule(lines))).toContain(expected);
  });

  it("of many in one file and of many files are all told, in file order", () => {
    const all = read({ "b.yaml": schedule("    priority: 101\n    rpo: soon\n"), "a.yaml": schedule("").replace("0 2 * * *", "0 2 31 2 *") }).diagnostics.map(
      ({ file, code }) => `${file} ${code}`,
    );
    // both are called nightly
    expect(all).toEqual(["a.yaml HSE015", "b.yaml HSE010", "b.yaml HSE009", "b.yaml HSE018"]);
  });

  it("hides none of another kind: a key twice, a wrong shape and a reference to nothing are told at once", () => {
    const text = `${schedule("    priority: 101\n    dependsOn: [{schedule: weekly}]\n")}policies:\n  - {name: p, match: "/a/../b", schedule: nightly}\ndestinations:\n  - {name: x, url: "file:///a"}\ndestinations:\n  - {name: y, url: "s3://key:secret@b"}\n`;
    expect(codes(text).map((each) => each.split(" ")[0])).toEqual(expect.arrayContaining(["HSE005", "HSE009", "HSE013", "HSE017", "HSE022"]));
  });

  it("about a name that stands twice shows both places", () => {
    const [found] = read({ "a.yaml": smallest, "b.yaml": smallest }).diagnostics;
    expect(found).toMatchObject({ code: "HSE010", file: "b.yaml", line: 3, related: { file: "a.yaml", line: 3 } });
  });

  it("never shows a secret", () => {
    expect(complaints({ "a.yaml": 'version: v2\ndestinations:\n  - {name: s, url: "sftp://me:hunter2@host/x"}\n' }).split("\n")[0]).not.toContain("hunter2");
  });
});

describe("hostile YAML", () => {
  it.each([
    ["that does not parse", "version: v2\nschedules: [\n", "HSE001"],
    ["with a key twice", "version: v2\nversion: v2\n", "HSE005"],
    ["with aliases in a circle", "version: v2\nschedules: &a [*a]\n", "HSE00"],
    [
      "that expands without end",
      `version: v2\na: &a [x,x,x,x,x,x,x,x,x,x]\n${"bcdef"
        .split("")
        .map((name, i) => `${name}: &${name} [${`*${"abcde"[i]},`.repeat(10)}]`)
        .join("\n")}\n`,
      "HSE004",
    ],
    ["that is nested too deeply", `version: v2\nschedules: ${"[".repeat(20_000)}\n`, "HSE001"],
    ["with a prototype key", "version: v2\n__proto__: {x: 1}\n", "HSE006"],
  ])("%s is refused", (_, yaml, code) => {
    expect(read({ "a.yaml": yaml }).diagnostics[0]?.code).toContain(code);
  });

  it("of others in a folder is counted and left alone, and an error where it was named", () => {
    const helm = "{{ if .Values.x }}\nkind: Deployment\n{{ end }}\n---\nfoo: bar\n";
    expect(read({ "a.yaml": smallest, "helm.yaml": helm })).toMatchObject({ ignoredDocuments: 2, diagnostics: [] });
    expect(codes(helm, true)).toEqual(["HSE011 1:1"]);
  });

  it("of a later version of the format is not taken for somebody else's", () => {
    expect(codes(smallest.replace("v2", "v3"))).toEqual(["HSE009 1:10"]);
  });
});

describe("a finding", () => {
  it.each([
    [
      '"0 20 * * *"\n    timezone: UTC\n    windows: [{start: "22:00", end: "03:00", days: [Fri]}]',
      "of 400 firings, 343 never start as the next comes first; each of the others waits for a window to open, up to 2h",
    ],
    ['"0 20 * * *"\n    timezone: UTC\n    windows: [{start: "22:00", end: "23:00"}]', "every run waits for a window to open, up to 2h"],
    ['"0 0 * * *"\n    timezone: UTC\n    suspend: true\n    windows: [{start: "23:59", end: "00:00"}]', "every run waits for a window to open, up to 23h 59m"],
  ])("of a cron and windows that do not meet says what becomes of the runs: %s", (cron, label) => {
    const { diagnostics } = read({ "a.yaml": schedule("").replace('"0 2 * * *"', cron) });
    expect(diagnostics.map(({ code, label: said }) => [code, said])).toEqual([["HSW006", label]]);
  });

  it.each(['"* * * * *"\n    windows: [{start: "22:00", end: "23:00"}]', '"0 * * * *"\n    windows: [{start: "04:00", end: "05:00"}]'])(
    "is not made of a cron that fires often and meets its windows sometimes: %s",
    (cron) => {
      expect(codes(schedule("").replace('"0 2 * * *"', cron))).toEqual([]);
    },
  );

  it.each([
    ["the same pattern", "/datacenter/vm/*", "/datacenter/vm/*", true],
    ["one inside the other", "/datacenter/vm/*", "/datacenter/vm/prod/web", true],
    ["the other inside the one", "/datacenter/vm/prod/web-??", "/datacenter/**", true],
    ["folders apart", "/datacenter/vm/prod/*", "/datacenter/vm/test/*", false],
  ])("policies that disagree about VMs are told of: %s", (_, one, other, isTold) => {
    const text = `${schedule("")}policies:\n  - {name: p, match: "${one}", schedule: nightly, priority: high}\n  - {name: q, match: "${other}", schedule: nightly, priority: low}\n`;
    expect(codes(text).some((each) => each.startsWith("HSW002"))).toBe(isTold);
    expect(codes(text.replace("low", "high")).some((each) => each.startsWith("HSW002"))).toBe(false);
  });

  it.each([
    ["HSW001", '"0 2 1 * 1"'],
    ["HSW004", '"0 2 * * 0"\n    retention: 3d'],
    ["HSW006", '"0 12 * * *"\n    windows: [{start: "22:00", end: "06:00"}]'],
    // on one day of the year 02:00 is 03:00
    ["HSW006", '"0 2 * * *"\n    timezone: Europe/Berlin\n    windows: [{start: "03:00", end: "06:00"}]'],
    ["HSW020", '"0 2 * * *"\n    rpo: 2h'],
  ])("%s is reported, and silenced with a reason on the line above", (code, cron) => {
    const yaml = schedule("").replace('"0 2 * * *"', cron);
    expect(codes(yaml).map((each) => each.slice(0, 6))).toEqual([code]);
    const line = Number((codes(yaml)[0] as string).split(" ")[1]?.split(":")[0]);
    const silenced = (reason: string): string =>
      yaml
        .split("\n")
        .toSpliced(line - 1, 0, `    # hypersdk-ignore: ${code}${reason}`)
        .join("\n");
    expect(codes(silenced(" it is meant"))).toEqual([]);
    expect(codes(silenced(""))).toEqual([`HSW011 ${line}:5`]);
  });

  it("tells of an endpoint over plain http, and of a webhook's URL in a VMBackup", () => {
    const plain = "version: v2\ndestinations:\n  - {name: s, url: s3://b, endpoint: http://minio:9000}\n";
    expect(codes(plain).map((each) => each.slice(0, 6))).toContain("HSW005");
    const backup = `${readFileSync(join(import.meta.dirname, "../../examples/vmbackup/web.yaml"), "utf8")}  notifications:\n    - {type: webhook, webhook: "https://hooks.example.com/x"}\n`;
    expect(codes(backup).map((each) => each.slice(0, 6))).toContain("HSW013");
  });

  it("names every field that does not work yet", () => {
    const whole = readFileSync(join(import.meta.dirname, "../../examples/whole/infrastructure.yaml"), "utf8");
    const { desired, diagnostics } = read({ "infrastructure.yaml": whole });
    expect(diagnostics.filter(({ severity }) => severity === "error")).toEqual([]);
    expect(desired?.notAvailable.map(({ what }) => what)).toEqual([
      'provider type "vsphere"',
      "a destination at s3://",
      'notifier type "slack"',
      'notifier type "email"',
      '"carbon"',
      "a destination at azure://",
      "alerts",
    ]);
  });
});

describe("a VMBackup document", () => {
  it("becomes one schedule named by namespace and name", () => {
    const text = readFileSync(join(import.meta.dirname, "../../examples/vmbackup/web.yaml"), "utf8");
    expect(read({ "web.yaml": text }).desired?.schedules).toMatchObject([
      { name: "shop-web", cron: "0 3 * * *", vms: ["/datacenter/vm/web"], destination: "file:///srv/backups", retention: { daily: 7, weekly: 4 } },
    ]);
  });
});

describe("defaults", () => {
  it("hold for every schedule that sets none of its own, in all files", () => {
    const { desired } = read({ "a.yaml": "version: v2\ndefaults: {timezone: Europe/Berlin, format: raw}\n", "b.yaml": smallest });
    expect(desired?.schedules[0]).toMatchObject({ timezone: "Europe/Berlin", format: "raw" });
  });
  it("that contradict each other are an error", () => {
    expect(read({ "a.yaml": "version: v2\ndefaults: {format: raw}\n", "b.yaml": "version: v2\ndefaults: {format: qcow2}\n" }).diagnostics[0]?.code).toBe(
      "HSE021",
    );
  });
});
