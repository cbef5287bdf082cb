import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, realpathSync, statSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join, posix, relative, resolve, sep } from "node:path";
import type { Access } from "../config/access.ts";
import { type Combined, type ConfigFile, combine } from "../config/combine.ts";
import { type Diagnostic, sortDiagnostics } from "../config/diagnostic.ts";
import { SourceFile } from "../config/source-file.ts";
import { checkOut, insideOf } from "../git/remote.ts";
import { verifyCommit } from "../git/signatures.ts";
import { blobsOf, findTop, notFollowed, readWorkTree, revisionOf } from "../git/work-tree.ts";
import { errnoOf, errnoText, HypersdkError } from "../model/errors.ts";
import type { Revision } from "../plan/plan.ts";
import { ProcessLock } from "../state/process-lock.ts";
import { cacheFolder } from "./cache-folder.ts";
import { listenForInterrupts } from "./interrupts.ts";
import { lostFiles } from "./lost-files.ts";
import { ParseCache } from "./parse-cache.ts";

/** Options that say where the desired state is. */
export interface SourceOptions {
  readonly file?: readonly string[];
  readonly repo?: string;
  readonly branch?: string;
  readonly ref?: string;
  readonly path?: string;
  readonly allowEnv?: readonly string[];
  readonly allowPath?: readonly string[];
  readonly state?: string;
  /** A keyring: only what a commit holds that one of its keys has signed is read. */
  readonly verifySignatures?: string;
}

export interface Loaded extends Combined {
  readonly revision: Revision | null;
  readonly statePath: string;
  readonly fileCount: number;
  /** The YAML text and place of a file, for pointing at it. */
  readonly sourceOf: (file: string) => SourceFile;
  readonly files: readonly string[];
  /** Of the names and bytes of all files. */
  readonly contentHash: string;
  /** The folder that names of files start from, where they were not named by `-f`. */
  readonly base: string;
}

interface Listed {
  /** As people know it. */
  readonly file: string;
  readonly path: string;
  readonly wasNamed: boolean;
  /** What relative paths in it start from, where that is not its own folder. */
  readonly folder?: string;
}

/** Reads the desired state from wherever the options say, without changing anything. */
export async function load(options: SourceOptions, env: NodeJS.ProcessEnv, cwd: string, signal?: AbortSignal): Promise<Loaded> {
  if (options.repo !== undefined) return loadRemote(options.repo, options, env, cwd, signal);
  if (options.branch !== undefined || options.ref !== undefined)
    throw new HypersdkError("Usage", "--branch and --ref need --repo", { hint: "without it, the files are taken as they are in the work tree" });
  const top = await findTop(cwd, env);
  const base = top ?? cwd;
  const statePath = statePathOf(options, env, cwd) ?? join(base, ".hypersdk", "state.db");
  if (options.file && options.file.length > 0) {
    if (options.verifySignatures !== undefined)
      throw new HypersdkError("Usage", "-f and --verify-signatures cannot be combined", { hint: "a signature is of a commit, not of files" });
    const listed = options.file.flatMap((name) => listNamed(name, cwd));
    return build(listed, top ? await revisionOf(top, env, cacheFolder("authors", env)) : null, statePath, base, undefined, env);
  }
  if (!top) {
    throw new HypersdkError("SourceUnavailable", `${cwd} is in no git work tree`, {
      hint: "name files with -f, a repository with --repo, or begin with `git init` and `hypersdk init`",
    });
  }
  const below = options.path === undefined ? "" : relative(top, resolve(cwd, options.path)).split(sep).join("/");
  if (below.startsWith("..")) throw new HypersdkError("Usage", `--path ${options.path} leads out of the work tree`);
  const tree = await readWorkTree(top, below, env, cacheFolder("authors", env));
  const isSigned = options.verifySignatures === undefined ? undefined : await signedFiles(top, tree.revision, resolve(cwd, options.verifySignatures), env);
  const listed = tree.files
    .filter((file) => !file.startsWith(".hypersdk/"))
    .flatMap((file): Listed[] => (isInside(join(top, file), top) ? [{ file, path: join(top, file), wasNamed: false }] : []));
  return build(listed, tree.revision, statePath, top, undefined, env, isSigned);
}

