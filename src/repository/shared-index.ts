import type { Destination } from "../destinations/destination.ts";
import { ChunkIndex } from "./chunk-index.ts";
import type { PackDirectory } from "./layout.ts";
import type { Repository, Standing, StoredObject } from "./repository.ts";

/** How long an index is kept for the next export, in milliseconds: of one that takes 0.5 GiB, nobody wants to have it for longer than a run. */
const keptMs = 5000;

const shared = new WeakMap<Destination, SharedIndex>();

export interface IndexNow {
  readonly index: ChunkIndex;
  readonly standing: Standing;
}

/**
 * The index of a repository as exports need it, for all that go to one destination, one after the other or side by side: index objects never
 * change, so that each is read once. With thousands of restore points, reading them took longer than a small export itself.
 *
 * Only what is in an index at the store gets into it: what another export has sent and not yet indexed, nothing may be built on. A pack that
 * may not be built on any more is not usable from then on, for those that have begun too: they would find out when they publish.
 */
class SharedIndex {
  #repository: string | undefined;
  #index = new ChunkIndex();
  /** The index objects that are in it, by name, as they were listed. */
  readonly #read = new Map<string, string>();
  /** Packs that some export has been told not to build on. */
  readonly #distrusted = new Set<string>();
  #drop: NodeJS.Timeout | undefined;
  #turn: Promise<unknown> = Promise.resolve();

  /** One after the other: each goes on from what the one before has read. */
  now(repository: Repository, distrusted: ReadonlySet<string>): Promise<IndexNow> {
    const mine = this.#turn.then(() => {
      // not in the middle of it
      clearTimeout(this.#drop);
      return this.#refreshed(repository, distrusted);
    });
    this.#turn = mine.then(
      () => (this.#drop = setTimeout(() => this.#forget(), keptMs).unref()),
      () => this.#forget(),
    );
    return mine;
  }

  async #refreshed(repository: Repository, distrusted: ReadonlySet<string>): Promise<IndexNow> {
    const which = `${repository.config.id} ${repository.keyId}`;
    if (which !== this.#repository) this.#forget();
    this.#repository = which;
    for (const name of distrusted) this.#distrusted.add(name);
    let objects = await repository.readIndexes(
      () => {},
      (object) => this.#read.get(object.name) === stampOf(object),
    );
    const listed = new Map(objects.map((object) => [object.name, stampOf(object)]));
    if (![...this.#read].every(([name, stamp]) => listed.get(name) === stamp)) {
      // a compaction has written them anew, or something has changed what never does: what is no longer said is not kept
      this.#forget();
      objects = await repository.readIndexes(() => {});
    }
    const standing = await repository.standing();
    const mayBuildOn = (pack: PackDirectory): boolean => !this.#distrusted.has(pack.name) && standing.isUsable(pack.name) && standing.isWhole(pack);
    const known = [...this.#index.packs];
    const added = objects.flatMap((each) => each.directories);
    // of a chunk that is in two packs, the one that may be built on counts: it finds its place anew
    if (known.length === 0 || known.some((pack) => pack.usable && !mayBuildOn(pack))) {
      const all = [...known, ...added];
      this.#index = new ChunkIndex(all);
      for (const each of all) this.#index.add(each, mayBuildOn(each));
      // those that have begun need not find out when they publish
      for (const pack of known) pack.usable &&= mayBuildOn(pack);
    } else for (const each of added) this.#index.add(each, mayBuildOn(each));
    // one that is damaged says nothing, and may be whole the next time
    for (const object of objects) if (object.directories.length > 0) this.#read.set(object.name, stampOf(object));
    return { index: this.#index, standing };
  }

  #forget(): void {
    this.#index = new ChunkIndex();
    this.#read.clear();
  }
}

/** What a listing tells of an object that is not what it was. */
function stampOf({ bytes, modifiedMs }: StoredObject): string {
  return `${bytes} ${modifiedMs}`;
}

/**
 * The index of a repository as it is now, and what may be built on.
 * @param distrusted packs of which something is known to be damaged
 */
export function indexForExport(repository: Repository, distrusted: ReadonlySet<string> = new Set()): Promise<IndexNow> {
  const { destination } = repository;
  let index = shared.get(destination);
  if (!index) shared.set(destination, (index = new SharedIndex()));
  return index.now(repository, distrusted);
}
