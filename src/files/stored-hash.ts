import { createHash, type Hash } from "node:crypto";
import { storedPieceBytes, TreeHash } from "../model/tree-hash.ts";

const zeros = Buffer.alloc(1 << 20);

/**
 * The tree hash of a file whose head is known last: what follows the head in the first piece is kept (8 MiB), the hashes of
 * the pieces behind it are listed (4 KiB for each GiB).
 */
export class StoredHash {
  #first: { readonly bytes: Buffer; filled: number } | undefined;
  readonly #pieces: Buffer[] = [];
  #piece: Hash = createHash("sha256");
  #filled = 0;

  reserveHead(bytes: number): void {
    this.#first = { bytes: Buffer.allocUnsafe(storedPieceBytes), filled: bytes };
  }

  head(data: Uint8Array): void {
    this.#first?.bytes.set(data, 0);
  }

  update(data: Uint8Array): void {
    let at = 0;
    if (this.#first && this.#first.filled < storedPieceBytes) {
      at = Math.min(data.length, storedPieceBytes - this.#first.filled);
      this.#first.bytes.set(data.subarray(0, at), this.#first.filled);
      this.#first.filled += at;
    }
    while (at < data.length) {
      const take = Math.min(data.length - at, storedPieceBytes - this.#filled);
      this.#piece.update(data.subarray(at, at + take));
      this.#filled += take;
      at += take;
      if (this.#filled === storedPieceBytes) this.#endPiece();
    }
  }

  updateZeros(count: number): void {
    for (let left = count; left > 0; left -= zeros.length) this.update(zeros.subarray(0, Math.min(left, zeros.length)));
  }

  digest(): string {
    if (this.#filled > 0) this.#endPiece();
    const root = new TreeHash(storedPieceBytes);
    if (this.#first) root.addPiece(createHash("sha256").update(this.#first.bytes.subarray(0, this.#first.filled)).digest());
    for (const piece of this.#pieces) root.addPiece(piece);
    return root.digest();
  }

  #endPiece(): void {
    this.#pieces.push(this.#piece.digest());
    this.#piece = createHash("sha256");
    this.#filled = 0;
  }
}
