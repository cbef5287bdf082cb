import { mkdirSync, readdirSync, rmSync, statfsSync, statSync } from "node:fs";
import { join } from "node:path";
import { errnoOf, HypersdkError } from "../model/errors.ts";
import { monotonicMs } from "../model/monotonic.ts";
import { gitError, gitIn } from "./git.ts";

/** A branch, a tag or a commit of a repository elsewhere. */
export interface RemoteSource {
  readonly url: string;
  readonly ref: string;
}

/** A repository that has not said what its branch is by then is asked again later. */
const maxAskMs = 60_000;

/** The commit that a repository says its branch or tag is; undefined where it names none by exactly this ref. */
export async function headOf({ url, ref }: RemoteSource, folder: string, env: NodeJS.ProcessEnv, signal?: AbortSignal): Promise<string | undefined> {
  refuseUrl(url);
  refuseRef(ref);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const limit = AbortSignal.timeout(maxAskMs);
  try {
    const listed = await gitIn(folder, env, { signal: signal ? AbortSignal.any([signal, limit]) : limit }).raw([
      "ls-remote",
      "--quiet",
      "--end-of-options",
      url,
      ref,
    ]);
    const named = listed.split("\n").map((line) => line.split("\t"));
    return named.find(([, name]) => name === ref)?.[0];
  } catch (error) {
    if (limit.aborted) throw new HypersdkError("SourceUnavailable", `${shown(url)} did not answer within ${maxAskMs / 1000} s`, { cause: error });
    throw gitError(`cannot reach ${shown(url)}`, error);
  }
}

/** More than any configuration takes: a repository that sends more is not fetched to its end. */
const maxObjectBytes = 512 * 2 ** 20;
const smallHint = "a repository of configuration is small: keep images and archives elsewhere";
/** A checkout that has grown to this over time begins anew. */
const renewedAtBytes = 256 * 2 ** 20;
const maxFetchMs = 600_000;

/** Fetches, and stops git when more comes than may, or when it takes too long. */
async function fetchWithin(folder: string, env: NodeJS.ProcessEnv, url: string, args: readonly string[], signal?: AbortSignal): Promise<void> {
  const objects = join(folder, ".git", "objects");
  const stop = new AbortController();
  let reason: string | undefined;
  let hint: string | undefined;
  const end = (why: string, what?: string): void => {
    hint ??= what;
    reason ??= why;
    stop.abort();
  };
  let [bytes, heardMs] = [0, monotonicMs()];
  const looking = setInterval(() => {
    const now = bytesBelow(objects);
    if (now > maxObjectBytes) end(`it sends more than ${maxObjectBytes / 2 ** 20} MiB`, smallHint);
    if (now !== bytes) [bytes, heardMs] = [now, monotonicMs()];
    else if (monotonicMs() - heardMs > maxAskMs) end(`it said nothing for ${maxAskMs / 1000} s`);
  }, 500);
  const timer = setTimeout(() => end(`it was not fetched within ${maxFetchMs / 60_000} minutes`, smallHint), maxFetchMs);
  try {
    await gitIn(folder, env, { signal: signal ? AbortSignal.any([stop.signal, signal]) : stop.signal }).raw(["fetch", "--quiet", ...args]);
    if (bytesBelow(objects) > maxObjectBytes) end(`it sends more than ${maxObjectBytes / 2 ** 20} MiB`, smallHint);
  } catch (error) {
    if (reason === undefined) throw error;
  } finally {
    clearInterval(looking);
    clearTimeout(timer);
  }
  if (reason === undefined) return;
  rmSync(join(folder, ".git"), { recursive: true, force: true });
  throw new HypersdkError("SourceUnavailable", `${shown(url)}: ${reason}`, hint === undefined ? {} : { hint });
}

function bytesBelow(folder: string): number {
  let sum = 0;
  try {
    for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true }))
      if (entry.isFile()) sum += statSync(join(entry.parentPath, entry.name), { throwIfNoEntry: false })?.size ?? 0;
  } catch (error) {
    // git moves files about while it works
    if (errnoOf(error) === undefined) throw error;
  }
  return sum;
}

