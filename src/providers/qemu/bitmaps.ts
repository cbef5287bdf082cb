import type { TrackRequest } from "../provider.ts";

/** Everything that we make in a machine is named so; nothing else is touched. */
export const ourPrefix = "hypersdk-";

export function isOurs(name: unknown): name is string {
  return typeof name === "string" && name.startsWith(ourPrefix);
}

/** `hypersdk-<repository>-<restore point>`, which is the mark too. */
export function bitmapName({ owner, id }: Pick<TrackRequest, "owner" | "id">): string {
  return `${ourPrefix}${owner}-${id}`;
}

export function isOwnedBy(name: string, owner: string): boolean {
  return name.startsWith(`${ourPrefix}${owner}-`);
}
