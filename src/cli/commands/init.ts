import { appendFileSync, existsSync, lstatSync, mkdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join, relative, resolve, sep } from "node:path";
import { fileError } from "../../files/local-file-sink.ts";
import { errnoOf, HypersdkError } from "../../model/errors.ts";
import { schemaText } from "../../model/published-schema.ts";
import type { Io } from "../io.ts";

export interface InitOptions {
  readonly ci?: "github" | "gitlab";
}

const schemaPath = ".hypersdk/infrastructure.schema.json";

const starter = `# yaml-language-server: $schema=./${schemaPath}
version: v2

# Where VMs come from: a folder tree of disk images.
providers:
  - name: lab
    type: local
    path: ./machines
    root: /datacenter/vm

# Where exports go. file:./exports is beside this file; file:///srv/backups is anywhere.
destinations:
  - name: backups
    url: file:./exports

# When which VMs are exported where.
schedules:
  - name: nightly
    # minute hour day month weekday
    cron: "0 2 * * *"
    timezone: UTC
    # everything below, at any depth
    vms: [/datacenter/vm/*]
    destination: backups
    format: qcow2
    retention: {daily: 7, weekly: 4}
`;

const ciFiles = {
  github: {
    name: ".github/workflows/hypersdk.yaml",
    text: (path: string) => `name: hypersdk
on:
  pull_request:
  schedule: [{cron: "5 * * * *"}]
jobs:
  reconcile:
    # the runner must see the disks and keep .hypersdk/state.db between runs
    runs-on: self-hosted
    concurrency: hypersdk
    steps:
      - uses: actions/checkout@v4
        with: {clean: false}
      - run: npx --no-install hypersdk validate${path}
      - if: github.event_name == 'pull_request'
        run: npx --no-install hypersdk plan --offline${path}
      - if: github.event_name != 'pull_request'
        run: npx --no-install hypersdk apply --auto-approve=safe${path}
`,
  },
  gitlab: {
    name: ".gitlab-ci.yml",
    text: (path: string) => `stages: [plan, apply]
plan:
  stage: plan
  rules: [{if: $CI_PIPELINE_SOURCE == "merge_request_event"}]
  script:
    - npx --no-install hypersdk validate${path}
    - npx --no-install hypersdk plan --offline${path}
apply:
  stage: apply
  # the runner must see the disks and keep .hypersdk/state.db between runs
  variables: {GIT_CLEAN_FLAGS: none}
  resource_group: hypersdk
  rules: [{if: $CI_PIPELINE_SOURCE == "schedule"}]
  script:
    - npx --no-install hypersdk apply --auto-approve=safe${path}
`,
  },
} as const;

/** Writes a first configuration, and with `--ci` the pipeline for it, also where the configuration is there already. Never over a file that is there. */
export async function init(folder: string | undefined, options: InitOptions, io: Io): Promise<number> {
  const home = realPathOf(resolve(io.cwd, folder ?? "."));
  const top = workTreeOf(home);
  const ci = options.ci && ciFiles[options.ci];
  // a pipeline is read from the top of the repository alone
  const ciPath = ci && join(top ?? home, ci.name);
  const option = ci ? pathOption(top ?? home, home) : "";
  const config = join(home, "infrastructure.yaml");
  for (const path of ci && ciPath ? [ciPath] : [config])
    if (lstatSync(path, { throwIfNoEntry: false }))
      throw new HypersdkError("AlreadyExists", `${relative(io.cwd, path)} exists already`, { hint: "nothing was written" });
  const written: string[] = [];
  const write = (path: string, text: string): void => {
    try {
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, text, { flag: "wx" });
    } catch (error) {
      // a half would be in the way of the next attempt
      if (errnoOf(error) !== "EEXIST") rmSync(path, { force: true });
      throw fileError(path, error);
    }
    written.push(relative(home, path));
  };
  const isNew = !existsSync(config);
  if (isNew) {
    const schema = join(home, schemaPath);
    rmSync(schema, { force: true });
    write(schema, schemaText("infrastructure"));
    ignore(join(home, ".gitignore"), written);
    // last: where it is there, everything is
    write(config, starter);
  }
  if (ci && ciPath) write(ciPath, ci.text(option));
  if (io.json) io.result("init", { folder: home, written });
  else {
    const machines = join(folder ?? ".", "machines");
    const next = isNew
      ? `Next: put disk images under ${machines}, a folder for each machine (git ignores them)${top === undefined ? ", git init" : ""}, git add and commit, and look: hypersdk plan`
      : "Next: git add and commit it";
    io.out(`${written.map((name) => `wrote ${name}\n`).join("")}${next}\n`);
  }
  return 0;
}

/** What commands of a pipeline need to find a configuration below the top. @throws Usage for a name that a shell or YAML would take apart */
function pathOption(top: string, home: string): string {
  const path = relative(top, home).split(sep).join("/");
  if (path === "") return "";
  if (!/^[\w./-]+$/.test(path) || path.startsWith("-"))
    throw new HypersdkError("Usage", `a pipeline cannot name the folder ${JSON.stringify(path)}`, {
      hint: "letters, digits, dots and dashes are safe in every shell",
    });
  return ` --path ${path}`;
}

/** Without links, of a folder that need not be there yet. */
function realPathOf(folder: string): string {
  return existsSync(folder) ? realpathSync(folder) : join(realPathOf(dirname(folder)), basename(folder));
}

/** The top of the work tree that a folder, which need not be there yet, is in. */
function workTreeOf(folder: string): string | undefined {
  for (let at = folder; ; at = dirname(at)) {
    if (existsSync(join(at, ".git"))) return at;
    if (at === dirname(at)) return undefined;
  }
}

/** The state must never be committed; the schema beside it may. */
function ignore(path: string, written: string[]): void {
  const lines = [".hypersdk/*", `!${schemaPath}`, "/exports/", "/machines/"];
  const known = existsSync(path) ? readFileSync(path, "utf8") : "";
  const missing = lines.filter((line) => !known.split(/\r?\n/).includes(line));
  if (missing.length === 0) return;
  try {
    appendFileSync(path, `${known === "" || known.endsWith("\n") ? "" : "\n"}${missing.join("\n")}\n`);
  } catch (error) {
    throw fileError(path, error);
  }
  written.push(".gitignore");
}
