import type { TransformOptions } from "node:stream";
import { promisify } from "node:util";
import { constants, createZstdCompress, type ZstdCompress, type ZstdOptions, zstdCompress } from "node:zlib";

/** As many as the pool of threads has by default: more would wait there. */
const lanesAtOnce = 4;
const params = { [constants.ZSTD_c_compressionLevel]: 1 };
/** Every write ends a frame. Output comes as parts of buffers of `chunkSize`; it has room for all, or a lane would wait for its reader before it is done. */
const options: ZstdOptions & Pick<TransformOptions, "readableHighWaterMark"> = {
  params,
  flush: constants.ZSTD_e_end,
  chunkSize: 512 * 1024,
  readableHighWaterMark: 64 * 2 ** 20,
};
const oneShot = promisify(zstdCompress);

/** What zstd writes when it is asked to end a frame that it has just ended. */
const emptyFrame = Buffer.from("28b52ffd2000010000", "hex");

const idle: ZstdCompress[] = [];
const waiting: ((lane: ZstdCompress) => void)[] = [];
let lanes = 0;

/**
 * One zstd frame, made on a thread of the pool. The contexts are kept from chunk to chunk: `zlib.zstdCompress` makes one for each call, and what
 * the collector does about their memory takes more CPU than compressing 128 KiB.
 */
export async function compressChunk(data: Buffer): Promise<Buffer> {
  const lane = await take();
  let packed: Buffer;
  try {
    packed = await frameOf(lane, data);
  } catch (error) {
    lanes--;
    lane.destroy();
    throw error;
  }
  const next = waiting.shift();
  if (next) next(lane);
  else idle.push(lane);
  // the frame ended where a slab did, and zlib asked once more; what ends so by chance costs only this
  return packed.subarray(-emptyFrame.length).equals(emptyFrame) ? oneShot(data, { params, pledgedSrcSize: data.length }) : packed;
}

async function take(): Promise<ZstdCompress> {
  const lane = idle.pop();
  if (lane) return lane;
  if (lanes === lanesAtOnce) return new Promise((resolve) => waiting.push(resolve));
  lanes++;
  return createZstdCompress(options);
}

function frameOf(lane: ZstdCompress, data: Buffer): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    lane.once("error", reject);
    lane.write(data, (error) => {
      lane.off("error", reject);
      if (error) reject(error);
      else resolve(lane.read() as Buffer);
    });
  });
}
