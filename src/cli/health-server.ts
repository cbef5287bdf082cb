import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { WatchStatus } from "../engine/watch.ts";
import { errnoText, HypersdkError } from "../model/errors.ts";
import type { WatchMetrics } from "../ui/metrics.ts";

/** A loop that has not come round for so long hangs. */
const staleMs = 300_000;

export interface HealthServer {
  /** Where it listens, such as `127.0.0.1:9464`. */
  readonly address: string;
  close(): Promise<void>;
}

/**
 * `/healthz`: 200 while the watcher's loop goes round. `/readyz`: 200 once a revision is applied, the source can be read and passes work;
 * both with the reasons as JSON. `/metrics`: for Prometheus. It tells names of schedules and VMs, so it listens where the operator says, by
 * default on this machine alone.
 * @throws Usage for an address that is none, Failed for one that is taken
 */
export async function serveHealth(address: string, metrics: WatchMetrics, statusOf: () => WatchStatus | undefined, nowMs: () => number): Promise<HealthServer> {
  const { host, port } = parseAddress(address);
  const server = createServer({ requestTimeout: 10_000, headersTimeout: 5_000, maxHeaderSize: 8192 }, (request, response) => {
    answer(request, response, metrics, statusOf(), nowMs()).catch(() => response.destroy());
  });
  // one request a connection, and nobody may take his time: a scrape is small
  server.maxRequestsPerSocket = 1;
  server.setTimeout(10_000, (socket) => socket.destroy());
  server.maxConnections = 64;
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error) => reject(new HypersdkError("Failed", `cannot listen on ${address}: ${errnoText(error)}`, { cause: error })));
    server.listen(port, host, resolve);
  });
  const bound = server.address();
  return {
    address: typeof bound === "object" && bound ? `${bound.family === "IPv6" ? `[${bound.address}]` : bound.address}:${bound.port}` : address,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  metrics: WatchMetrics,
  status: WatchStatus | undefined,
  nowMs: number,
): Promise<void> {
  const path = (request.url ?? "").split("?")[0];
  const say = (code: number, type: string, body: string): void =>
    void response.writeHead(code, { "content-type": type, "cache-control": "no-store", connection: "close" }).end(body);
  const json = (isWell: boolean, body: object): void => say(isWell ? 200 : 503, "application/json", `${JSON.stringify(body)}\n`);
  if (request.method !== "GET" && request.method !== "HEAD") return say(405, "text/plain", "GET\n");
  switch (path) {
    case "/metrics":
      return say(200, metrics.registry.contentType, await metrics.text(nowMs));
    case "/healthz": {
      const ageMs = status ? nowMs - Date.parse(status.at) : 0;
      return json(ageMs < staleMs, { alive: ageMs < staleMs, lastRoundSecondsAgo: Math.round(ageMs / 1000) });
    }
    case "/readyz": {
      const problems = [
        ...(status?.lastPassAt ? [] : ["nothing is applied yet"]),
        ...(status?.sourceProblem ? [`since ${status.sourceProblem.since} the source cannot be read: ${status.sourceProblem.reason}`] : []),
        ...(status?.passProblem ? [status.passProblem.reason] : []),
        ...(status?.unknown ?? []),
      ];
      const { applied = null, rejected = null } = status ?? {};
      return json(problems.length === 0, { ready: problems.length === 0, problems, revision: applied, rejected });
    }
    default:
      return say(404, "text/plain", "/healthz, /readyz and /metrics are here\n");
  }
}

/** @throws Usage */
export function parseAddress(address: string): { readonly host: string; readonly port: number } {
  const match = /^(?:(?:\[([0-9a-fA-F:]+)\]|([A-Za-z0-9.-]+)):)?(\d{1,5})$/.exec(address);
  const port = Number(match?.[3]);
  if (!match || port > 65_535) throw new HypersdkError("Usage", `--listen ${JSON.stringify(address)} is no address`, { hint: "such as 127.0.0.1:9464" });
  return { host: match[1] ?? match[2] ?? "127.0.0.1", port };
}
