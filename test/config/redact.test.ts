import { describe, expect, it } from "vitest";
import { read } from "../support/desired.ts";

const sources = (yaml: string): string => {
  const { diagnostics } = read({ "a.yaml": yaml }, true);
  expect(diagnostics.length).toBeGreaterThan(0);
  return diagnostics.map(({ message, source, label, related }) => [message, source, label, JSON.stringify(related)].join("\n")).join("\n");
};
const schedules = (...entries: string[]): string => `version: v2\nschedules:\n${entries.map((each) => `  - ${each}\n`).join("")}`;
const destination = (fields: string): string => `version: v2\ndestinations:\n  - {name: b, url: "file:///b", ${fields}}\n`;

describe("a secret that stands in a file in plain text", () => {
  it.each([
    ["as it is", destination('secretKey: "swordfish"')],
    ["with the marks that end a value", destination('secretKey: "}swordfish,swordfish"')],
    ["behind a reference", destination('secretKey: "${env:OK}swordfish"')],
    ["before a reference", destination('secretKey: "swordfish${env:OK}"')],
    ["on a line of its own", "version: v2\ndestinations:\n  - name: b\n    url: file:///b\n    secretKey:\n      swordfish\n"],
    ["as a block", "version: v2\ndestinations:\n  - name: b\n    url: file:///b\n    password: |\n      swordfish\n"],
    ["behind a key of two lines", "version: v2\ndestinations:\n  - name: b\n    url: file:///b\n    ? secretKey\n    : swordfish\n"],
    ["as a mapping", destination("token: {a: swordfish}")],
    ["in a list", destination("token: [swordfish]")],
    ["under a name that is unknown", destination('sftpPassword: "swordfish"')],
    ["in the user of a URL", 'version: v2\ndestinations:\n  - {name: b, url: "s3://me:swordfish@b/p"}\n'],
    ["in the query of a URL", 'version: v2\ndestinations:\n  - {name: 1, url: "s3://b/p?token=swordfish"}\n'],
    ["in a URL of an unknown kind", 'version: v2\ndestinations:\n  - {name: b, url: "ftp://me:swordfish@b/p"}\n'],
    ["in text that is not valid YAML", destination('secretKey: "swordfish", x: [')],
    ["as the URL of a notifier", "version: v2\nnotifiers:\n  - {name: n, type: webhook, url: https://hooks.example.com/services/swordfish}\n"],
    ["as the name of a user", "version: v2\nproviders:\n  - {name: v, type: vsphere, url: https://v, username: swordfish, password: x}\n"],
    ["in a URL in place of a destination", `${schedules("{name: a, cron: '0 2 * * *', vms: [/a], destination: 'https://u:p@h/x?token=swordfish'}")}`],
    ["in a URL whose user is very long", `version: v2\ndestinations:\n  - {name: b, url: "s3://${"x".repeat(600)}swordfish@b/p"}\n`],
    [
      "in a URL that the shown part of a long line cuts",
      `version: v2\ndestinations: [${"{name: d, bad: 1, endpoint: 'https://h/'}, ".repeat(60)}{name: d, bad: 1, endpoint: 'https://h/${"x".repeat(213)}', url: 's3://admin:swordfish${"y".repeat(400)}@b'}]\n`,
    ],
    ["behind a key, in text that is not valid YAML", "version: v2\nnotifiers:\n  - name: n\n    token:\n      swordfish: a: b\n"],
    ["as a block, in text that is not valid YAML", "version: v2\nnotifiers:\n  - name: n\n    token: |\n   swordfish\n  x: [\n"],
    ["as a list, in text that is not valid YAML", "version: v2\nnotifiers:\n  - name: n\n    token: [a,\n     swordfish\n    x: ]]\n"],
    ["in quotes over two lines, in text that is not valid YAML", 'version: v2\nnotifiers:\n  - name: n\n    token:\n     "a\\q1\n     swordfish\\q2"\n'],
    ["on a long line", `version: v2\ndestinations: [${"{name: b, url: file:///b}, ".repeat(200)}{name: b, url: file:///b, token: swordfish}]\n`],
    ["at the end of a long line", `version: v2\ndestinations: [{name: b, url: file:///b, token: "${"x".repeat(3000)}swordfish", surprise: 1}]\n`],
  ])("%s: is shown nowhere", (_, yaml) => {
    expect(sources(yaml)).not.toContain("swordfish");
  });

  it("leaves the rest of the line, and references, as they are", () => {
    expect(sources(destination('token: "${env:TOKEN}", region: 1, secretKey: "swordfish"'))).toContain(
      '{name: b, url: "file:///b", token: "${env:TOKEN}", region: 1, secretKey: "*********"}',
    );
  });
});

describe("a file in which very much is wrong", () => {
  const list = (count: number, entry: (i: number) => string): string =>
    `version: v2\nschedules:\n${Array.from({ length: count }, (_, i) => `  - ${entry(i)}\n`).join("")}`;
  const schedule = (i: number, more: string): string => `{name: s${i}, cron: "0 2 * * *", vms: [/v/${i}], destination: "file:///b"${more}}`;

  it.each([
    ["wrong values", list(3000, () => "{name: 1}"), "5000 more"],
    ["names that stand twice", list(3000, () => schedule(0, "")), "1999 more errors"],
    ["schedules that are not there", list(3000, (i) => schedule(i, `, dependsOn: [{schedule: t${i}}]`)), "2000 more errors"],
    ["unknown keys", `version: v2\n${Array.from({ length: 30_000 }, (_, i) => `k${i}: 1\n`).join("")}`, "29000 more"],
  ])("%s: a thousand are told, with how many more there are", (_, yaml, words) => {
    const { diagnostics } = read({ "a.yaml": yaml });
    expect(diagnostics).toHaveLength(1001);
    expect(diagnostics.map(({ message }) => message).join("\n")).toContain(words);
  });

  it("tells of a circle of dependencies once, from its first name on, also when something else is wrong", () => {
    const circle = list(2000, (i) => schedule(i, `, dependsOn: [{schedule: s${(i + 1) % 2000}}]${i === 7 ? ", priority: 101" : ""}`));
    expect(read({ "a.yaml": circle }).diagnostics.map(({ code, message }) => [code, message.slice(0, 60)])).toEqual([
      ["HSE020", "schedules wait for each other: s0 -> s1 -> s2 -> s3 -> s4 ->"],
      ["HSE009", expect.anything()],
    ]);
  });

  it("shows the part of a long line that matters", () => {
    const { diagnostics } = read({ "a.yaml": `version: v2\nschedules: [${schedule(0, "")}, ${`${schedule(1, ", surprise: 1")}, `.repeat(100)}]\n` });
    for (const { source, sourceColumn = 1, column, length, code } of diagnostics) {
      expect(source.length).toBeLessThanOrEqual(300);
      if (code === "HSE006") expect(source.slice(column - sourceColumn, column - sourceColumn + length)).toBe("surprise");
    }
  });
});
