import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** What a disk prints on the serial port when QEMU boots it; the image itself is not changed. */
export async function boots(image: string, format: string): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), "hypersdk-boot-"));
  const log = join(folder, "serial.log");
  const guest = spawn(
    "qemu-system-x86_64",
    [
      "-accel",
      "tcg",
      "-machine",
      "pc",
      "-m",
      "64",
      "-nodefaults",
      "-display",
      "none",
      "-no-reboot",
      "-serial",
      `file:${log}`,
      "-drive",
      `file=${image},format=${format},if=ide,snapshot=on`,
    ],
    { stdio: "ignore" },
  );
  const timer = setTimeout(() => guest.kill("SIGKILL"), 30_000);
  try {
    // the boot sector switches the machine off
    await new Promise((resolve) => guest.on("close", resolve));
    return readFileSync(log, "latin1");
  } finally {
    clearTimeout(timer);
    rmSync(folder, { recursive: true, force: true });
  }
}
