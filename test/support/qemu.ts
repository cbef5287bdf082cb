import { execFileSync } from "node:child_process";

/** Whether a program is there: `question` is one that it answers with exit 0. Suites that need it say so when they skip; CI installs it. */
export function has(program: string, question: string = "--version"): boolean {
  try {
    execFileSync(program, [question], { stdio: "ignore" });
    return true;
  } catch {
    if (process.env["CI"]) throw new Error(`${program} must be there in CI`);
    process.stderr.write(`skipped for lack of ${program}\n`);
    return false;
  }
}

export function qemuImg(...args: string[]): string {
  return execFileSync("qemu-img", args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
}

/** What `qemu-img check` says of an image: throws for an error or a leak. */
export function checkWithQemu(path: string, format: string): void {
  qemuImg("check", "-q", "-f", format, path);
}

/** Throws unless both hold the same disk. */
export function sameForQemu(left: string, leftFormat: string, right: string, rightFormat: string): void {
  qemuImg("compare", "-q", "-f", leftFormat, "-F", rightFormat, left, right);
}
