import { appendFileSync, copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { HypersdkError } from "../../model/errors.ts";
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

const github = `name: hypersdk
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
      - run: npx --no-install hypersdk validate
      - if: github.event_name == 'pull_request'
        run: npx --no-install hypersdk plan --offline
      - if: github.event_name != 'pull_request'
        run: npx --no-install hypersdk apply --auto-approve=safe
`;

const gitlab = `stages: [plan, apply]
plan:
  stage: plan
  rules: [{if: $CI_PIPELINE_SOURCE == "merge_request_event"}]
  script: [npx --no-install hypersdk validate, npx --no-install hypersdk plan --offline]
apply:
  stage: apply
  # the runner must see the disks and keep .hypersdk/state.db between runs
  variables: {GIT_CLEAN_FLAGS: none}
  resource_group: hypersdk
  rules: [{if: $CI_PIPELINE_SOURCE == "schedule"}]
  script: [npx --no-install hypersdk apply --auto-approve=safe]
`;

/** Writes a first configuration. Never over a file that is there. */
export async function init(folder: string | undefined, options: InitOptions, io: Io): Promise<number> {
  const top = resolve(io.cwd, folder ?? ".");
  const written: string[] = [];
  if (existsSync(join(top, "infrastructure.yaml")))
    throw new HypersdkError("AlreadyExists", `${join(folder ?? ".", "infrastructure.yaml")} exists already`, { hint: "nothing was written" });
  const write = (name: string, text: string): void => {
    const path = join(top, name);
    if (existsSync(path)) return;
    mkdirSync(join(path, ".."), { recursive: true });
    writeFileSync(path, text, { flag: "wx" });
    written.push(name);
  };
  write("infrastructure.yaml", starter);
  mkdirSync(join(top, ".hypersdk"), { recursive: true });
  copyFileSync(new URL("../../../schemas/infrastructure.schema.json", import.meta.url), join(top, schemaPath));
  written.push(schemaPath);
  if (options.ci === "github") write(".github/workflows/hypersdk.yaml", github);
  if (options.ci === "gitlab") write(".gitlab-ci.yml", gitlab);
  ignore(join(top, ".gitignore"), written);
  if (io.json) io.result("init", { folder: top, written });
  else
    io.out(
      `${written.map((name) => `wrote ${name}\n`).join("")}Next: put disk images under ${join(folder ?? ".", "machines")}, a folder for each machine (git ignores them)${isInGit(top) ? "" : ", git init"}, git add and commit, and look: hypersdk plan\n`,
    );
  return 0;
}

function isInGit(folder: string): boolean {
  for (let at = folder; ; at = dirname(at)) {
    if (existsSync(join(at, ".git"))) return true;
    if (at === dirname(at)) return false;
  }
}

/** The state must never be committed; the schema beside it may. */
function ignore(path: string, written: string[]): void {
  const lines = [".hypersdk/*", `!${schemaPath}`, "/exports/", "/machines/"];
  const known = existsSync(path) ? readFileSync(path, "utf8") : "";
  const missing = lines.filter((line) => !known.split(/\r?\n/).includes(line));
  if (missing.length === 0) return;
  appendFileSync(path, `${known === "" || known.endsWith("\n") ? "" : "\n"}${missing.join("\n")}\n`);
  written.push(".gitignore");
}
