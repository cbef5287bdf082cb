import { parseDestinationUrl } from "../../config/destination-url.ts";
import type { DesiredState, DestinationAddress } from "../../model/desired.ts";
import { HypersdkError } from "../../model/errors.ts";
import { nearestName } from "../../model/nearest.ts";

/** A destination that a person named: by its name in the files, or by its URL, which needs no files. */
export function destinationNamed(text: string, desired: DesiredState | undefined, cwd: string): DestinationAddress {
  const all = desired?.destinations ?? [];
  const named = all.find(({ name }) => name === text);
  if (named) return named;
  if (text.includes(":")) {
    const url = parseDestinationUrl(text, cwd);
    if (!url.ok) throw new HypersdkError("Usage", `${JSON.stringify(text)} is no destination: ${url.message}`, { hint: url.label });
    return all.find((each) => each.url === url.url) ?? { name: text, url: url.url };
  }
  const near = nearestName(text, new Set(all.map(({ name }) => name)));
  throw new HypersdkError("NotFound", `no destination is named "${text}"`, { hint: near ? `did you mean ${near}?` : "hypersdk get destinations lists them" });
}
