import { createServer, type Server, type Socket } from "node:net";
import type { BlockSource } from "../converters/block-source.ts";
import {
  allocation,
  commandFlags,
  commands,
  errors,
  handshake,
  infos,
  optionReplies,
  optionReplyMagic,
  options,
  readOnlyFlags,
  replies,
  replyDone,
  requestBytes,
  requestMagic,
  simpleReplyMagic,
  structuredReplyMagic,
} from "./protocol.ts";
import { Input, send, u16, u32, u64 } from "./wire.ts";

/** A disk that is served, by the name that a client asks for; "" is the one that is meant without a name. */
export type Exports = ReadonlyMap<string, BlockSource>;

/** The largest request that is answered; what a client may always send. */
const maxRequestBytes = 32 * 2 ** 20;
/** What is read and sent in one go. */
const pieceBytes = 2 ** 20;
/** A client that has not said what it wants by then goes. */
const negotiationMs = 30_000;
/** An option of a client: names and contexts, a few hundred bytes of honest ones. */
const maxOptionBytes = 65_536;
const maxContexts = 32;
/** Extents in one answer to a question for the map. */
const maxExtents = 4096;

/** Serves disks read-only to any number of clients at once. The caller listens with it, and closes it. */
export function nbdServer(exports: Exports): Server {
  return createServer({ noDelay: true }, (socket) => {
    // a client that goes away is no event
    socket.on("error", () => socket.destroy());
    serve(socket, exports).catch(() => socket.destroy());
  });
}

async function serve(socket: Socket, exports: Exports): Promise<void> {
  const input = Input.of(socket);
  const greeting = Buffer.concat([handshake.magic, handshake.optionMagic, u16(handshake.fixedNewstyle | handshake.noZeroes)]);
  socket.write(greeting);
  const hello = setTimeout(() => socket.destroy(), negotiationMs);
  const clientFlags = (await input.take(4).finally(() => clearTimeout(hello))).readUInt32BE();
  // a client that knows less than this has been gone for ten years
  if ((clientFlags & handshake.fixedNewstyle) === 0) return void socket.destroy();
  const timer = setTimeout(() => socket.destroy(), negotiationMs);
  const negotiated = await negotiate(socket, input, exports, (clientFlags & handshake.noZeroes) !== 0).finally(() => clearTimeout(timer));
  if (negotiated) await transmit(socket, input, negotiated);
  socket.end();
}

interface Negotiated {
  readonly source: BlockSource;
  readonly isStructured: boolean;
  readonly hasAllocation: boolean;
}

/** @returns what was agreed on; undefined when the client went without it */
async function negotiate(socket: Socket, input: Input, exports: Exports, skipsZeroes: boolean): Promise<Negotiated | undefined> {
  let isStructured = false;
  let contextOf: string | undefined;
  for (;;) {
    const head = await input.take(16);
    const [option, length] = [head.readUInt32BE(8), head.readUInt32BE(12)];
    if (!head.subarray(0, 8).equals(handshake.optionMagic) || length > maxOptionBytes) return undefined;
    const data = await input.take(length);
    const reply = (type: number, payload: Buffer = Buffer.alloc(0)): Promise<void> => {
      const lead = Buffer.alloc(20);
      lead.writeBigUInt64BE(optionReplyMagic);
      lead.writeUInt32BE(option, 8);
      lead.writeUInt32BE(type, 12);
      lead.writeUInt32BE(payload.length, 16);
      return send(socket, lead, payload);
    };
    switch (option) {
      case options.exportName: {
        // there is no answer to a wrong name but to hang up
        const source = exports.get(data.toString("utf8"));
        if (!source) return undefined;
        socket.write(Buffer.concat([u64(source.sizeBytes), u16(readOnlyFlags), Buffer.alloc(skipsZeroes ? 0 : 124)]));
        return { source, isStructured, hasAllocation: isStructured && contextOf === data.toString("utf8") };
      }
      case options.abort:
        await reply(optionReplies.ack);
        return undefined;
      case options.list:
        if (length !== 0) await reply(optionReplies.invalid);
        else {
          for (const name of exports.keys()) await reply(optionReplies.server, Buffer.concat([u32(Buffer.byteLength(name)), Buffer.from(name)]));
          await reply(optionReplies.ack);
        }
        break;
      case options.structuredReply:
        if (length !== 0) await reply(optionReplies.invalid);
        else {
          isStructured = true;
          await reply(optionReplies.ack);
        }
        break;
      case options.info:
      case options.go: {
        const name = nameIn(data, 6);
        const source = name === undefined ? undefined : exports.get(name);
        if (name === undefined) await reply(optionReplies.invalid);
        else if (!source) await reply(optionReplies.unknown);
        else {
          await reply(optionReplies.info, Buffer.concat([u16(infos.export), u64(source.sizeBytes), u16(readOnlyFlags)]));
          await reply(optionReplies.info, Buffer.concat([u16(infos.blockSize), u32(1), u32(65_536), u32(maxRequestBytes)]));
          await reply(optionReplies.ack);
          if (option === options.go) return { source, isStructured, hasAllocation: contextOf === name };
        }
        break;
      }
      case options.listMetaContext:
      case options.setMetaContext: {
        const asked = contextsIn(data);
        if (!asked || !isStructured) await reply(optionReplies.invalid);
        else if (!exports.has(asked.name)) await reply(optionReplies.unknown);
        else {
          const isList = option === options.listMetaContext;
          const wants = asked.queries.some((query) => query === allocation.context || (isList && query === "base:")) || (isList && asked.queries.length === 0);
          if (!isList) contextOf = wants ? asked.name : undefined;
          if (wants) await reply(optionReplies.metaContext, Buffer.concat([u32(isList ? 0 : allocation.id), Buffer.from(allocation.context)]));
          await reply(optionReplies.ack);
        }
        break;
      }
      default:
        await reply(optionReplies.unsupported);
    }
  }
}

