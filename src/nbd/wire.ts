import type { Socket } from "node:net";

/** Resolves when the other side has taken it: nothing piles up for one that does not read. */
export function send(socket: Socket, ...parts: readonly Buffer[]): Promise<void> {
  return new Promise((resolve, reject) => {
    socket.cork();
    for (const part of parts.slice(0, -1)) socket.write(part);
    socket.write(parts.at(-1) ?? Buffer.alloc(0), (error) => (error ? reject(error) : resolve()));
    socket.uncork();
  });
}

export function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

export function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}

/** What comes from the other side, in pieces of the size that is wanted; no more is taken from the socket than that needs. */
export class Input {
  readonly #socket: Socket;
  #ended = false;
  #wake: () => void = () => {};

  constructor(socket: Socket) {
    this.#socket = socket;
    // one listener for good: a new one would be told at once of what is there already, and is too little
    const end = (): void => {
      this.#ended = true;
      this.#wake();
    };
    socket
      .on("readable", () => this.#wake())
      .once("end", end)
      .once("close", end)
      .once("error", end);
  }

  /** @throws when the other side goes before */
  async take(bytes: number): Promise<Buffer> {
    if (bytes === 0) return Buffer.alloc(0);
    for (;;) {
      const data = this.#socket.read(bytes) as Buffer | null;
      if (data?.length === bytes) return data;
      if (data !== null || this.#ended || this.#socket.destroyed) throw new Error("the other side hung up");
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  /** Fills a buffer as the bytes come. @throws when the other side goes before */
  async takeInto(target: Buffer): Promise<void> {
    for (let done = 0; done < target.length; ) {
      const there = Math.min(target.length - done, this.#socket.readableLength);
      const data = there > 0 ? (this.#socket.read(there) as Buffer | null) : null;
      if (data) {
        data.copy(target, done);
        done += data.length;
        continue;
      }
      // asking for nothing makes the socket say when there is something
      if (this.#socket.read(0) !== null || this.#ended || this.#socket.destroyed) throw new Error("the other side hung up");
      if (this.#socket.readableLength === 0) await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  async skip(bytes: number): Promise<void> {
    for (let left = bytes; left > 0; left -= 65_536) await this.take(Math.min(left, 65_536));
  }
}
