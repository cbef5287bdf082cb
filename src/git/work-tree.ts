import { join } from "node:path";
import { HypersdkError } from "../model/errors.ts";
import type { Cache } from "../model/ports.ts";
import type { Revision } from "../plan/plan.ts";
import { gitError, gitIn } from "./git.ts";

export interface WorkTree {
  /** The absolute top folder. */
  readonly top: string;
  readonly revision: Revision;
  /** The YAML files that git tracks or does not ignore, below the folder that was asked for, relative to `top`, sorted. */
  readonly files: readonly string[];
}

/** The work tree that holds `folder`; undefined when there is none. */
export async function findTop(folder: string, env: NodeJS.ProcessEnv): Promise<string | undefined> {
  try {
    return (await gitIn(folder, env).raw(["rev-parse", "--show-toplevel"])).trim() || undefined;
  } catch (error) {
    if (/not a git repository|must be run in a work tree/i.test(String(error))) return undefined;
    if (/dubious ownership/i.test(String(error))) throw gitError(`the work tree of ${folder} belongs to another user`, error);
    if (/ENOENT|spawn git/.test(String(error)))
      throw new HypersdkError("SourceUnavailable", "git is not installed", { hint: "install git, or name files with -f" });
    return undefined;
  }
}

/**
 * Reads what a work tree holds now.
 * @param below the folder to list, relative to `top`; "" for all
 * @param authors of commits that were looked at before
 */
export async function readWorkTree(top: string, below: string, env: NodeJS.ProcessEnv, authors?: Cache): Promise<WorkTree> {
  const git = gitIn(top, env);
  const inside = below === "" ? [] : ["--", `:(top,literal)${below}`];
  const patterns = below === "" ? ["--", ":(top)*.yaml", ":(top)*.yml"] : inside;
  try {
    const [listed, revision] = await Promise.all([
      git.raw(["ls-files", "-z", "--full-name", "--cached", "--others", "--exclude-standard", ...patterns]),
      revisionOf(top, env, authors),
    ]);
    const files = [...new Set(listed.split("\0").filter((path) => /\.ya?ml$/.test(path)))].sort();
    return { top, revision, files };
  } catch (error) {
    throw gitError(`git cannot list ${join(top, below)}`, error);
  }
}

/** The ids of all files of a commit, by their paths. */
export async function blobsOf(top: string, commit: string, env: NodeJS.ProcessEnv): Promise<Map<string, string>> {
  const listed = await gitIn(top, env).raw(["ls-tree", "-r", "-z", "--full-tree", "--end-of-options", commit]);
  return new Map(
    listed.split("\0").flatMap((entry) => {
      const [, kind, id] = entry.slice(0, entry.indexOf("\t")).split(" ");
      return kind === "blob" && id !== undefined ? [[entry.slice(entry.indexOf("\t") + 1), id] as const] : [];
    }),
  );
}

/** Symbolic links to YAML, and submodules: what a commit names and nothing is read of. */
export async function notFollowed(top: string, env: NodeJS.ProcessEnv): Promise<{ readonly path: string; readonly kind: "symbolic link" | "submodule" }[]> {
  const listed = await gitIn(top, env).raw(["ls-files", "-z", "--stage"]);
  return listed.split("\0").flatMap((entry): { readonly path: string; readonly kind: "symbolic link" | "submodule" }[] => {
    const path = entry.slice(entry.indexOf("\t") + 1);
    if (entry.startsWith("160000 ")) return [{ path, kind: "submodule" as const }];
    // a link without an ending may be one to a folder of YAML
    const mayBeYaml = /\.ya?ml$/.test(path) || !path.slice(path.lastIndexOf("/")).includes(".");
    return entry.startsWith("120000 ") && mayBeYaml ? [{ path, kind: "symbolic link" as const }] : [];
  });
}

/** Commit, branch, author, and whether the YAML files differ from the commit. */
export async function revisionOf(top: string, env: NodeJS.ProcessEnv, authors?: Cache): Promise<Revision> {
  const git = gitIn(top, env);
  const status = await git.raw([
    "status",
    "--porcelain=v2",
    "--branch",
    "-z",
    "--untracked-files=normal",
    "--ignore-submodules=all",
    "--",
    ":(top)*.yaml",
    ":(top)*.yml",
  ]);
  const entries = status.split("\0");
  const head = (key: string): string | undefined => entries.find((entry) => entry.startsWith(`# branch.${key} `))?.slice(`# branch.${key} `.length);
  const commit = head("oid");
  const hasCommit = commit !== undefined && commit !== "(initial)";
  let author = hasCommit ? authors?.get(commit) : "";
  if (author === undefined) {
    author = (await git.raw(["log", "-1", "--no-show-signature", "--format=%an <%ae>", "--end-of-options", commit as string])).trim();
    authors?.put(commit as string, author);
  }
  const branch = head("head");
  return {
    commit: hasCommit ? commit : null,
    branch: branch === undefined || branch === "(detached)" ? null : branch,
    author: author || null,
    dirty: entries.some((entry) => entry !== "" && !entry.startsWith("# ")),
  };
}
