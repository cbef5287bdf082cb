/** By code units, as every list of a plan is sorted: the same on any machine. */
export function order(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
