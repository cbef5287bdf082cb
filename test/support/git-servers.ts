import { execFileSync, spawn } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer } from "node:https";
import { type AddressInfo, createServer as createTcpServer } from "node:net";
import { userInfo } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { temporaryFolder } from "./cli.ts";

export interface GitServer {
  /** Of the folder that is served. */
  readonly url: string;
  close(): Promise<void>;
}

const sshd = "/usr/sbin/sshd";
/** Suites that need it say so when they skip; CI installs it. */
export const hasSshd: boolean = existsSync(sshd);
if (!hasSshd && process.env["CI"]) throw new Error("sshd must be there in CI");

/**
 * OpenSSH's own server on a free port, which lets in `clientKey` alone.
 * @returns `command`, for GIT_SSH_COMMAND, which knows the server's key
 */
export async function serveSsh(): Promise<GitServer & { readonly command: string; readonly stranger: string }> {
  const folder = temporaryFolder();
  chmodSync(folder, 0o700);
  const key = (name: string): string => {
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", join(folder, name)]);
    return readFileSync(join(folder, `${name}.pub`), "utf8");
  };
  const hostKey = key("host");
  writeFileSync(join(folder, "authorized_keys"), key("client"), { mode: 0o600 });
  key("stranger");
  const port = await freePort();
  writeFileSync(join(folder, "known_hosts"), `[127.0.0.1]:${port} ${hostKey}`);
  writeFileSync(
    join(folder, "sshd_config"),
    [
      `Port ${port}`,
      "ListenAddress 127.0.0.1",
      `HostKey ${join(folder, "host")}`,
      `AuthorizedKeysFile ${join(folder, "authorized_keys")}`,
      `PidFile ${join(folder, "pid")}`,
      "StrictModes no",
      "PermitRootLogin prohibit-password",
      "PasswordAuthentication no",
      "KbdInteractiveAuthentication no",
      "UsePAM no",
    ].join("\n"),
  );
  // what sshd wants of its system, where no service ever started it
  if (process.getuid?.() === 0) mkdirSync("/run/sshd", { recursive: true, mode: 0o755 });
  const server = spawn(sshd, ["-D", "-e", "-f", join(folder, "sshd_config")], { stdio: ["ignore", "ignore", "pipe"] });
  let said = "";
  server.stderr.on("data", (text: Buffer) => {
    said += text.toString();
  });
  for (let i = 0; !said.includes("Server listening"); i++) {
    if (i === 100 || server.exitCode !== null) throw new Error(`sshd does not listen: ${said}`);
    await sleep(50);
  }
  const commandOf = (name: string): string =>
    `ssh -F none -i ${join(folder, name)} -o IdentitiesOnly=yes -o UserKnownHostsFile=${join(folder, "known_hosts")} -o BatchMode=yes`;
  return {
    url: `ssh://${userInfo().username}@127.0.0.1:${port}`,
    command: commandOf("client"),
    stranger: commandOf("stranger"),
    close: async () => {
      const ended = new Promise((resolve) => server.once("exit", resolve));
      server.kill();
      await ended;
    },
  };
}

/**
 * Repositories below a folder over https, by git's own http-backend, for whoever knows the password.
 * @returns `authority`, the certificate that signs the server's
 */
export async function serveHttps(root: string, user: string, password: string): Promise<GitServer & { readonly authority: string }> {
  const folder = temporaryFolder();
  const at = (name: string): string => join(folder, name);
  const subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"];
  execFileSync("openssl", ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", at("key"), "-out", at("certificate"), ...subject], {
    stdio: "ignore",
  });
  const expected = `Basic ${Buffer.from(`${user}:${password}`).toString("base64")}`;
  const server = createServer({ key: readFileSync(at("key")), cert: readFileSync(at("certificate")) }, (request, response) => {
    if (request.headers.authorization === expected) return answer(root, request, response);
    response.writeHead(401, { "www-authenticate": 'Basic realm="git"' }).end();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `https://localhost:${(server.address() as AddressInfo).port}`,
    authority: at("certificate"),
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

/** One request, as CGI has it (RFC 3875). */
function answer(root: string, request: IncomingMessage, response: ServerResponse): void {
  const { pathname, search } = new URL(request.url ?? "/", "https://localhost");
  const backend = spawn("git", ["http-backend"], {
    env: {
      PATH: process.env["PATH"],
      GIT_PROJECT_ROOT: root,
      GIT_HTTP_EXPORT_ALL: "1",
      // the folder may be another user's
      GIT_CONFIG_COUNT: "1",
      GIT_CONFIG_KEY_0: "safe.directory",
      GIT_CONFIG_VALUE_0: "*",
      PATH_INFO: pathname,
      QUERY_STRING: search.slice(1),
      REQUEST_METHOD: request.method,
      CONTENT_TYPE: request.headers["content-type"] ?? "",
      HTTP_CONTENT_ENCODING: request.headers["content-encoding"] ?? "",
      GIT_PROTOCOL: request.headers["git-protocol"] as string | undefined,
    },
    stdio: ["pipe", "pipe", "ignore"],
  });
  request.pipe(backend.stdin);
  let head: Buffer = Buffer.alloc(0);
  backend.stdout.on("data", (bytes: Buffer) => {
    if (response.headersSent) return void response.write(bytes);
    head = Buffer.concat([head, bytes]);
    const end = head.indexOf("\r\n\r\n");
    if (end < 0) return;
    const lines = head.toString("latin1", 0, end).split("\r\n");
    const headers = lines.map((line): [string, string] => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]);
    const status = headers.find(([name]) => name === "Status")?.[1];
    response.writeHead(Number.parseInt(status ?? "200", 10), Object.fromEntries(headers.filter(([name]) => name !== "Status")));
    response.write(head.subarray(end + 4));
  });
  backend.on("close", () => response.end());
}

async function freePort(): Promise<number> {
  const server = createTcpServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}
