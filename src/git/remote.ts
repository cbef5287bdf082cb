import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { HypersdkError } from "../model/errors.ts";
import { gitError, gitIn } from "./git.ts";

/** A branch, a tag or a commit of a repository elsewhere. */
export interface RemoteSource {
  readonly url: string;
  readonly ref: string;
}

/**
 * Fetches one revision into `folder` and checks it out, over whatever was there: a force-push or a revert is an ordinary next
 * state. The caller sees to it that nobody else works in `folder`. Neither URL nor ref can become an option of git.
 */
export async function checkOut({ url, ref }: RemoteSource, folder: string, env: NodeJS.ProcessEnv): Promise<void> {
  refuseUrl(url);
  refuseRef(ref);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  removeStaleLocks(folder);
  const git = gitIn(folder, env);
  await git.raw(["init", "--quiet"]).catch((error: unknown) => Promise.reject(gitError(`cannot make the checkout ${folder}`, error)));
  try {
    await git.raw(["fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--end-of-options", url, ref]);
  } catch (error) {
    // servers may refuse to give a commit by its id: then everything that leads to it is fetched
    if (!/^[0-9a-f]{40}$/.test(ref) || !/not our ref|unadvertised|did not send all necessary/i.test(String(error)))
      throw gitError(`cannot fetch ${ref} from ${shown(url)}`, error);
    await git
      .raw(["fetch", "--quiet", "--no-recurse-submodules", "--end-of-options", url, "+refs/*:refs/remote/*"])
      .catch((again: unknown) => Promise.reject(gitError(`cannot fetch ${shown(url)}`, again)));
    await git
      .raw(["cat-file", "-e", `${ref}^{commit}`])
      .catch((missing: unknown) => Promise.reject(gitError(`there is no commit ${ref} in ${shown(url)}`, missing)));
    await git.raw(["update-ref", "FETCH_HEAD", ref]);
  }
  try {
    await git.raw(["checkout", "--quiet", "--force", "--detach", "FETCH_HEAD"]);
    await git.raw(["clean", "-ffdxq"]);
  } catch (error) {
    throw gitError(`cannot check out ${ref}`, error);
  }
}

/** What a git that was killed left behind would stop the next one for ever. */
function removeStaleLocks(folder: string): void {
  for (const name of ["index.lock", "shallow.lock", "HEAD.lock", "config.lock", "packed-refs.lock"]) rmSync(join(folder, ".git", name), { force: true });
}

function refuseUrl(url: string): void {
  const isKnown = /^(https|ssh|file):\/\/[^\s]+$/.test(url) || /^[A-Za-z0-9_.-]+@[A-Za-z0-9.-]+:[^\s:][^\s]*$/.test(url);
  if (!isKnown || url.startsWith("-") || /[\u0000-\u001f]/.test(url)) {
    throw new HypersdkError("SourceUnavailable", `${JSON.stringify(shown(url))} is no repository that can be fetched`, {
      hint: "https://host/path, ssh://host/path, user@host:path or file:///path",
    });
  }
  if (/^https:\/\/[^/]*:[^/]*@/.test(url)) {
    throw new HypersdkError("SourceUnavailable", "the repository's URL holds a password", {
      hint: "give it to git through a credential helper: nothing may hold it in plain text",
    });
  }
}

/** The rules of git-check-ref-format, and nothing that looks like an option. */
function refuseRef(ref: string): void {
  if (
    ref === "" ||
    ref.startsWith("-") ||
    ref.startsWith("/") ||
    ref.endsWith("/") ||
    ref.endsWith(".") ||
    ref.endsWith(".lock") ||
    /\.\.|@\{|\/\/|[\u0000-\u0020\u007f~^:?*[\\]/.test(ref)
  ) {
    throw new HypersdkError("SourceUnavailable", `${JSON.stringify(ref)} is no branch, tag or commit`, {
      hint: "such as main, v1.2 or the 40 digits of a commit",
    });
  }
}

function shown(url: string): string {
  return url.replace(/\/\/[^/@]*@/, "//…@");
}

/** The folder inside a checkout that holds the configuration; a path that leads out is refused. */
export function insideOf(checkout: string, path: string): string {
  if (path.startsWith("/") || path.split("/").includes(".."))
    throw new HypersdkError("SourceUnavailable", `${JSON.stringify(path)} leads out of the repository`);
  return join(checkout, path);
}
