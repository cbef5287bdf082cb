import { spawn } from "node:child_process";
import { join } from "node:path";
import { expect, it } from "vitest";
import { checkRepository } from "../../src/repository/check.ts";
import { listPoints } from "../../src/repository/points.ts";
import { Repository } from "../../src/repository/repository.ts";
import { contentOf, destinationAt } from "../repository/support.ts";
import { temporaryFolder } from "../support/cli.ts";
import { random } from "../support/disks.ts";

/** Eight for two minutes with `npm run test:concurrency`; CONCURRENCY_SECONDS=3600 for an hour. */
const seconds = Number(process.env["CONCURRENCY_SECONDS"] ?? 12);
const processes = Number(process.env["CONCURRENCY_PROCESSES"] ?? 4);
const seed = Number(process.env["CONCURRENCY_SEED"] ?? 1);

it.each(["open", "sealed"])(
  `${processes} processes export, expire, compact, check and restore on one repository, %s, for ${seconds} s, some of them stopped for a while, their clocks apart`,
  {
    timeout: (seconds + 120) * 2000,
  },
  async (layout) => {
    const root = join(temporaryFolder(), "repository");
    const next = random(seed);
    const workers = Array.from({ length: processes }, (_, i) => {
      const offset = (i % 3) * 600_000 - 600_000;
      const child = spawn(process.execPath, [join(import.meta.dirname, "worker.ts"), root, String(seed * 1000 + i), String(seconds), String(offset), layout], {
        stdio: ["ignore", "pipe", "pipe"],
      });
      let output = "";
      child.stdout.on("data", (text: Buffer) => {
        output += text.toString();
      });
      child.stderr.on("data", (text: Buffer) => {
        output += text.toString();
      });
      return { child, done: new Promise<string>((resolve) => child.on("close", (code) => resolve(`${code} ${output}`))) };
    });
    // stopped in the middle of whatever they do, and let go on seconds later
    const stopping = setInterval(() => {
      const { child } = workers[Math.floor(next() * workers.length)] as (typeof workers)[number];
      child.kill("SIGSTOP");
      setTimeout(() => child.kill("SIGCONT"), 500 + next() * 4000);
    }, 1500);
    const outputs = await Promise.all(workers.map(({ done }) => done));
    clearInterval(stopping);
    for (const output of outputs) expect(output).toMatch(/^0 \{/);
    console.log(outputs.map((output) => output.slice(2).trim()).join("\n"));
    const destination = destinationAt(root, layout === "sealed");
    const repository = (await Repository.open(destination)) as Repository;
    expect(await checkRepository(repository, { readData: 1 })).toMatchObject({ problems: [], brokenPoints: [] });
    for (const { path } of await listPoints(destination)) await contentOf(destination, path);
  },
);
