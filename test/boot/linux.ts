/**
 * Boots a Linux guest from its disk in every format that QEMU takes: `npm run test:boot`. The guest hashes its files again. Under software
 * emulation a boot takes half a minute.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const program = join(import.meta.dirname, "..", "..", "bin", "hypersdk.js");
const kinds = [
  ["raw"],
  ["qcow2"],
  ["qcow2", "--compress", "zlib"],
  ["qcow2", "--compress", "zstd"],
  ["vmdk"],
  ["vmdk", "--subformat", "streamOptimized"],
  ["vhd"],
  ["vhd", "--subformat", "fixed"],
  ["vhdx"],
  ["vhdx", "--subformat", "fixed"],
  ["vdi"],
] as const;

const folder = mkdtempSync(join(tmpdir(), "hypersdk-boot-"));
let [passed, failed] = [0, 0];
try {
  const raw = join(folder, "linux.raw");
  execFileSync(join(import.meta.dirname, "make-linux-disk.sh"), [raw, join(folder, "work")], { stdio: "inherit" });
  for (const [format, ...options] of kinds) {
    const output = join(folder, `disk.${format}`);
    execFileSync(process.execPath, [program, "convert", raw, output, "--from", "raw", "--quiet", "--overwrite", ...options]);
    const isUp = boot(output, format === "vhd" ? "vpc" : format).includes("HYPERSDK-BOOT linux, every file is whole");
    process.stdout.write(`${isUp ? "boots" : "DOES NOT BOOT"}: ${[format, ...options].join(" ")}\n`);
    if (isUp) passed++;
    else failed++;
    rmSync(output);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
process.stdout.write(`${passed} passed, ${failed} failed\n`);
if (failed > 0) process.exitCode = 1;

function boot(image: string, format: string): string {
  const log = join(folder, "serial.log");
  const machine = ["-accel", "tcg", "-machine", "pc", "-cpu", "max", "-m", "256", "-nodefaults", "-display", "none", "-no-reboot", "-serial", `file:${log}`];
  const disk = ["-drive", `file=${image},format=${format},if=none,id=d,snapshot=on`, "-device", "nvme,drive=d,serial=hypersdk,bootindex=0"];
  spawnSync("qemu-system-x86_64", [...machine, ...disk], { stdio: "ignore", timeout: 180_000, killSignal: "SIGKILL" });
  return readFileSync(log, "latin1");
}