/** Whether the bytes of a file are those that a signed commit has under this name. */
type IsSigned = (file: string, bytes: Buffer) => boolean;

/**
 * Verifies the commit, and tells of each file whether it is in it: what is in the work tree and in no commit has nobody's signature,
 * whatever git is told to think of it.
 */
async function signedFiles(top: string, { commit }: Revision, keyring: string, env: NodeJS.ProcessEnv): Promise<IsSigned> {
  if (commit === null) throw new HypersdkError("SignatureRefused", "there is no commit, and so no signature", { hint: "commit the files, signed" });
  await verifyCommit(top, commit, keyring, env);
  const ids = await blobsOf(top, commit, env);
  return (file, bytes) => {
    const id = ids.get(file);
    if (id === undefined) return false;
    const hash = createHash(id.length === 64 ? "sha256" : "sha1")
      .update(`blob ${bytes.length}\0`)
      .update(bytes);
    return hash.digest("hex") === id;
  };
}

/** As git has it where it turns the ends of lines into those of another system. */
function withoutCr(bytes: Buffer): Buffer {
  return bytes.includes("\r\n") ? Buffer.from(bytes.toString("latin1").replaceAll("\r\n", "\n"), "latin1") : bytes;
}

/** The state file that these options mean, without reading the source. */
export async function statePathFor(options: SourceOptions, env: NodeJS.ProcessEnv, cwd: string): Promise<string> {
  const named = statePathOf(options, env, cwd);
  if (named !== undefined) return named;
  if (options.repo !== undefined) return join(homeOf(options.repo, options, env), "state.db");
  return join((await findTop(cwd, env)) ?? cwd, ".hypersdk", "state.db");
}

/** Where a remote repository is kept between two runs. */
export function homeOf(repo: string, { path }: SourceOptions, env: NodeJS.ProcessEnv): string {
  const id = createHash("sha256")
    .update(`${repo}\n${pathOf(path)}`)
    .digest("hex")
    .slice(0, 16);
  return join(env["XDG_STATE_HOME"] ?? join(homedir(), ".local", "state"), "hypersdk", id);
}

function pathOf(path: string | undefined): string {
  return posix.normalize(path ?? ".").replace(/^\.\/?|\/$/g, "");
}

/** The branch, tag or commit of a remote repository. */
export function refOf({ ref, branch }: SourceOptions): string {
  if (branch !== undefined && ref !== undefined)
    throw new HypersdkError("Usage", "--branch and --ref cannot be combined", { hint: "--ref takes a tag or a commit, --branch follows a branch" });
  // a tag of the same name is no branch
  return ref ?? (branch === undefined ? "HEAD" : branch.startsWith("refs/") ? branch : `refs/heads/${branch}`);
}

/** As {@link load}, for what can be told from the state alone: where the source cannot be had, that is said, and there is no desired state. */
export async function loadIfPossible(options: SourceOptions, env: NodeJS.ProcessEnv, cwd: string, tell: (reason: string) => void): Promise<Loaded> {
  try {
    return await load(options, env, cwd);
  } catch (error) {
    if (!(error instanceof HypersdkError) || !["SourceUnavailable", "SignatureRefused", "ConfigInvalid"].includes(error.code)) throw error;
    const statePath = await statePathFor(options, env, cwd);
    if (!existsSync(statePath)) throw error;
    tell(error.message);
    const sourceOf = (file: string): SourceFile => new SourceFile(file, "");
    return {
      desired: undefined,
      diagnostics: [],
      ignoredDocuments: 0,
      revision: null,
      statePath,
      fileCount: 0,
      sourceOf,
      files: [],
      contentHash: "",
      base: cwd,
    };
  }
}

