import { createHash } from "node:crypto";
import { storedPieceBytes, TreeHash } from "../model/tree-hash.ts";

const zeros = Buffer.alloc(1 << 16);

/**
 * The tree hash of a file with gaps that are filled later: of a piece with a gap, what follows the gap is kept until then (8 MiB);
 * of every other piece only its hash is (4 KiB for each GiB).
 */
export class StoredHash {
  readonly #pieces: Piece[] = [];

  update(data: Uint8Array): void {
    for (let at = 0; at < data.length; ) at += this.#open().update(data.subarray(at));
  }

  updateZeros(count: number): void {
    for (let left = count; left > 0; left -= zeros.length) this.update(zeros.subarray(0, Math.min(left, zeros.length)));
  }

  /** @returns fills the gap */
  reserve(bytes: number): (data: Uint8Array) => void {
    const parts: { readonly piece: Piece; readonly at: number; readonly bytes: number }[] = [];
    for (let left = bytes; left > 0; left -= (parts.at(-1) as (typeof parts)[number]).bytes) {
      const piece = this.#open();
      parts.push({ piece, at: piece.bytes, bytes: piece.reserve(left) });
    }
    return (data) => {
      let from = 0;
      for (const part of parts) part.piece.fill(part.at, data.subarray(from, (from += part.bytes)));
    };
  }

  digest(): string {
    const root = new TreeHash(storedPieceBytes);
    for (const piece of this.#pieces) root.addPiece(piece.digest());
    return root.digest();
  }

  #open(): Piece {
    const last = this.#pieces.at(-1);
    if (last && last.bytes < storedPieceBytes) return last;
    const next = new Piece();
    this.#pieces.push(next);
    return next;
  }
}

/** Hashed as it comes up to its first gap; kept from there until no gap is left. */
class Piece {
  #hash: ReturnType<typeof createHash> | undefined = createHash("sha256");
  #digest: Buffer | undefined;
  #kept: Buffer | undefined;
  #keptFrom = 0;
  #gaps = 0;
  bytes = 0;

  /** @returns how many of the bytes the piece took */
  update(data: Uint8Array): number {
    const part = data.length <= storedPieceBytes - this.bytes ? data : data.subarray(0, storedPieceBytes - this.bytes);
    if (this.#kept) this.#kept.set(part, this.bytes - this.#keptFrom);
    else this.#hash?.update(part);
    this.bytes += part.length;
    this.#endIfFull();
    return part.length;
  }

  reserve(bytes: number): number {
    const part = Math.min(bytes, storedPieceBytes - this.bytes);
    if (!this.#kept) {
      this.#keptFrom = this.bytes;
      this.#kept = Buffer.allocUnsafe(storedPieceBytes - this.bytes);
    }
    this.#gaps++;
    this.bytes += part;
    return part;
  }

  fill(at: number, data: Uint8Array): void {
    this.#kept?.set(data, at - this.#keptFrom);
    this.#gaps--;
    this.#endIfFull();
  }

  digest(): Buffer {
    if (this.#gaps > 0) throw new Error("a gap was never filled");
    if (this.#kept) this.#hash?.update(this.#kept.subarray(0, this.bytes - this.#keptFrom));
    this.#digest ??= this.#hash?.digest() as Buffer;
    this.#hash = this.#kept = undefined;
    return this.#digest;
  }

  #endIfFull(): void {
    if (this.bytes === storedPieceBytes && this.#gaps === 0) this.digest();
  }
}
