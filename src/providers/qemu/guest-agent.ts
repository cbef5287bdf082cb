import { monotonicMs } from "../../model/monotonic.ts";
import { JsonSocket } from "./json-socket.ts";

const syncMs = 3_000;
/** A guest has to write back what it holds; one with slow disks takes its time. */
const freezeMs = 60_000;

/** The agent inside the guest, which can hold its file systems still for the instant of a snapshot. */
export class GuestAgent {
  readonly #socket: JsonSocket;

  private constructor(socket: JsonSocket) {
    this.#socket = socket;
  }

  /** Undefined where none listens, or none answers. */
  static async connect(path: string): Promise<GuestAgent | undefined> {
    const socket = await JsonSocket.open(path, "the guest agent").catch(() => undefined);
    if (!socket) return undefined;
    const agent = new GuestAgent(socket);
    const id = Math.floor(monotonicMs() * 1000) % 2 ** 31;
    try {
      // answers to what another asked before may still be on their way
      socket.send({ execute: "guest-sync", arguments: { id } });
      for (let seen = 0; seen < 16; seen++) if ((await socket.next(syncMs))["return"] === id) return agent;
    } catch {}
    agent.close();
    return undefined;
  }

  /** @returns whether the file systems stand still now */
  async freeze(): Promise<boolean> {
    const frozen = await this.#ask("guest-fsfreeze-freeze");
    return typeof frozen === "number" && frozen > 0;
  }

  async thaw(): Promise<void> {
    await this.#ask("guest-fsfreeze-thaw");
  }

  close(): void {
    this.#socket.close();
  }

  /** What it answers; undefined for an error, which costs consistency and no export. */
  async #ask(command: string): Promise<unknown> {
    this.#socket.send({ execute: command });
    try {
      return (await this.#socket.next(freezeMs))["return"];
    } catch {
      return undefined;
    }
  }
}