async function loadRemote(repo: string, options: SourceOptions, env: NodeJS.ProcessEnv, cwd: string, signal?: AbortSignal): Promise<Loaded> {
  if (options.file && options.file.length > 0)
    throw new HypersdkError("Usage", "-f and --repo cannot be combined", { hint: "name a folder inside the repository with --path" });
  const path = pathOf(options.path);
  const home = homeOf(repo, options, env);
  const checkout = join(home, "checkout");
  const ref = refOf(options);
  // the files are read before the next process may fetch another revision
  const lock = await ProcessLock.enter(home, 300_000, signal);
  // git and its ssh would go on when this process has ended
  const interrupts = signal ? undefined : listenForInterrupts(() => {});
  try {
    await checkOut({ url: repo, ref }, checkout, env, signal ?? interrupts?.signal).catch((error: unknown) => {
      if (interrupts?.exitCode !== undefined) process.exit(interrupts.exitCode);
      throw error;
    });
    const folder = path === "" ? checkout : insideOf(checkout, path);
    // a link is a plain file there
    if (!statSync(folder, { throwIfNoEntry: false })?.isDirectory())
      throw new HypersdkError("SourceUnavailable", `the repository has no folder ${JSON.stringify(path)}`);
    const access: Access = {
      checkout: realpathSync(checkout),
      env: [...(options.allowEnv ?? []), ...listOf(env["HYPERSDK_ALLOW_ENV"])],
      paths: [...(options.allowPath ?? []), ...listOf(env["HYPERSDK_ALLOW_PATH"])].map((each) => resolve(cwd, each)),
    };
    const tree = await readWorkTree(access.checkout, path, env, cacheFolder("authors", env));
    const isSigned =
      options.verifySignatures === undefined ? undefined : await signedFiles(access.checkout, tree.revision, resolve(cwd, options.verifySignatures), env);
    const listed = tree.files.map((file): Listed => ({ file, path: join(access.checkout, file), wasNamed: false }));
    const revision = { ...tree.revision, branch: options.ref === undefined ? (options.branch ?? null) : null, dirty: false };
    const loaded = build(listed, revision, statePathOf(options, env, cwd) ?? join(home, "state.db"), access.checkout, access, env, isSigned);
    const passedOver = (await notFollowed(access.checkout, env)).map(({ path: file, kind }) => notRead(file, `is a ${kind}`));
    return { ...loaded, diagnostics: [...loaded.diagnostics, ...passedOver] };
  } finally {
    interrupts?.dispose();
    lock.leave();
  }
}

function build(
  listed: readonly Listed[],
  revision: Revision | null,
  statePath: string,
  base: string,
  access: Access | undefined,
  env: NodeJS.ProcessEnv,
  isSigned?: IsSigned,
): Loaded {
  const cache = new ParseCache(env);
  /** What was read is what is pointed at: a file may be another by then, or gone. */
  const texts = new Map<string, Buffer>();
  const files: ConfigFile[] = [];
  const content = createHash("sha256");
  if (listed.length > maxFiles) throw tooMuch(`${listed.length} YAML files`);
  const passedOver: Diagnostic[] = [];
  let [allBytes, ownBytes] = [0, 0];
  for (const { file, path, wasNamed, folder = dirname(path) } of [...listed].sort((a, b) => (a.file < b.file ? -1 : 1))) {
    const bytes = readBytes(path, file, wasNamed);
    if (!bytes) {
      // git gives names as bytes, and what is none of UTF-8 cannot be opened by its name
      if (file.includes("\uFFFD")) passedOver.push(notRead(file, "has a name that is not UTF-8"));
      continue;
    }
    allBytes += bytes.length;
    if (allBytes > maxBytes) throw tooMuch(`more than ${maxBytes / 2 ** 20} MiB of YAML`);
    if (isSigned && !isSigned(file, bytes) && !isSigned(file, withoutCr(bytes)))
      throw new HypersdkError("SignatureRefused", `${file} is not as the signed commit has it, and so has no signature`, { hint: "commit it, signed" });
    content.update(`${file}\0${bytes.length}\0`).update(bytes);
    const fragment = cache.fragmentOf(file, bytes, wasNamed);
    files.push({ file, folder, fragment });
    if (!fragment.isOurs) continue;
    texts.set(file, bytes);
    ownBytes += bytes.length;
    if (ownBytes > maxOwnBytes) throw tooMuch(`more than ${maxOwnBytes / 2 ** 20} MiB of configuration`);
  }
  const sources = new Map<string, SourceFile>();
  const sourceOf = (file: string): SourceFile => {
    const source = sources.get(file) ?? new SourceFile(file, texts.get(file)?.toString("utf8") ?? "");
    sources.set(file, source);
    return source;
  };
  const combined = combine(files, sourceOf, access);
  const lost = lostFiles(files, combined.desired, statePath);
  return {
    ...combined,
    ...(lost.length > 0 ? { desired: undefined } : {}),
    diagnostics: sortDiagnostics([...combined.diagnostics, ...lost, ...passedOver]),
    revision,
    statePath,
    fileCount: files.length,
    files: files.map(({ file }) => file),
    contentHash: content.digest("hex"),
    sourceOf,
    base,
  };
}