/** The name at the start of an option's data, of which at least `fixedBytes` are there in all. */
function nameIn(data: Buffer, fixedBytes: number): string | undefined {
  if (data.length < fixedBytes) return undefined;
  const length = data.readUInt32BE();
  return length + fixedBytes > data.length ? undefined : data.toString("utf8", 4, 4 + length);
}

function contextsIn(data: Buffer): { readonly name: string; readonly queries: readonly string[] } | undefined {
  const name = nameIn(data, 8);
  if (name === undefined) return undefined;
  let at = 4 + data.readUInt32BE();
  const count = data.readUInt32BE(at);
  if (count > maxContexts) return undefined;
  at += 4;
  const queries: string[] = [];
  for (let i = 0; i < count; i++) {
    if (at + 4 > data.length) return undefined;
    const length = data.readUInt32BE(at);
    if (at + 4 + length > data.length) return undefined;
    queries.push(data.toString("utf8", at + 4, at + 4 + length));
    at += 4 + length;
  }
  return { name, queries };
}

interface Request {
  readonly flags: number;
  readonly type: number;
  readonly handle: Buffer;
  readonly offset: number;
  readonly length: number;
}

/** One request after the other; a client that wants several at once makes several connections. */
async function transmit(socket: Socket, input: Input, { source, isStructured, hasAllocation }: Negotiated): Promise<void> {
  for (;;) {
    const head = await input.take(requestBytes);
    if (head.readUInt32BE() !== requestMagic) return;
    const request: Request = {
      flags: head.readUInt16BE(4),
      type: head.readUInt16BE(6),
      handle: Buffer.from(head.subarray(8, 16)),
      offset: Number(head.readBigUInt64BE(16)),
      length: head.readUInt32BE(24),
    };
    const { type, offset, length, handle } = request;
    const fail = (error: number, why: string): Promise<void> =>
      send(socket, isStructured ? chunk(request, replies.error, Buffer.concat([u32(error), u16(why.length), Buffer.from(why)])) : simple(handle, error));
    const isInside = length > 0 && offset + length <= source.sizeBytes;
    if (type === commands.disconnect) return;
    if (type === commands.read) {
      const isWhole = (request.flags & commandFlags.dontFragment) !== 0;
      if (length > maxRequestBytes || (isWhole && length > pieceBytes)) await fail(errors.overflow, "too much at once");
      else if (!isInside) await fail(errors.invalid, "outside of the disk");
      else await answerRead(socket, request, source, isStructured, fail);
    } else if (type === commands.blockStatus) {
      if (!hasAllocation) await fail(errors.invalid, "base:allocation was not asked for");
      else if (!isInside) await fail(errors.invalid, "outside of the disk");
      else await answerStatus(socket, request, source, fail);
    } else if (type === commands.write) {
      // what a client writes is refused, and read over
      await input.skip(length);
      await fail(errors.notPermitted, "the disk is read-only");
    } else await fail(errors.invalid, `command ${type} is not known here`);
  }
}

type Fail = (error: number, why: string) => Promise<void>;

/** In pieces, each taken by the client before the next is read: memory is one piece for each client. */
async function answerRead(socket: Socket, request: Request, source: BlockSource, isStructured: boolean, fail: Fail): Promise<void> {
  const { offset, length, handle } = request;
  for (let done = 0; done < length; ) {
    const data = Buffer.allocUnsafeSlow(Math.min(pieceBytes, length - done));
    try {
      await source.read(offset + done, data);
    } catch {
      // without structure, what was begun cannot be taken back
      if (!isStructured && done > 0) return void socket.destroy();
      return fail(errors.io, "the disk cannot be read here");
    }
    const isLast = done + data.length === length;
    if (isStructured) await send(socket, chunkHead(request, replies.offsetData, 8 + data.length, isLast), u64(offset + done), data);
    else await send(socket, ...(done === 0 ? [simple(handle, 0)] : []), data);
    done += data.length;
  }
}

async function answerStatus(socket: Socket, request: Request, source: BlockSource, fail: Fail): Promise<void> {
  const { offset, length } = request;
  const extents: Buffer[] = [u32(allocation.id)];
  const most = request.flags & commandFlags.requestOne ? 1 : maxExtents;
  try {
    for await (const extent of source.extents({ offset, length })) {
      extents.push(u32(extent.length), u32(extent.kind === "data" ? 0 : allocation.hole | allocation.zero));
      if (extents.length > most * 2) break;
    }
  } catch {
    return fail(errors.io, "the disk cannot be read here");
  }
  return send(socket, chunk(request, replies.blockStatus, Buffer.concat(extents)));
}

function simple(handle: Buffer, error: number): Buffer {
  return Buffer.concat([u32(simpleReplyMagic), u32(error), handle]);
}

function chunk(request: Request, type: number, payload: Buffer): Buffer {
  return Buffer.concat([chunkHead(request, type, payload.length, true), payload]);
}

function chunkHead({ handle }: Request, type: number, length: number, isLast: boolean): Buffer {
  return Buffer.concat([u32(structuredReplyMagic), u16(isLast ? replyDone : 0), u16(type), handle, u32(length)]);
}
