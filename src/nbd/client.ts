import { connect as connectSocket, type Socket } from "node:net";
import type { TLSSocket } from "node:tls";
import { errnoOf, HypersdkError } from "../model/errors.ts";
import { lazily } from "../model/lazily.ts";
import {
  allocation,
  commands,
  handshake,
  infos,
  optionReplies,
  optionReplyMagic,
  options,
  replies,
  replyDone,
  requestMagic,
  simpleReplyMagic,
  structuredReplyMagic,
} from "./protocol.ts";
import { Input, send, u16, u32, u64 } from "./wire.ts";

/** Where a server listens. */
export type NbdAddress = { readonly path: string } | { readonly host: string; readonly port: number };

export interface NbdOptions {
  /** The name of the export; "" is the server's own choice. */
  readonly exportName?: string;
  /** Meta contexts beside `base:allocation`, such as `qemu:dirty-bitmap:NAME`. */
  readonly contexts?: readonly string[];
  /** Encrypts the connection before anything is said; the server's certificate is verified. PEM texts. */
  readonly tls?: { readonly ca: string; readonly serverName: string; readonly cert?: string; readonly key?: string };
  /** How long the server may say nothing while an answer is owed; a minute otherwise. */
  readonly timeoutMs?: number;
}

/** A run of equal flags in a meta context; what they mean, the context says. */
interface StatusExtent {
  readonly offset: number;
  readonly length: number;
  readonly flags: number;
}

/** A connection to one export. Requests may be made side by side; the first failure of the connection fails them all. */
export interface NbdClient {
  readonly sizeBytes: number;
  /** The contexts that the server has. */
  readonly contexts: ReadonlySet<string>;
  /** The most that one read may ask for. */
  readonly maxReadBytes: number;
  read(offset: number, into: Buffer): Promise<void>;
  /** The flags of a context from `offset` on: at least one extent, at most to the end of the range, whichever the server likes. */
  status(context: string, offset: number, length: number): Promise<StatusExtent[]>;
  /** Where the server lets itself be written to; at most 4 GiB less one byte. */
  writeZeroes(offset: number, length: number): Promise<void>;
  /** Says goodbye. Closing twice is fine. */
  close(): Promise<void>;
}

/** What a server may send for one option: names and error texts, no more. */
const maxOptionReplyBytes = 64 * 1024;
const maxOptionReplies = 64;
/** The most extents that an answer may have. */
const maxStatusBytes = 8 * 2 ** 20;
const nodeTls = lazily<typeof import("node:tls")>("node:tls");
const defaultTimeoutMs = 60_000;
/** As of every disk that is read. */
const maxSizeBytes = 64 * 2 ** 40;
/** What any server must take in one request. */
const minMaxRead = 65_536;
const usualMaxRead = 32 * 2 ** 20;

/**
 * Connects to an export. The server is not trusted: every length and offset that it sends is checked against what was asked.
 * @throws ProviderUnreachable when it cannot be reached or stops answering, NotFound when it has no such export, Failed when it does not
 * speak as the protocol says
 */
export async function connectNbd(address: NbdAddress, options: NbdOptions = {}): Promise<NbdClient> {
  const { exportName = "", contexts = [], tls, timeoutMs = defaultTimeoutMs } = options;
  let [socket, input]: [Socket | TLSSocket, Input] = await opened(address, timeoutMs, tls === undefined);
  socket.setTimeout(timeoutMs, () => socket.destroy(silent(address, timeoutMs)));
  const failure: { error?: Error } = {};
  const noteError = (error: Error): void => void (failure.error ??= error);
  socket.on("error", noteError);
  try {
    let negotiation = new Negotiation(socket, input, address);
    await negotiation.greet();
    if (tls) {
      await negotiation.startTls();
      input.leave();
      socket = await secured(socket, tls, address);
      socket.on("error", noteError);
      input = Input.of(socket);
      negotiation = new Negotiation(socket, input, address);
    }
    const agreed = await negotiation.agree(exportName, [allocation.context, ...contexts]);
    return new Connection(socket, input, address, agreed, timeoutMs);
  } catch (error) {
    socket.destroy();
    throw failure.error instanceof HypersdkError ? failure.error : ofConnection(error, address);
  }
}