function notRead(file: string, why: string): Diagnostic {
  return {
    severity: "warning",
    code: "HSW018",
    message: `${file} ${why}: nothing of it is read`,
    file,
    line: 1,
    column: 1,
    length: 1,
    source: "",
    label: "only plain files of the repository itself are",
  };
}

/** So much YAML is read: a commit may be anybody's, and while it is read nothing else goes on. A fleet of 20,000 machines with a file each fits. */
const maxFiles = 20_000;
const maxBytes = 64 * 2 ** 20;
/** Of documents of ours: each MiB of the densest takes 60 MiB of memory. */
const maxOwnBytes = 12 * 2 ** 20;

function tooMuch(what: string): HypersdkError {
  return new HypersdkError("ConfigInvalid", `there are ${what} here; at most ${maxFiles} files are read, ${maxOwnBytes / 2 ** 20} MiB of them for hypersdk`, {
    hint: "name the folder that holds the ones for hypersdk with --path, or join them",
  });
}

/** A file that a folder lists and that is gone, or a folder by that name, is no file of ours. */
function readBytes(path: string, file: string, wasNamed: boolean): Buffer | undefined {
  try {
    const entry = statSync(path);
    if (entry.size > maxBytes) throw tooMuch(`more than ${maxBytes / 2 ** 20} MiB of YAML`);
    return entry.isFile() || (wasNamed && entry.isFIFO()) ? readFileSync(path) : undefined;
  } catch (error) {
    if (error instanceof HypersdkError) throw error;
    if (errnoOf(error) === "ENOENT") return undefined;
    throw new HypersdkError("SourceUnavailable", `cannot read ${file}: ${errnoText(error)}`, { cause: error });
  }
}

/** `-f`: a file as it is named, or the YAML files below a folder, hidden ones left out. */
function listNamed(name: string, cwd: string): Listed[] {
  const path = resolve(cwd, name);
  if (!existsSync(path)) throw new HypersdkError("SourceUnavailable", `${name} is not there`, { hint: "-f takes a YAML file or a folder of them" });
  const named = statSync(path);
  // what a shell's `<(…)` gives has no folder of its own
  if (named.isFIFO()) return [{ file: name, path, wasNamed: true, folder: cwd }];
  if (named.isFile()) return [{ file: name, path, wasNamed: true }];
  if (!named.isDirectory()) throw new HypersdkError("SourceUnavailable", `${name} is no file`, { hint: "-f takes a YAML file, a pipe, or a folder of files" });
  return readdirSync(path, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && /\.ya?ml$/.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name))
    .filter(
      (file) =>
        !relative(path, file)
          .split(sep)
          .some((part) => part.startsWith(".") || part === "node_modules"),
    )
    .map((file) => ({ file: join(name, relative(path, file)), path: file, wasNamed: false }));
}

function isInside(path: string, top: string): boolean {
  try {
    const real = realpathSync(path);
    return real.startsWith(realpathSync(top) + sep);
  } catch {
    return false;
  }
}

function statePathOf(options: SourceOptions, env: NodeJS.ProcessEnv, cwd: string): string | undefined {
  const named = options.state ?? env["HYPERSDK_STATE"];
  return named === undefined || named === "" ? undefined : resolve(cwd, named);
}

function listOf(value: string | undefined): string[] {
  return (value ?? "")
    .split(",")
    .map((each) => each.trim())
    .filter((each) => each !== "");
}
