import type { Destination } from "../destinations/destination.ts";
import { ChunkIndex } from "./chunk-index.ts";
import type { Repository, Standing } from "./repository.ts";

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
  /** Names of the index objects that are in it. */
  readonly #read = new Set<string>();
  #drop: NodeJS.Timeout | undefined;
  #turn: Promise<unknown> = Promise.resolve();

  /** One after the other: each goes on from what the one before has read. */
  now(repository: Repository, distrusted: ReadonlySet<string>): Promise<IndexNow> {
    const mine = this.#turn.then(() => this.#refreshed(repository, distrusted));
    this.#turn = mine.catch(() => this.#forget());
    return mine;
  }

  async #refreshed(repository: Repository, distrusted: ReadonlySet<string>): Promise<IndexNow> {
    const which = `${repository.config.id} ${repository.keyId}`;
    if (which !== this.#repository) this.#forget();
    this.#repository = which;
    let objects = await repository.readIndexes(() => {}, this.#read);
    const names = new Set(objects.map(({ name }) => name));
    if (![...this.#read].every((name) => names.has(name))) {
      // a compaction has written them anew: of what it forgot, nothing is kept
      this.#forget();
      objects = await repository.readIndexes(() => {});
    }
    const standing = await repository.standing();
    const mayBuildOn = (pack: Parameters<Standing["isWhole"]>[0]): boolean =>
      !distrusted.has(pack.name) && standing.isUsable(pack.name) && standing.isWhole(pack);
    const directories = objects.flatMap((each) => each.directories);
    if (this.#read.size === 0) this.#index = new ChunkIndex(directories);
    // first: of a chunk that is there twice, the one that may be built on counts
    for (const pack of this.#index.packs) pack.usable &&= mayBuildOn(pack);
    for (const each of directories) this.#index.add(each, mayBuildOn(each));
    // one that is damaged says nothing, and may be whole the next time
    for (const { name, directories } of objects) if (directories.length > 0) this.#read.add(name);
    clearTimeout(this.#drop);
    this.#drop = setTimeout(() => this.#forget(), keptMs).unref();
    return { index: this.#index, standing };
  }

  #forget(): void {
    this.#index = new ChunkIndex();
    this.#read.clear();
  }
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
