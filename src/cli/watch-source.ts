import { basename, join, relative, resolve, sep } from "node:path";
import { watch as watchFiles } from "chokidar";
import type { ConfigurationSource, Reading } from "../engine/watch.ts";
import { headOf } from "../git/remote.ts";
import { findTop } from "../git/work-tree.ts";
import { errnoOf, HypersdkError } from "../model/errors.ts";
import { ConfigInvalid, carriedOut } from "./desired.ts";
import { homeOf, type Loaded, load, refOf, type SourceOptions } from "./load.ts";

/** Changes that come together are read together. */
const debounceMs = 300;

/** What the options name, as a source that can be asked again and again. */
export async function watchSource(options: SourceOptions, env: NodeJS.ProcessEnv, cwd: string): Promise<ConfigurationSource> {
  if (options.repo !== undefined) return remoteSource(options.repo, options, env, cwd);
  const named = (options.file ?? []).map((name) => resolve(cwd, name));
  const top = await findTop(cwd, env);
  if (top === undefined && named.length === 0) await load(options, env, cwd);
  const folders = named.length > 0 ? named : top === undefined ? [] : [top];
  let last: string | undefined;
  return {
    name: named.length > 0 ? (options.file ?? []).join(", ") : (top ?? cwd),
    async read(signal) {
      const loaded = await loadOrRefuse(options, env, cwd, signal);
      if (loaded instanceof HypersdkError) {
        last = undefined;
        return { revision: null, content: { problem: loaded } };
      }
      // what is in the files, and of which commit
      const now = loaded.contentHash + JSON.stringify(loaded.revision);
      if (now === last) return undefined;
      last = now;
      return readingOf(loaded);
    },
    async onChange(changed) {
      let timer: NodeJS.Timeout | undefined;
      const soon = (): void => {
        clearTimeout(timer);
        timer = setTimeout(changed, debounceMs);
      };
      const git = folders.map((folder) => join(folder, ".git"));
      const watcher = watchFiles([...folders, ...git.flatMap((folder) => [join(folder, "HEAD"), join(folder, "logs", "HEAD")])], {
        ignoreInitial: true,
        ignored: (path, stats) => !git.some((folder) => path.startsWith(folder + sep)) && isIgnored(path, folders, stats?.isFile() ?? false),
      });
      watcher.on("all", soon).on("error", soon);
      return async () => {
        clearTimeout(timer);
        await watcher.close();
      };
    },
  };
}

/** Hidden folders, what programs install, and files that are no YAML. */
function isIgnored(path: string, folders: readonly string[], isFile: boolean): boolean {
  const top = folders.find((folder) => path === folder || path.startsWith(folder + sep));
  const parts = top === undefined ? [basename(path)] : relative(top, path).split(sep);
  if (parts.some((part) => (part.startsWith(".") && part !== ".") || part === "node_modules")) return path !== top;
  return isFile && !/\.ya?ml$/.test(path);
}

function remoteSource(repo: string, options: SourceOptions, env: NodeJS.ProcessEnv, cwd: string): ConfigurationSource {
  const source = { url: repo, ref: refOf(options) };
  let last: string | undefined;
  return {
    name: `${repo.replace(/\/\/[^/@]*@/, "//…@")} ${source.ref.replace(/^refs\/heads\//, "")}`,
    async read(signal) {
      const head = await headOf(source, homeOf(repo, options, env), env, signal);
      if (head !== undefined && head === last) return undefined;
      const loaded = await loadOrRefuse(options, env, cwd, signal);
      // a revision that nobody signed is looked at again: its key may be added
      last = loaded instanceof HypersdkError ? undefined : head;
      if (!(loaded instanceof HypersdkError)) return readingOf(loaded);
      const commit = head ?? null;
      return { revision: { commit, branch: options.branch ?? null, author: null, dirty: false }, content: { problem: loaded } };
    },
  };
}

/** A revision that nobody signed, or that is too large, is refused as one that is invalid is; what cannot be reached is no revision at all. */
async function loadOrRefuse(options: SourceOptions, env: NodeJS.ProcessEnv, cwd: string, signal: AbortSignal): Promise<Loaded | HypersdkError> {
  try {
    return await load(options, env, cwd, signal);
  } catch (error) {
    if (error instanceof HypersdkError && (error.code === "SignatureRefused" || error.code === "ConfigInvalid")) return error;
    const errno = error instanceof HypersdkError ? undefined : errnoOf(error);
    // a file system that is full, or where things come and go while they are read
    throw errno === undefined ? error : new HypersdkError("SourceUnavailable", `the source cannot be read: ${(error as Error).message}`, { cause: error });
  }
}

/** Warnings that are told of one revision. */
const mostWarnings = 20;

function readingOf(loaded: Loaded): Reading {
  const { revision, diagnostics } = loaded;
  const warnings = diagnostics
    .filter(({ severity }) => severity === "warning")
    .slice(0, mostWarnings)
    .map(({ code, file, line, message }) => ({ code, text: `${file}:${line}: ${message}` }));
  try {
    return { revision, content: { desired: carriedOut(loaded) }, warnings };
  } catch (error) {
    if (!(error instanceof ConfigInvalid)) throw error;
    const first = error.diagnostics.find(({ severity }) => severity === "error");
    const where = first ? `: ${first.file}:${first.line}: ${first.message}` : "";
    return { revision, content: { problem: new ConfigInvalid(error.diagnostics, `${error.message}${where}`, "hypersdk validate shows all of it") } };
  }
}
