import { connect, type Socket } from "node:net";
import { errnoText, HypersdkError } from "../../model/errors.ts";
import { monotonicMs } from "../../model/monotonic.ts";

/** A message may not be longer: the answer about a hundred disks is a tenth of it. */
const maxMessageBytes = 16 * 2 ** 20;

/** JSON objects, one a line, both ways over a Unix socket: what QMP and the guest agent speak. */
export class JsonSocket {
  readonly #socket: Socket;
  readonly #what: string;
  readonly #messages: Record<string, unknown>[] = [];
  #text = Buffer.alloc(0);
  #failure: HypersdkError | undefined;
  #wake: () => void = () => {};

  /** @param what names the other side in errors */
  static open(path: string, what: string): Promise<JsonSocket> {
    return new Promise((resolve, reject) => {
      const socket = connect({ path });
      socket.once("error", (error) => reject(new HypersdkError("ProviderUnreachable", `${what} at ${path}: ${errnoText(error)}`, { cause: error })));
      socket.once("connect", () => {
        socket.removeAllListeners("error");
        resolve(new JsonSocket(socket, what));
      });
    });
  }

  private constructor(socket: Socket, what: string) {
    this.#socket = socket;
    this.#what = what;
    socket.on("data", (data) => this.#take(data));
    socket.on("error", () => this.#fail("hung up"));
    socket.on("close", () => this.#fail("hung up"));
  }

  send(message: object): void {
    this.#socket.write(`${JSON.stringify(message)}\n`);
  }

  /** The next message. @throws ProviderUnreachable when none comes in time, or the other side goes */
  async next(timeoutMs: number): Promise<Record<string, unknown>> {
    const until = monotonicMs() + timeoutMs;
    for (;;) {
      const message = this.#messages.shift();
      if (message) return message;
      if (this.#failure) throw this.#failure;
      const left = until - monotonicMs();
      if (left <= 0) throw new HypersdkError("ProviderUnreachable", `${this.#what} says nothing`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  close(): void {
    this.#socket.destroy();
  }

  #take(data: Buffer): void {
    this.#text = Buffer.concat([this.#text, data]);
    for (let end = this.#text.indexOf(10); end >= 0; end = this.#text.indexOf(10)) {
      // the guest agent begins its answer to a synchronization with 0xFF
      const line = this.#text
        .subarray(0, end)
        .toString("utf8")
        .replace(/^\uFFFD+/, "")
        .trim();
      this.#text = this.#text.subarray(end + 1);
      if (line === "") continue;
      try {
        this.#messages.push(objectIn(JSON.parse(line)));
      } catch {
        this.#fail("sends what is no JSON object");
        return;
      }
    }
    if (this.#text.length > maxMessageBytes) this.#fail("sends a message without end");
    this.#wake();
  }

  #fail(why: string): void {
    this.#failure ??= new HypersdkError("ProviderUnreachable", `${this.#what} ${why}`);
    this.#socket.destroy();
    this.#wake();
  }
}

/** An answer as an object: what is missing or of another kind in it reads as undefined. @throws ProviderUnreachable for anything else */
export function objectIn(value: unknown): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new HypersdkError("ProviderUnreachable", "QEMU answers with something else than an object");
  return value as Record<string, unknown>;
}
