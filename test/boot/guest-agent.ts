/**
 * Exports a running Linux guest through QEMU's own guest agent: `npm run test:guest`. The guest writes into an ext4 file system all the
 * time. Restored, that must be as an unmounted one is: nothing left in its journal, nothing for e2fsck to mend, in each of five
 * increments; without the agent it is as after a power cut. Under software emulation it takes some minutes.
 */
import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const program = join(import.meta.dirname, "..", "..", "bin", "hypersdk.js");
const rounds = 5;

const folder = mkdtempSync(join(tmpdir(), "hypersdk-guest-"));
let [passed, failed] = [0, 0];
const check = (what: string, holds: boolean): void => {
  process.stdout.write(`${holds ? "holds" : "DOES NOT HOLD"}: ${what}\n`);
  if (holds) passed++;
  else failed++;
};

try {
  const parts = join(folder, "parts");
  execFileSync(join(import.meta.dirname, "make-agent-guest.sh"), [parts], { stdio: "inherit" });
  for (const hasAgent of [true, false]) await guest(parts, hasAgent);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
process.stdout.write(`${passed} passed, ${failed} failed\n`);
if (failed > 0) process.exitCode = 1;

async function guest(parts: string, hasAgent: boolean): Promise<void> {
  const home = join(folder, hasAgent ? "agent" : "none");
  mkdirSync(join(home, "run"), { recursive: true });
  const [disk, log, agent] = [join(home, "disk.raw"), join(home, "serial.log"), join(home, "run", "web.qga")];
  execFileSync("cp", [join(parts, "disk.raw"), disk]);
  writeFileSync(
    join(home, "infrastructure.yaml"),
    `version: v2\nproviders: [{name: lab, type: qemu, sockets: ./run}]\nschedules:\n  - {name: nightly, cron: "0 2 * * *", vms: ["/datacenter/vm/*"], destination: "file:./backups", incremental: true}\n`,
  );
  const machine = spawn(
    "qemu-system-x86_64",
    [
      ...["-accel", "tcg", "-machine", "pc", "-cpu", "max", "-m", "256", "-nodefaults", "-display", "none", "-no-reboot"],
      ...["-kernel", join(parts, "vmlinuz"), "-initrd", join(parts, "initrd")],
      ...["-append", `console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable${hasAgent ? "" : " agent=no"}`],
      ...["-serial", `file:${log}`, "-chardev", `socket,id=agent,path=${agent},server=on,wait=off`, "-serial", "chardev:agent"],
      ...["-blockdev", `driver=file,filename=${disk},node-name=f0`, "-blockdev", "driver=raw,file=f0,node-name=disk0"],
      ...["-device", "nvme,drive=disk0,serial=hypersdk"],
      ...["-qmp", `unix:${join(home, "run", "web.qmp")},server=on,wait=off`],
    ],
    { stdio: ["ignore", "ignore", "inherit"] },
  );
  const wrote = (): number => Number([...said().matchAll(/HYPERSDK-GUEST wrote (\d+)/g)].at(-1)?.[1] ?? 0);
  const said = (): string => (existsSync(log) ? readFileSync(log, "latin1") : "");
  const writesOn = async (): Promise<boolean> => {
    const before = wrote();
    for (let i = 0; i < 1200; i++) {
      if (wrote() > before) return true;
      await sleep(100);
    }
    return false;
  };
  try {
    if (!(await writesOn())) throw new Error(`the guest writes nothing: ${said().slice(-2000)}`);
    hypersdk(home, "apply", "-f", "infrastructure.yaml", "--auto-approve");
    for (let round = 1; round <= rounds; round++) {
      const { completed } = JSON.parse(hypersdk(home, "run", "nightly", "-f", "infrastructure.yaml", "--json")) as { completed: number };
      const named = `round ${round}, ${hasAgent ? "with" : "without"} an agent`;
      check(`${named}: exported, and the guest writes on`, completed === 1 && (await writesOn()));
      const restored = join(home, `restored-${round}.raw`);
      hypersdk(home, "restore", "-f", "infrastructure.yaml", "--vm", "/datacenter/vm/web", "--to", restored);
      const { consistency } = newestManifest(home);
      const needsRecovery = execFileSync("dumpe2fs", ["-h", restored], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).includes("needs_recovery");
      if (hasAgent) {
        check(`${named}: the manifest says so`, consistency === "file systems");
        check(`${named}: nothing is left in the journal`, !needsRecovery);
        check(`${named}: e2fsck finds nothing to mend`, isClean(restored));
      } else {
        check(`${named}: the manifest says so`, consistency === "crash");
        check(`${named}: the journal has work to do, as after a power cut`, needsRecovery);
      }
    }
  } finally {
    const gone = new Promise((resolve) => machine.once("exit", resolve));
    machine.kill("SIGKILL");
    await gone;
  }
}

function hypersdk(cwd: string, ...args: string[]): string {
  return execFileSync(process.execPath, [program, ...args], { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });
}

function isClean(image: string): boolean {
  try {
    execFileSync("e2fsck", ["-fn", image], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

function newestManifest(home: string): { readonly consistency?: string } {
  const { items } = JSON.parse(hypersdk(home, "get", "artifacts", "-f", "infrastructure.yaml", "--json")) as {
    items: { instant: string; manifest: string }[];
  };
  const newest = items.sort((a, b) => (a.instant < b.instant ? 1 : -1))[0];
  const manifest = JSON.parse(readFileSync(join(home, "backups", newest?.manifest ?? ""), "utf8")) as { source: { consistency?: string } };
  return manifest.source;
}