interface Agreed {
  readonly sizeBytes: number;
  readonly maxReadBytes: number;
  /** By number. */
  readonly contexts: ReadonlyMap<number, string>;
}

/** The part in which both sides agree on what they speak. */
class Negotiation {
  readonly #socket: Socket;
  readonly #input: Input;
  readonly #address: NbdAddress;

  constructor(socket: Socket, input: Input, address: NbdAddress) {
    this.#socket = socket;
    this.#input = input;
    this.#address = address;
  }

  async greet(): Promise<void> {
    const greeting = await this.#input.take(18);
    if (!greeting.subarray(0, 8).equals(handshake.magic) || !greeting.subarray(8, 16).equals(handshake.optionMagic))
      throw this.#violation("it does not greet as an NBD server");
    const flags = greeting.readUInt16BE(16);
    if ((flags & handshake.fixedNewstyle) === 0) throw this.#violation("it speaks only the old protocol");
    await send(this.#socket, u32(handshake.fixedNewstyle | (flags & handshake.noZeroes)));
  }

  async startTls(): Promise<void> {
    const answers = await this.#ask(options.startTls);
    if (answers.at(-1)?.type !== optionReplies.ack) throw new HypersdkError("Failed", `the NBD server at ${shown(this.#address)} offers no TLS`);
  }

  async agree(exportName: string, wanted: readonly string[]): Promise<Agreed> {
    const structured = await this.#ask(options.structuredReply);
    if (structured.at(-1)?.type !== optionReplies.ack) throw this.#violation("it knows no structured replies");
    const name = Buffer.from(exportName);
    const queries = wanted.map((each) => Buffer.from(each));
    const asked = Buffer.concat([u32(name.length), name, u32(queries.length), ...queries.flatMap((each) => [u32(each.length), each])]);
    const contexts = new Map<number, string>();
    for (const { type, data } of await this.#ask(options.setMetaContext, asked)) {
      if (type !== optionReplies.metaContext) continue;
      const context = data.toString("utf8", 4);
      if (data.length < 5 || !wanted.includes(context)) throw this.#violation("it answers with a context that was not asked for");
      contexts.set(data.readUInt32BE(), context);
    }
    const answers = await this.#ask(options.go, Buffer.concat([u32(name.length), name, u16(1), u16(infos.blockSize)]));
    const last = answers.at(-1);
    if (last?.type === optionReplies.unknown)
      throw new HypersdkError("NotFound", `the NBD server at ${shown(this.#address)} has no export ${JSON.stringify(exportName)}`);
    if (last?.type !== optionReplies.ack) throw this.#violation(`it refuses the export with ${last?.type.toString(16)}`);
    let sizeBytes: bigint | undefined;
    let maxReadBytes = usualMaxRead;
    for (const { type, data } of answers) {
      if (type !== optionReplies.info || data.length < 2) continue;
      const kind = data.readUInt16BE();
      if (kind === infos.export && data.length >= 12) sizeBytes = data.readBigUInt64BE(2);
      if (kind === infos.blockSize && data.length >= 14) maxReadBytes = Math.max(minMaxRead, Math.min(usualMaxRead, data.readUInt32BE(10)));
    }
    if (sizeBytes === undefined || sizeBytes > BigInt(maxSizeBytes)) throw this.#violation(`it gives the size as ${sizeBytes}`);
    return { sizeBytes: Number(sizeBytes), maxReadBytes, contexts };
  }

  /** All answers to one option; the last is the acknowledgement or the error. */
  async #ask(option: number, data: Buffer = Buffer.alloc(0)): Promise<{ readonly type: number; readonly data: Buffer }[]> {
    await send(this.#socket, handshake.optionMagic, u32(option), u32(data.length), data);
    const answers: { type: number; data: Buffer }[] = [];
    for (;;) {
      const head = await this.#input.take(20);
      const [type, length] = [head.readUInt32BE(12), head.readUInt32BE(16)];
      if (head.readBigUInt64BE() !== optionReplyMagic || head.readUInt32BE(8) !== option || length > maxOptionReplyBytes || answers.length >= maxOptionReplies)
        throw this.#violation("it answers an option in no way that the protocol knows");
      answers.push({ type, data: await this.#input.take(length) });
      if (type === optionReplies.ack || (type & 0x80000000) !== 0) return answers;
    }
  }

  #violation(what: string): HypersdkError {
    return violation(this.#address, what);
  }
}

/** A request that waits for its answer. */
interface Pending {
  readonly into?: Buffer;
  readonly offset: number;
  readonly length: number;
  /** Whether nothing but an error can be said of it, as of a write. */
  readonly isSilent: boolean;
  /** Of a read: the parts that have come, in order of their offsets. */
  readonly parts: [from: number, to: number][];
  readonly statuses: Map<number, StatusExtent[]>;
  error?: HypersdkError;
  resolve(): void;
  reject(error: unknown): void;
}

class Connection implements NbdClient {
  readonly sizeBytes: number;
  readonly maxReadBytes: number;
  readonly contexts: ReadonlySet<string>;
  readonly #socket: Socket;
  readonly #input: Input;
  readonly #address: NbdAddress;
  readonly #contextIds: ReadonlyMap<number, string>;
  readonly #pending = new Map<bigint, Pending>();
  #next = 1n;
  #failure: unknown;
  #isClosed = false;

  constructor(socket: Socket, input: Input, address: NbdAddress, { sizeBytes, maxReadBytes, contexts }: Agreed, timeoutMs: number) {
    this.#socket = socket;
    this.#input = input;
    this.#address = address;
    this.sizeBytes = sizeBytes;
    this.maxReadBytes = maxReadBytes;
    this.#contextIds = contexts;
    this.contexts = new Set(contexts.values());
    socket.removeAllListeners("timeout");
    socket.setTimeout(timeoutMs, () => {
      if (this.#pending.size > 0) this.#fail(silent(address, timeoutMs));
    });
    socket.on("error", (error) => this.#fail(error));
    this.#receive().catch((error: unknown) => this.#fail(error));
  }

  async read(offset: number, into: Buffer): Promise<void> {
    if (into.length === 0) return;
    this.#checkRange(offset, into.length);
    for (let done = 0; done < into.length; done += this.maxReadBytes) {
      const part = into.subarray(done, Math.min(into.length, done + this.maxReadBytes));
      await this.#request(commands.read, { offset: offset + done, length: part.length, into: part });
    }
  }

  async status(context: string, offset: number, length: number): Promise<StatusExtent[]> {
    this.#checkRange(offset, length);
    if (!this.contexts.has(context)) throw new HypersdkError("NotFound", `the NBD server at ${shown(this.#address)} has no ${context}`);
    // a length of 32 bits, on a border that every server can answer on
    const { statuses } = await this.#request(commands.blockStatus, { offset, length: Math.min(length, 2 ** 31) });
    for (const [id, extents] of statuses) if (this.#contextIds.get(id) === context) return extents;
    throw violation(this.#address, `it says nothing about ${context}`);
  }

  async writeZeroes(offset: number, length: number): Promise<void> {
    this.#checkRange(offset, length);
    await this.#request(commands.writeZeroes, { offset, length });
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#fail(new HypersdkError("Failed", "the connection was closed"));
    await new Promise<void>((resolve) => {
      this.#socket.once("close", resolve);
      if (this.#socket.destroyed) resolve();
      else
        this.#socket.end(Buffer.concat([u32(requestMagic), u16(0), u16(commands.disconnect), u64(0), u64(0), u32(0)]), () => {
          this.#socket.destroy();
        });
    });
  }

  #checkRange(offset: number, length: number): void {
    if (!(offset >= 0 && length > 0 && offset + length <= this.sizeBytes)) throw new RangeError(`${length} bytes at ${offset} of a disk of ${this.sizeBytes}`);
  }

  async #request(type: number, { offset, length, into }: { offset: number; length: number; into?: Buffer }): Promise<Pending> {
    if (this.#failure) throw this.#failure;
    const handle = this.#next++;
    const answered = new Promise<Pending>((resolve, reject) => {
      const pending: Pending = {
        offset,
        length,
        isSilent: type === commands.writeZeroes,
        ...(into ? { into } : {}),
        parts: [],
        statuses: new Map(),
        resolve: () => resolve(pending),
        reject,
      };
      this.#pending.set(handle, pending);
    });
    // whoever waits for it is told below
    answered.catch(() => {});
    await send(this.#socket, Buffer.concat([u32(requestMagic), u16(0), u16(type), u64(Number(handle)), u64(offset), u32(length)])).catch((error: unknown) =>
      this.#fail(error),
    );
    return answered;
  }

  /** Takes answers for as long as the connection stands. */
  async #receive(): Promise<void> {
    for (;;) {
      const magic = (await this.#input.take(4)).readUInt32BE();
      if (magic === simpleReplyMagic) await this.#takeSimple();
      else if (magic === structuredReplyMagic) await this.#takeChunk();
      else throw violation(this.#address, "an answer begins with no magic number of the protocol");
    }
  }

  /** Structured replies were agreed on: a simple one can only be an error, or the answer to a write. */
  async #takeSimple(): Promise<void> {
    const head = await this.#input.take(12);
    const [handle, pending] = this.#find(head.readBigUInt64BE(4));
    const errno = head.readUInt32BE();
    if (errno === 0 && !pending.isSilent) throw violation(this.#address, "it answers without structure");
    this.#pending.delete(handle);
    if (errno === 0) pending.resolve();
    else pending.reject(this.#refusal(pending, errno));
  }

  async #takeChunk(): Promise<void> {
    const head = await this.#input.take(16);
    const [flags, type, length] = [head.readUInt16BE(), head.readUInt16BE(2), head.readUInt32BE(12)];
    const [handle, pending] = this.#find(head.readBigUInt64BE(4));
    if (type === replies.offsetData) await this.#takeData(pending, length);
    else if (type === replies.offsetHole) await this.#takeHole(pending, length);
    else if (type === replies.blockStatus) await this.#takeStatus(pending, length);
    else if ((type & 0x8000) !== 0) {
      if (length < 6 || length > maxOptionReplyBytes) throw violation(this.#address, `it fails in ${length} bytes`);
      pending.error ??= this.#refusal(pending, (await this.#input.take(length)).readUInt32BE());
    } else if (type !== replies.none || length !== 0) throw violation(this.#address, `it answers with a chunk of type ${type}`);
    if ((flags & replyDone) === 0) return;
    if (!pending.error && pending.into && !isCovered(pending.parts, pending.length))
      throw violation(this.#address, "it ends an answer before all of it has come");
    this.#pending.delete(handle);
    if (pending.error) pending.reject(pending.error);
    else pending.resolve();
  }

  async #takeData(pending: Pending, length: number): Promise<void> {
    if (length < 9) throw violation(this.#address, `it sends data in ${length} bytes`);
    const at = this.#placeOf(pending, await this.#input.take(8), length - 8);
    await this.#input.takeInto(at);
  }

  async #takeHole(pending: Pending, length: number): Promise<void> {
    if (length !== 12) throw violation(this.#address, `it sends a hole in ${length} bytes`);
    const payload = await this.#input.take(12);
    this.#placeOf(pending, payload, payload.readUInt32BE(8)).fill(0);
  }

  /** The part of the wanted buffer that an answer is for. */
  #placeOf({ into, offset, parts }: Pending, offsetBytes: Buffer, length: number): Buffer {
    const from = Number(offsetBytes.readBigUInt64BE()) - offset;
    const to = from + length;
    if (!into || !(from >= 0 && length > 0 && to <= into.length)) throw violation(this.#address, "it sends bytes that were not asked for");
    if (parts.some(([start, end]) => from < end && to > start)) throw violation(this.#address, "it sends the same bytes twice");
    const last = parts.at(-1);
    // neighbours become one: an answer in a thousand pieces is a list of one
    if (last && last[1] === from) last[1] = to;
    else parts.push([from, to]);
    if (parts.length > maxParts) throw violation(this.#address, "it sends an answer in too many pieces");
    return into.subarray(from, to);
  }

  async #takeStatus(pending: Pending, length: number): Promise<void> {
    if (pending.into || pending.isSilent || length < 12 || length > maxStatusBytes || length % 8 !== 4)
      throw violation(this.#address, `it describes blocks in ${length} bytes`);
    const payload = await this.#input.take(length);
    const id = payload.readUInt32BE();
    if (!this.#contextIds.has(id) || pending.statuses.has(id)) throw violation(this.#address, `it describes blocks in context ${id}`);
    const extents: StatusExtent[] = [];
    const end = pending.offset + pending.length;
    let at = pending.offset;
    for (let i = 4; i < length; i += 8) {
      const extentBytes = payload.readUInt32BE(i);
      if (extentBytes === 0 || at >= end) throw violation(this.#address, "it describes blocks that were not asked for");
      // the last one may reach farther
      extents.push({ offset: at, length: Math.min(extentBytes, end - at), flags: payload.readUInt32BE(i + 4) });
      at += extentBytes;
    }
    pending.statuses.set(id, extents);
  }

  #find(handle: bigint): [bigint, Pending] {
    const pending = this.#pending.get(handle);
    if (!pending) throw violation(this.#address, "it answers what was not asked");
    return [handle, pending];
  }

  #refusal({ offset, length }: Pending, errno: number): HypersdkError {
    return new HypersdkError("Failed", `the NBD server at ${shown(this.#address)} refuses ${length} bytes at ${offset}: error ${errno}`);
  }

  #fail(error: unknown): void {
    this.#failure ??= ofConnection(error, this.#address);
    for (const { reject } of this.#pending.values()) reject(this.#failure);
    this.#pending.clear();
    if (!this.#isClosed) this.#socket.destroy();
  }
}

/** Pieces of one answer that do not follow one another. */
const maxParts = 4096;

function isCovered(parts: readonly [number, number][], length: number): boolean {
  // without overlaps, what is complete is as long as what was asked
  return parts.reduce((sum, [from, to]) => sum + to - from, 0) === length;
}

/** What comes is read into one buffer of this size, which is used again and again: a new one each time is half of what the collector has to do. */
const inboxBytes = 256 * 1024;

/** @param isPlain otherwise somebody else will read what comes after the greeting */
function opened(address: NbdAddress, timeoutMs: number, isPlain: boolean): Promise<[Socket, Input]> {
  return new Promise((resolve, reject) => {
    const input = new Input();
    const inbox = {
      buffer: Buffer.allocUnsafeSlow(inboxBytes),
      callback: (bytes: number, buffer: Uint8Array) => input.feed(buffer.subarray(0, bytes) as Buffer),
    };
    const socket = connectSocket({ ...address, noDelay: true, timeout: timeoutMs, ...(isPlain ? { onread: inbox } : {}) });
    const fail = (error: unknown): void => {
      socket.destroy();
      reject(ofConnection(error, address));
    };
    socket.once("timeout", () => fail(new Error("it does not answer")));
    socket.once("error", fail);
    socket.once("connect", () => {
      socket.removeAllListeners();
      if (isPlain) input.follow(socket);
      resolve([socket, isPlain ? input : Input.of(socket)]);
    });
  });
}

function secured(socket: Socket, { ca, serverName, cert, key }: NonNullable<NbdOptions["tls"]>, address: NbdAddress): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const tls = nodeTls().connect({
      socket,
      ca,
      servername: serverName,
      ...(cert === undefined ? {} : { cert }),
      ...(key === undefined ? {} : { key }),
      minVersion: "TLSv1.2",
    });
    tls.once("secureConnect", () => resolve(tls));
    tls.once("error", (error) =>
      reject(new HypersdkError("Failed", `no trusted connection to the NBD server at ${shown(address)}: ${error.message}`, { cause: error })),
    );
  });
}

function shown(address: NbdAddress): string {
  return "path" in address ? address.path : `${address.host}:${address.port}`;
}

function silent(address: NbdAddress, timeoutMs: number): HypersdkError {
  return new HypersdkError("ProviderUnreachable", `the NBD server at ${shown(address)} said nothing for ${timeoutMs / 1000} s`);
}

function violation(address: NbdAddress, what: string): HypersdkError {
  return new HypersdkError("Failed", `the NBD server at ${shown(address)} does not keep to the protocol: ${what}`);
}

function ofConnection(error: unknown, address: NbdAddress): HypersdkError {
  if (error instanceof HypersdkError) return error;
  return new HypersdkError("ProviderUnreachable", `the NBD server at ${shown(address)}: ${errnoOf(error) ?? (error as Error).message}`, { cause: error });
}
