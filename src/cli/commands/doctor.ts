import { execFileSync } from "node:child_process";
import { accessSync, constants, existsSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { loadHoleFinder } from "../../converters/raw/hole-finder.ts";
import { emptied } from "../../destinations/gone.ts";
import { readMarker } from "../../exports/lineage.ts";
import { openRepository } from "../../exports/restore.ts";
import type { DestinationSpec, ProviderSpec } from "../../model/desired.ts";
import { HypersdkError } from "../../model/errors.ts";
import { State } from "../../state/state.ts";
import { plural } from "../../ui/plan-view.ts";
import { printable } from "../../ui/style.ts";
import { adapters } from "../compose.ts";
import { exitCodes } from "../exit-codes.ts";
import type { Io } from "../io.ts";
import { type Loaded, load, type SourceOptions } from "../load.ts";
import { isRecordedSpec } from "../recorded-spec.ts";
import { toolVersion } from "../tool-version.ts";

interface Finding {
  readonly what: string;
  readonly ok: boolean;
  readonly text: string;
}

/** Looks at everything a run needs and says what is amiss, in words that can be sent to somebody else. */
export async function doctor(options: SourceOptions, io: Io): Promise<number> {
  const findings: Finding[] = [];
  const add = (...[what, ok, text]: Found): void => void findings.push({ what, ok, text });
  add("hypersdk", true, `${toolVersion()} on Node ${process.versions.node}, ${process.platform} ${process.arch}`);
  try {
    add("git", true, execFileSync("git", ["--version"], { encoding: "utf8" }).trim());
  } catch {
    add("git", false, "git is not installed: only files named with -f can be read");
  }
  add("holes", true, (await loadHoleFinder()) ? "sparse files are read by their holes" : "koffi is not there: sparse files are read whole, which is slower");
  add("locks", true, existsSync("/proc/locks") ? "/proc/locks shows which images are in use" : "no /proc/locks here: a running VM's image is not noticed");
  let loaded: Loaded | undefined;
  try {
    loaded = await load(options, io.env, io.cwd);
    const errors = loaded.diagnostics.filter(({ severity }) => severity === "error").length;
    add("files", errors === 0, errors === 0 ? `${plural(loaded.fileCount, "file")}, valid` : `${errors} errors: hypersdk validate shows them`);
  } catch (error) {
    if (!(error instanceof HypersdkError)) throw error;
    add("files", false, error.message);
  }
  const recorded = loaded && checkState(loaded.statePath, add);
  for (const spec of loaded?.desired?.providers ?? []) add(...(await lookAtProvider(spec)));
  for (const spec of loaded?.desired?.destinations ?? []) add(...(await lookAtDestination(spec, recorded)));
  const isWell = findings.every(({ ok }) => ok);
  if (io.json) io.result("doctor", { ok: isWell, findings });
  else for (const { what, ok, text } of findings) io.out(`${ok ? io.style.green("✓") : io.style.red("✗")} ${what.padEnd(24)} ${printable(text)}\n`);
  return isWell ? exitCodes.done : exitCodes.failed;
}

type Found = readonly [what: string, ok: boolean, text: string];

/** What a state says of destinations. */
interface RecordedThere {
  readonly lineage: string;
  /** URLs at which it has restore points. */
  readonly urls: ReadonlySet<string>;
}

function checkState(path: string, add: (...found: Found) => void): RecordedThere | undefined {
  try {
    const state = State.openForReading(path);
    if (!state) {
      add("state", true, `${path}: not made yet`);
      return undefined;
    }
    try {
      state.refuseDamaged(isRecordedSpec);
      const chain = state.audit.verify();
      const holds = `serial ${state.serial}, audit chain of ${chain.rows} rows holds`;
      add("state", chain.brokenAt === undefined, `${path}: ${chain.brokenAt === undefined ? holds : `the audit chain is broken at row ${chain.brokenAt}`}`);
      const mode = statSync(path).mode & 0o777;
      if (mode & 0o077) add("state", false, `${path} can be read by others (mode ${mode.toString(8)})`);
      return { lineage: state.lineage, urls: new Set(state.artifacts.list().map(({ destinationUrl }) => destinationUrl)) };
    } finally {
      state.close();
    }
  } catch (error) {
    if (!(error instanceof HypersdkError)) throw error;
    add("state", false, error.message);
    return undefined;
  }
}

async function lookAtProvider(spec: ProviderSpec): Promise<Found> {
  const what = `provider.${spec.name}`;
  try {
    const { vms, unknown = [], problems } = await (await adapters.openProvider(spec)).inventory();
    const amiss = [...problems, ...unknown.map(({ identity, reason }) => `${identity}: ${reason}`)];
    return [
      what,
      amiss.length === 0,
      [plural(vms.length, "VM"), ...amiss.slice(0, 3), ...(amiss.length > 3 ? [`and ${amiss.length - 3} more`] : [])].join("; "),
    ];
  } catch (error) {
    if (!(error instanceof HypersdkError)) throw error;
    return [what, false, error.message];
  }
}

/** Whether exports can go there: it can be written, is this state's own, holds what it should, and opens. */
async function lookAtDestination(spec: DestinationSpec, recorded: RecordedThere | undefined): Promise<Found> {
  const what = `destination.${spec.name}`;
  try {
    const destination = await adapters.openDestination(spec);
    const marker = await readMarker(destination);
    if (!marker && recorded?.urls.has(spec.url)) throw emptied(destination);
    if (marker && marker.lineage !== recorded?.lineage)
      return [what, false, `it belongs to state ${marker.lineage.slice(0, 8)}, not to this one: hypersdk state rebuild --from ${spec.name}, or apply --adopt`];
    // what it will be sealed with is wanted at the first export, and nobody asks for it before
    destination.encryption?.sealing?.secret();
    const folder = spec.url.startsWith("file://") ? spec.url.slice("file://".length) : undefined;
    if (folder !== undefined) requireWritable(folder);
    if (marker && marker.layout !== spec.layout) return [what, false, `it holds the layout ${marker.layout}, and the files say ${spec.layout}`];
    if (!marker) return [what, true, `${spec.url}: nothing is written there yet`];
    if (marker.layout === "image") return [what, true, `${spec.url}: images`];
    const { config } = await openRepository(destination);
    if (spec.encryption && !config.encryption) return [what, false, `the files want ${spec.name} encrypted, and the repository there is not`];
    return [what, true, `${spec.url}: repository ${config.id.slice(0, 8)}, ${config.encryption ? "encrypted, and the key opens it" : "not encrypted"}`];
  } catch (error) {
    if (!(error instanceof HypersdkError)) throw error;
    return [what, false, error.hint ? `${error.message}: ${error.hint}` : error.message];
  }
}

/** The folder itself, or what it would be made in: an export makes one, and none above it, where a disk may not be mounted. */
function requireWritable(path: string): void {
  const existing = existsSync(path) ? path : dirname(path);
  if (!existsSync(existing)) throw new HypersdkError("DestinationUnreachable", `${existing} is not there`, { hint: "make it, or mount what belongs there" });
  try {
    accessSync(existing, constants.W_OK | constants.X_OK);
  } catch (error) {
    throw new HypersdkError("DestinationUnreachable", `${existing} cannot be written`, { cause: error });
  }
}
