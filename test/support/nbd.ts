import { type ChildProcess, spawn } from "node:child_process";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { onTestFinished } from "vitest";
import { temporaryFolder } from "./cli.ts";

/** Serves an image with qemu-nbd until the test has ended. @returns the socket */
export async function qemuNbd(image: string, format: string, more: readonly string[] = []): Promise<string> {
  const socket = join(temporaryFolder(), "nbd.sock");
  const server = spawn("qemu-nbd", ["-r", "-t", "-e", "8", "-f", format, "-k", socket, ...more, image], { stdio: "ignore" });
  onTestFinished(() => stopped(server));
  // the socket has its name before anybody listens there
  for (let i = 0; i < 1200 && !(await accepts(socket)); i++) await sleep(25);
  return socket;
}

function accepts(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ path });
    socket.once("error", () => resolve(false));
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
  });
}

export async function stopped(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGKILL");
  await gone;
}
