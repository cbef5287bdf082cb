import type { Destination } from "../../destinations/destination.ts";
import { isGone } from "../../destinations/gone.ts";
import { listHolds } from "../../exports/holds.ts";
import { DamagedMarker, layoutThere, readMarker } from "../../exports/lineage.ts";
import { type Manifest, manifestName } from "../../exports/manifest.ts";
import { readManifest } from "../../exports/restore.ts";
import { HypersdkError } from "../../model/errors.ts";
import { listPoints } from "../../repository/points.ts";
import { State } from "../../state/state.ts";
import { plural } from "../../ui/plan-view.ts";
import { printable } from "../../ui/style.ts";
import { adapters, clock, random } from "../compose.ts";
import { exitCodes } from "../exit-codes.ts";
import type { Io } from "../io.ts";
import { load, type SourceOptions } from "../load.ts";
import { isRecordedSpec } from "../recorded-spec.ts";
import { destinationNamed, type KeyOptions } from "./destinations.ts";
import { pointOf } from "./points.ts";

interface RebuildOptions extends SourceOptions, KeyOptions {
  readonly from: string;
}

/** Finds every restore point at a destination again: for a machine whose state file is gone. Restore points that are known already stay as they are. */
export async function rebuild(options: RebuildOptions, io: Io): Promise<number> {
  const { statePath, desired, revision } = await load(options, io.env, io.cwd);
  const address = destinationNamed(options.from, desired, options, io.cwd);
  const destination = await adapters.openDestination(address);
  const { layout, lineage: marked } = await whatIsAt(destination, io);
  const { manifests, damaged, foreign, lineage } = await manifestsAt(destination, layout, marked);
  const holds = await listHolds(destination);
  const state = State.openForWriting(statePath, random);
  try {
    state.refuseDamaged(isRecordedSpec);
    const lease = await state.take("reconcile", "state rebuild", 0, clock, random);
    let found = 0;
    try {
      found = state.write(lease, () => {
        state.continueLineage(lineage);
        const known = new Set(state.artifacts.list().map(({ id }) => id));
        for (const { path, manifest } of manifests) state.artifacts.add(pointOf(path, manifest, address), clock.now(), "unproved");
        for (const { manifest } of manifests) {
          const reason = holds.get(manifest.id);
          if (reason !== undefined && !state.artifacts.get(manifest.id)?.held) state.artifacts.setHeld(manifest.id, reason);
        }
        state.configuration.setUnmanaged(address.url, foreign);
        const added = manifests.filter(({ manifest }) => !known.has(manifest.id)).length;
        state.audit.append({
          at: clock.now(),
          type: "state.rebuilt",
          subject: address.name,
          detail: { lineage, points: added },
          commit: revision?.commit ?? null,
          author: revision?.author ?? null,
        });
        return added;
      });
    } finally {
      state.release(lease);
    }
    if (io.json)
      io.result("state-rebuild", {
        destination: address.name,
        lineage,
        found,
        known: manifests.length - found,
        foreign: foreign.length,
        damaged,
      });
    else {
      for (const each of damaged) io.err(`${io.errStyle.yellow("warning")}: ${each}\n`);
      io.out(
        `${plural(found, "restore point")} found at ${address.name}, ${manifests.length - found} known before${foreign.length > 0 ? `, ${foreign.length} of another state left alone` : ""}${damaged.length > 0 ? `, ${damaged.length} damaged` : ""}\n`,
      );
      if (found > 0) io.out("They are not proved yet, and until then retention lets nothing go for them: hypersdk verify proves them.\n");
    }
    return damaged.length > 0 ? exitCodes.damaged : exitCodes.done;
  } finally {
    state.close();
  }
}

/** How points are stored there, and by which state; the marker may be what was lost. */
async function whatIsAt(destination: Destination, io: Io): Promise<{ readonly layout: "image" | "repository"; readonly lineage?: string }> {
  let lost: DamagedMarker | undefined;
  const marker = await readMarker(destination).catch((error: unknown) => {
    if (!(error instanceof DamagedMarker)) throw error;
    lost = error;
    return undefined;
  });
  if (marker) return marker;
  const layout = await layoutThere(destination);
  if (!layout) throw new HypersdkError("NotFound", `no hypersdk has written to ${destination.spec.url}`);
  const why = lost?.message ?? `nothing in ${destination.spec.name} says which state writes there`;
  io.err(`${io.errStyle.yellow("warning")}: ${printable(why)}; the newest restore point does, and the next apply needs --adopt\n`);
  return { layout };
}

/** @param marked the state whose points are wanted; that of the newest, where nothing says it */
async function manifestsAt(
  destination: Destination,
  layout: "image" | "repository",
  marked: string | undefined,
): Promise<{
  readonly lineage: string;
  readonly manifests: readonly { readonly path: string; readonly manifest: Manifest }[];
  readonly damaged: readonly string[];
  /** Manifests of another state. */
  readonly foreign: readonly string[];
}> {
  const paths =
    layout === "repository"
      ? (await listPoints(destination)).map(({ path }) => path)
      : (await destination.list()).filter(({ path, isPartial, isLink }) => !isPartial && !isLink && path.endsWith(`/${manifestName}`)).map(({ path }) => path);
  const read: { path: string; manifest: Manifest }[] = [];
  const damaged: string[] = [];
  for (const path of paths) {
    try {
      read.push({ path, manifest: await readManifest(destination, path) });
    } catch (error) {
      // somebody else's expiry took it away since it was listed
      if (isGone(error)) continue;
      if (!(error instanceof HypersdkError && error.code === "ArtifactDamaged")) throw error;
      damaged.push(error.message);
    }
  }
  const newest = read
    .map(({ manifest }) => manifest)
    .sort((a, b) => (a.source.instant < b.source.instant ? -1 : 1))
    .at(-1);
  const lineage = marked ?? newest?.lineage;
  if (lineage === undefined) throw new HypersdkError("ArtifactDamaged", `no manifest in ${destination.spec.name} can be read`);
  const isOurs = ({ manifest }: { readonly manifest: Manifest }): boolean => manifest.lineage === lineage;
  return { lineage, manifests: read.filter(isOurs), damaged, foreign: read.filter((each) => !isOurs(each)).map(({ path }) => path) };
}
