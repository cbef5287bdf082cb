import { type BlockSource, isZero, type Piece, piecesOf } from "./block-source.ts";

export type Difference = { readonly kind: "size"; readonly left: number; readonly right: number } | { readonly kind: "content"; readonly offset: number };

export interface CompareOptions {
  readonly onRead?: (bytes: number) => void;
  /** Where one disk ends and the other goes on with zeros, they are the same. */
  readonly maySizesDiffer?: boolean;
}

/**
 * Whether two sources hold the same disk. A hole and written zeros are the same content. Of disks of two sizes, a difference of content is
 * told where there is one.
 */
export async function compareDisks(
  left: BlockSource,
  right: BlockSource,
  { onRead = () => {}, maySizesDiffer = false }: CompareOptions = {},
): Promise<Difference | undefined> {
  const content = await compareContent(left, right, onRead);
  if (content || left.sizeBytes === right.sizeBytes || maySizesDiffer) return content;
  return { kind: "size", left: left.sizeBytes, right: right.sizeBytes };
}

async function compareContent(left: BlockSource, right: BlockSource, onRead: (bytes: number) => void): Promise<Difference | undefined> {
  const sizeBytes = Math.max(left.sizeBytes, right.sizeBytes);
  const a = new Cursor(left, onRead);
  const b = new Cursor(right, onRead);
  try {
    for (let at = 0; at < sizeBytes; ) {
      await a.reach(at);
      await b.reach(at);
      const next = Math.min(a.runEnd(at, sizeBytes), b.runEnd(at, sizeBytes));
      const [x, y] = [a.bytes(at, next), b.bytes(at, next)];
      if (x && y) {
        if (!x.equals(y)) return { kind: "content", offset: at + firstDifference(x, y) };
      } else {
        const data = x ?? y;
        if (data && !isZero(data)) return { kind: "content", offset: at + data.findIndex((byte) => byte !== 0) };
      }
      at = next;
    }
    return undefined;
  } finally {
    await a.stop();
    await b.stop();
  }
}

/** Walks the pieces of a source; between them it reads as zeros. */
class Cursor {
  readonly #pieces: AsyncGenerator<Piece>;
  readonly #onRead: (bytes: number) => void;
  #current: Piece | undefined;
  #isDone = false;

  constructor(source: BlockSource, onRead: (bytes: number) => void) {
    this.#pieces = piecesOf(source);
    this.#onRead = onRead;
  }

  /** Makes the current piece the one that holds `at` or the first one behind it. */
  async reach(at: number): Promise<void> {
    while (!this.#isDone && (!this.#current || this.#current.offset + this.#current.data.length <= at)) {
      const next = await this.#pieces.next();
      if (next.done) {
        this.#isDone = true;
        this.#current = undefined;
        return;
      }
      this.#current = next.value;
      this.#onRead(next.value.data.length);
    }
  }

  /** Where the run of data or zeros that holds `at` ends. */
  runEnd(at: number, sizeBytes: number): number {
    if (!this.#current) return sizeBytes;
    return at < this.#current.offset ? this.#current.offset : this.#current.offset + this.#current.data.length;
  }

  /** The data from `at` to `end`, which lie in one run; undefined for zeros. */
  bytes(at: number, end: number): Buffer | undefined {
    const { offset, data } = this.#current ?? { offset: end, data: Buffer.alloc(0) };
    return at < offset || !this.#current ? undefined : data.subarray(at - offset, end - offset);
  }

  async stop(): Promise<void> {
    await this.#pieces.return(undefined);
  }
}

function firstDifference(a: Buffer, b: Buffer): number {
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return i;
  return a.length;
}
