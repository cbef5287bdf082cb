import { spawn } from "node:child_process";
import { chownSync, existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { onTestFinished } from "vitest";
import { stopped } from "./nbd.ts";

/** As root, libvirt would take the configuration and the machines of the host: it runs as nobody then. */
export const nobody = 65_534;

/** A libvirt of its own, in session mode, until the test has ended. @returns its URI */
export async function startLibvirt(folder: string): Promise<string> {
  const home = join(folder, "libvirt");
  for (const name of ["run", "config", "config/libvirt", "cache"]) mkdirSync(join(home, name), { recursive: true });
  // without virtlogd, which a session does not have here
  writeFileSync(join(home, "config/libvirt/qemu.conf"), 'stdio_handler = "file"\n');
  const isRoot = process.getuid?.() === 0;
  if (isRoot) for (const name of ["", "run", "config", "config/libvirt", "config/libvirt/qemu.conf", "cache"]) chownSync(join(home, name), nobody, nobody);
  const env = {
    PATH: process.env["PATH"],
    HOME: home,
    XDG_RUNTIME_DIR: join(home, "run"),
    XDG_CONFIG_HOME: join(home, "config"),
    XDG_CACHE_HOME: join(home, "cache"),
  };
  const daemon = spawn("libvirtd", [], { env, stdio: "ignore", ...(isRoot ? { uid: nobody, gid: nobody } : {}) });
  onTestFinished(() => stopped(daemon));
  const socket = join(home, "run/libvirt/libvirt-sock");
  for (let i = 0; i < 1200 && !existsSync(socket); i++) await sleep(50);
  return `qemu:///session?socket=${socket}`;
}
