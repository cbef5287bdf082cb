import { createHash, type Hash } from "node:crypto";

/**
 * SHA-256 over the SHA-256s of the pieces of a byte stream, all `pieceBytes` long but the last. A zero piece has a constant
 * hash, so that an empty TiB costs nothing, and pieces can be hashed apart and in any process.
 */
export class TreeHash {
  readonly #pieceBytes: number;
  readonly #root = createHash("sha256");
  readonly #zeroPiece: Buffer;
  #piece: Hash | undefined;
  #filled = 0;

  constructor(pieceBytes: number) {
    this.#pieceBytes = pieceBytes;
    this.#zeroPiece = zeroPieceHash(pieceBytes);
  }

  update(data: Uint8Array): void {
    let at = 0;
    while (at < data.length) {
      const take = Math.min(data.length - at, this.#pieceBytes - this.#filled);
      this.#piece ??= createHash("sha256");
      this.#piece.update(at === 0 && take === data.length ? data : data.subarray(at, at + take));
      this.#advance(take);
      at += take;
    }
  }

  updateZeros(count: number): void {
    let left = count;
    while (left > 0) {
      if (this.#filled === 0 && left >= this.#pieceBytes) {
        this.#root.update(this.#zeroPiece);
        left -= this.#pieceBytes;
        continue;
      }
      const take = Math.min(left, this.#pieceBytes - this.#filled, zeros.length);
      this.#piece ??= createHash("sha256");
      this.#piece.update(zeros.subarray(0, take));
      this.#advance(take);
      left -= take;
    }
  }

  /** Adds the hash of a whole piece that was hashed elsewhere; only on a piece's border. */
  addPiece(hash: Uint8Array): void {
    if (this.#filled !== 0) throw new Error("a whole piece can only be added on a piece's border");
    this.#root.update(hash);
  }

  digest(): string {
    if (this.#piece && this.#filled > 0) this.#root.update(this.#piece.digest());
    this.#piece = undefined;
    return this.#root.digest("hex");
  }

  #advance(bytes: number): void {
    this.#filled += bytes;
    if (this.#filled < this.#pieceBytes) return;
    this.#root.update((this.#piece as Hash).digest());
    this.#piece = undefined;
    this.#filled = 0;
  }
}

/** Pieces of a disk's content: the chunk size of a new repository, so that both layouts share one hash. Others are read as their manifests say. */
export const contentPieceBytes: number = 128 * 1024;
/** Pieces of a stored file. */
export const storedPieceBytes: number = 8 * 2 ** 20;

const zeros = Buffer.alloc(65_536);
const zeroPieces = new Map<number, Buffer>();

/** The hash of a piece of zeros. */
export function zeroPieceHash(bytes: number): Buffer {
  let hash = zeroPieces.get(bytes);
  if (!hash) {
    const sum = createHash("sha256");
    for (let left = bytes; left > 0; left -= zeros.length) sum.update(zeros.subarray(0, Math.min(left, zeros.length)));
    zeroPieces.set(bytes, (hash = sum.digest()));
  }
  return hash;
}
