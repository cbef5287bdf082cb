import type { Destination } from "../../destinations/destination.ts";
import { isGone } from "../../destinations/gone.ts";
import { listHolds } from "../../exports/holds.ts";
import { readMarker } from "../../exports/lineage.ts";
import { type Manifest, manifestName } from "../../exports/manifest.ts";
import { readManifest } from "../../exports/restore.ts";
import { HypersdkError } from "../../model/errors.ts";
import { listPoints } from "../../repository/points.ts";
import { State } from "../../state/state.ts";
import { plural } from "../../ui/plan-view.ts";
import { adapters, clock, random } from "../compose.ts";
import { exitCodes } from "../exit-codes.ts";
import type { Io } from "../io.ts";
import { load, type SourceOptions } from "../load.ts";
import { destinationNamed, type KeyOptions } from "./destinations.ts";

interface RebuildOptions extends SourceOptions, KeyOptions {
  readonly from: string;
}

/** Finds every restore point at a destination again: for a machine whose state file is gone. Restore points that are known already stay as they are. */
export async function rebuild(options: RebuildOptions, io: Io): Promise<number> {
  const { statePath, desired, revision } = await load(options, io.env, io.cwd);
  const address = destinationNamed(options.from, desired, options, io.cwd);
  const destination = await adapters.openDestination(address);
  const marker = await readMarker(destination);
  if (!marker) throw new HypersdkError("NotFound", `no hypersdk has written to ${address.url}`);
  const { manifests, damaged, foreign } = await manifestsAt(destination, marker);
  const holds = await listHolds(destination);
  const state = State.openForWriting(statePath, random);
  try {
    state.refuseDamaged();
    const lease = await state.take("reconcile", "state rebuild", 0, clock, random);
    let found = 0;
    try {
      found = state.write(lease, () => {
        state.continueLineage(marker.lineage);
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
          detail: { lineage: marker.lineage, points: added },
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
        lineage: marker.lineage,
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

async function manifestsAt(
  destination: Destination,
  { lineage, layout }: { readonly lineage: string; readonly layout: "image" | "repository" },
): Promise<{
  readonly manifests: readonly { readonly path: string; readonly manifest: Manifest }[];
  readonly damaged: readonly string[];
  /** Manifests of another state. */
  readonly foreign: readonly string[];
}> {
  const paths =
    layout === "repository"
      ? (await listPoints(destination)).map(({ path }) => path)
      : (await destination.list()).filter(({ path, isPartial, isLink }) => !isPartial && !isLink && path.endsWith(`/${manifestName}`)).map(({ path }) => path);
  const manifests: { path: string; manifest: Manifest }[] = [];
  const damaged: string[] = [];
  const foreign: string[] = [];
  for (const path of paths) {
    try {
      const manifest = await readManifest(destination, path);
      if (manifest.lineage === lineage) manifests.push({ path, manifest });
      else foreign.push(path);
    } catch (error) {
      // somebody else's expiry took it away since it was listed
      if (isGone(error)) continue;
      if (!(error instanceof HypersdkError && error.code === "ArtifactDamaged")) throw error;
      damaged.push(error.message);
    }
  }
  return { manifests, damaged, foreign };
}

function pointOf(manifestPath: string, { id, source, actuals }: Manifest, { name, url }: { readonly name: string; readonly url: string }) {
  return {
    id,
    runId: id,
    schedule: source.schedule,
    provider: source.provider,
    identity: source.identity,
    vmPath: source.vm,
    destination: name,
    destinationUrl: url,
    manifestPath,
    instant: source.instant,
    storedBytes: actuals.storedBytes,
  };
}
