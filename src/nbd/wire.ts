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

const nothing = Buffer.alloc(0);

/**
 * What comes from the other side, in pieces of the size that is wanted: copied straight to where it belongs. While something has come that
 * nobody has asked for, the socket rests.
 */
export class Input {
  /** Has come, and is not taken; a part of a buffer that is used again once the socket goes on. */
  #held: Buffer = nothing;
  /** What whoever takes still waits for. */
  #wanted: Buffer = nothing;
  #ended = false;
  #wake: () => void = () => {};
  #resume: () => void = () => {};
  #leave: () => void = () => {};

  /** From a socket that hands out a buffer of its own each time. */
  static of(socket: Socket): Input {
    const input = new Input();
    const hear = (data: Buffer): void => void (input.feed(data) || socket.pause());
    input.follow(socket);
    socket.on("data", hear);
    input.#leave = () => void socket.off("data", hear).pause();
    return input;
  }

  /** Hears of the end of a socket that is made to call {@link feed}. */
  follow(socket: Socket): void {
    this.#resume = () => void socket.resume();
    const end = (): void => {
      this.#ended = true;
      this.#wake();
    };
    socket.once("end", end).once("close", end).once("error", end);
  }

  /** Takes what has come. @returns whether the socket may go on; otherwise `data` is still needed */
  feed(data: Buffer): boolean {
    this.#held = data;
    this.#serve();
    return this.#held.length === 0;
  }

  /** @throws when the other side goes before */
  async take(bytes: number): Promise<Buffer> {
    const data = Buffer.allocUnsafe(bytes);
    await this.takeInto(data);
    return data;
  }

  /** Fills a buffer as the bytes come; for one caller at a time. @throws when the other side goes before */
  async takeInto(target: Buffer): Promise<void> {
    this.#wanted = target;
    this.#serve();
    if (this.#wanted.length > 0 && !this.#ended) {
      const come = new Promise<void>((resolve) => (this.#wake = resolve));
      this.#resume();
      await come;
    }
    if (this.#wanted.length > 0) throw new Error("the other side hung up");
  }

  async skip(bytes: number): Promise<void> {
    for (let left = bytes; left > 0; left -= 65_536) await this.take(Math.min(left, 65_536));
  }

  /** Somebody else reads the socket from now on. */
  leave(): void {
    this.#leave();
  }

  #serve(): void {
    if (this.#held.length === 0 || this.#wanted.length === 0) return;
    const bytes = this.#held.copy(this.#wanted);
    this.#held = this.#held.subarray(bytes);
    this.#wanted = this.#wanted.subarray(bytes);
    if (this.#wanted.length === 0) this.#wake();
  }
}
