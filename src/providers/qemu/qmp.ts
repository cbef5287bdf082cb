import { HypersdkError } from "../../model/errors.ts";
import { monotonicMs } from "../../model/monotonic.ts";
import { JsonSocket, objectIn } from "./json-socket.ts";

const greetingMs = 3_000;
const answerMs = 60_000;

/** An event of the machine: a job that ended, a guest that shut down. */
export interface QmpEvent {
  readonly event: string;
  readonly data: Record<string, unknown>;
}

/**
 * A connection to QEMU's monitor. QEMU talks to one client at a time, so that whoever has it is alone: what another export of ours has left
 * behind belongs to nobody any more.
 */
export class Qmp {
  readonly #socket: JsonSocket;
  readonly path: string;
  readonly #events: QmpEvent[] = [];
  #last: Promise<unknown> = Promise.resolve();
  #id = 0;

  private constructor(socket: JsonSocket, path: string) {
    this.#socket = socket;
    this.path = path;
  }

  /** @throws ProviderUnreachable when nobody listens there, or QEMU talks to somebody else */
  static async connect(path: string): Promise<Qmp> {
    const socket = await JsonSocket.open(path, "QEMU");
    try {
      const greeting = await socket.next(greetingMs).catch((error: unknown) => {
        throw new HypersdkError("ProviderUnreachable", `QEMU at ${path} does not greet: another program talks to its monitor`, {
          cause: error,
          hint: "give hypersdk a monitor of its own: a second -qmp unix:PATH,server=on,wait=off",
        });
      });
      if (greeting["QMP"] === undefined) throw new HypersdkError("ProviderUnreachable", `what listens at ${path} is no QEMU monitor`);
      const qmp = new Qmp(socket, path);
      await qmp.execute("qmp_capabilities");
      return qmp;
    } catch (error) {
      socket.close();
      throw error;
    }
  }

  /** One command after the other. @throws Failed with QEMU's words when it refuses */
  execute(command: string, args?: object): Promise<unknown> {
    const done = this.#last.then(() => this.#execute(command, args));
    this.#last = done.catch(() => {});
    return done;
  }

  /** The list that a command answers with. */
  async list(command: string, args?: object): Promise<Record<string, unknown>[]> {
    const answer = await this.execute(command, args);
    return (Array.isArray(answer) ? answer : []).map(objectIn);
  }

  /** Waits for an event; those that came since the connection was made count. */
  async event(matches: (event: QmpEvent) => boolean, timeoutMs: number): Promise<void> {
    const until = monotonicMs() + timeoutMs;
    while (!this.#events.some(matches)) {
      // an answer to any command brings the events that came before it
      if (monotonicMs() > until) throw new HypersdkError("ProviderUnreachable", `QEMU at ${this.path} does not come to an end`);
      await new Promise((resolve) => setTimeout(resolve, 20));
      await this.execute("query-status");
    }
  }

  has(matches: (event: QmpEvent) => boolean): boolean {
    return this.#events.some(matches);
  }

  close(): void {
    this.#socket.close();
  }

  async #execute(command: string, args: object | undefined): Promise<unknown> {
    const id = `hypersdk-${++this.#id}`;
    this.#socket.send({ execute: command, ...(args ? { arguments: args } : {}), id });
    const until = monotonicMs() + answerMs;
    for (;;) {
      const message = await this.#socket.next(until - monotonicMs());
      if (typeof message["event"] === "string") {
        this.#events.push({ event: message["event"], data: (message["data"] ?? {}) as Record<string, unknown> });
        if (this.#events.length > 1000) this.#events.shift();
        continue;
      }
      if (message["id"] !== id) continue;
      if (message["error"] === undefined) return message["return"];
      const { desc } = objectIn(message["error"]);
      throw new HypersdkError("Failed", `QEMU at ${this.path} refuses ${command}: ${String(desc)}`);
    }
  }
}
