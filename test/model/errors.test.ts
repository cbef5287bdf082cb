import { expect, it } from "vitest";
import { fileError } from "../../src/files/local-file-sink.ts";

/** What Node makes of an error of Linux that libuv does not name. */
function unnamed(errno: number): Error {
  const code = `Unknown system error ${errno}`;
  return Object.assign(new Error(`${code}: ${code}, write`), { errno, code, syscall: "write" });
}

it.each([
  [-122, "DestinationFull"],
  [-116, "DestinationUnreachable"],
  [-117, "DestinationUnreachable"],
])("a system error that libuv has no name for, %s, is %s, which is tried again", (errno, code) => {
  expect(fileError("/backups/pack", unnamed(errno))).toMatchObject({ code, isTransient: true, message: expect.not.stringContaining("Unknown") as string });
});
