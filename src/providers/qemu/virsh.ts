import { execFile } from "node:child_process";
import { HypersdkError } from "../../model/errors.ts";
import { lazily } from "../../model/lazily.ts";

const xml = lazily<typeof import("fast-xml-parser")>("fast-xml-parser");

const answerMs = 60_000;
const maxAnswerBytes = 16 * 2 ** 20;

/**
 * libvirt, through virsh: it is there wherever libvirt is, and keeps its words from version to version, which what goes over libvirt's socket
 * does not promise.
 * @throws ProviderUnreachable when libvirt cannot be asked, Failed when it refuses
 */
export function virsh(uri: string, ...args: readonly string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const env = { ...process.env, LC_ALL: "C" };
    execFile("virsh", ["-q", "-c", uri, ...args], { timeout: answerMs, maxBuffer: maxAnswerBytes, killSignal: "SIGKILL", env }, (error, stdout, stderr) => {
      if (!error) return resolve(stdout);
      const said = stderr
        .trim()
        .split("\n")
        .filter((line) => line.startsWith("error:"))
        .at(0)
        ?.slice("error:".length)
        .trim();
      const isUnreachable = error.code === "ENOENT" || error.killed || /failed to connect|connection reset|end of file/i.test(stderr);
      const why = error.code === "ENOENT" ? "virsh is not installed" : error.killed ? "it says nothing" : (said ?? error.message);
      reject(new HypersdkError(isUnreachable ? "ProviderUnreachable" : "Failed", `libvirt at ${uri}: ${args[0] ?? ""}: ${why}`, { cause: error }));
    });
  });
}

/** The names or ids that a list command prints, one a line. */
export async function lines(uri: string, ...args: readonly string[]): Promise<string[]> {
  return (await virsh(uri, ...args))
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "");
}

/** An element of libvirt's XML: attributes are named with an `@`. */
export interface Element {
  readonly [name: string]: unknown;
}

/** The document below its root. `disk` and `disks.disk` are lists, however many there are. */
export function parseXml(text: string, root: string): Element {
  const parser = new (xml().XMLParser)({ ignoreAttributes: false, attributeNamePrefix: "@", parseTagValue: false, isArray: (name) => name === "disk" });
  try {
    return elementOf((parser.parse(text) as Element)[root]);
  } catch (error) {
    throw new HypersdkError("ProviderUnreachable", `libvirt describes a ${root} in no XML that can be read`, { cause: error });
  }
}

export function elementOf(value: unknown): Element {
  return typeof value === "object" && value !== null ? (value as Element) : {};
}

export function elementsOf(value: unknown): Element[] {
  return (Array.isArray(value) ? value : []).map(elementOf);
}

export function textOf(value: unknown): string | undefined {
  const text = typeof value === "object" && value !== null ? (value as Element)["#text"] : value;
  return typeof text === "string" && text !== "" ? text : undefined;
}

/** Text as it stands in XML. */
export function escaped(text: string): string {
  return text.replace(/[&<>'"]/g, (char) => `&#${char.charCodeAt(0)};`);
}
