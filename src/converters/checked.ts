import { HypersdkError } from "../model/errors.ts";

/** An image that contradicts itself: names the file, the field and its value. */
export function damaged(image: string, what: string): HypersdkError {
  return new HypersdkError("ImageDamaged", `${image}: ${what}`);
}

/** An image that is sound but that this version does not read. */
export function unsupported(image: string, what: string, hint?: string): HypersdkError {
  return new HypersdkError("ImageUnsupported", `${image}: ${what}`, hint ? { hint } : {});
}

/** Narrows a 64-bit value to a safe number. No arithmetic leaves 2^53 silently. */
export function narrow(image: string, field: string, value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw damaged(image, `${field} is ${value}, more than 2^53`);
  return Number(value);
}

/** The virtual size that is read without being asked to, 64 TiB: more than any format here writes. */
const maxVirtualBytes: number = 64 * 2 ** 40;

export function checkVirtualSize(image: string, bytes: number): void {
  if (bytes > maxVirtualBytes) throw damaged(image, `a virtual size of ${bytes} bytes is over the limit of ${maxVirtualBytes}`);
}