/**
 * Fetches one revision into `folder` and checks it out, over whatever was there: a force-push or a revert is an ordinary next
 * state. The caller sees to it that nobody else works in `folder`. Neither URL nor ref can become an option of git.
 */
export async function checkOut({ url, ref }: RemoteSource, folder: string, env: NodeJS.ProcessEnv, signal?: AbortSignal): Promise<void> {
  refuseUrl(url);
  refuseRef(ref);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  removeStaleLocks(folder);
  if (bytesBelow(join(folder, ".git", "objects")) > renewedAtBytes) rmSync(join(folder, ".git"), { recursive: true, force: true });
  const git = gitIn(folder, env);
  await git.raw(["init", "--quiet"]).catch((error: unknown) => Promise.reject(gitError(`cannot make the checkout ${folder}`, error)));
  try {
    await fetchWithin(folder, env, url, ["--depth=1", "--no-tags", "--no-recurse-submodules", "--end-of-options", url, ref], signal);
  } catch (error) {
    if (error instanceof HypersdkError) throw error;
    // servers may refuse to give a commit by its id: then everything that leads to it is fetched
    if (!/^[0-9a-f]{40}$/.test(ref) || !/not our ref|unadvertised|did not send all necessary/i.test(String(error)))
      throw gitError(
        `cannot fetch ${ref.replace(/^refs\/heads\//, "")} from ${shown(url)}`,
        error,
        /^[0-9a-f]{4,39}$/.test(ref) ? "a commit is named by all of its 40 digits" : undefined,
      );
    await fetchWithin(folder, env, url, ["--no-recurse-submodules", "--end-of-options", url, "+refs/*:refs/remote/*"], signal).catch((again: unknown) =>
      Promise.reject(again instanceof HypersdkError ? again : gitError(`cannot fetch ${shown(url)}`, again)),
    );
    await git
      .raw(["cat-file", "-e", `${ref}^{commit}`])
      .catch((missing: unknown) => Promise.reject(gitError(`there is no commit ${ref} in ${shown(url)}`, missing)));
    await git.raw(["update-ref", "FETCH_HEAD", ref]);
  }
  try {
    const stoppable = gitIn(folder, env, signal ? { signal } : {});
    refuseLarge(await stoppable.raw(["ls-tree", "-r", "-l", "-z", "--full-tree", "FETCH_HEAD"]), folder);
    await stoppable.raw(["checkout", "--quiet", "--force", "--detach", "FETCH_HEAD"]);
    await stoppable.raw(["clean", "-ffdxq"]);
  } catch (error) {
    // half a checkout may hold the room that the state needs
    rmSync(folder, { recursive: true, force: true });
    throw error instanceof HypersdkError ? error : gitError(`cannot check out ${ref}`, error);
  }
}

const maxTreeFiles = 200_000;
/** What must stay free beside a checkout. */
const spareBytes = 64 * 2 ** 20;

/**
 * A tree may be a thousand times larger than what was sent of it.
 * @param tree of `git ls-tree -l -z`: mode, kind, id and size, then the path, for each file
 */
function refuseLarge(tree: string, folder: string): void {
  let [files, bytes] = [0, 0];
  for (const [, size] of tree.matchAll(/(?:^|\0)\d+ \w+ [0-9a-f]+ +(\d+|-)\t/g)) {
    files++;
    if (size !== "-") bytes += Number(size);
  }
  const { bavail, bsize } = statfsSync(folder);
  const why =
    files > maxTreeFiles
      ? `it holds ${files} files`
      : bytes > maxObjectBytes
        ? `its files have ${bytes} bytes`
        : bytes + spareBytes > bavail * bsize
          ? `its files have ${bytes} bytes, and there is no room for them in ${folder}`
          : undefined;
  if (why !== undefined) throw new HypersdkError("SourceUnavailable", `the revision cannot be checked out: ${why}`, { hint: smallHint });
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
    ref.replace(/^refs\/(heads|tags)\//, "").startsWith("-") ||
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
