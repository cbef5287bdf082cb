import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { errnoText, HypersdkError } from "../model/errors.ts";
import { gitIn } from "./git.ts";

const execute = promisify(execFile);

/**
 * Has git itself verify the signature of a commit, by the keys of `keyring` alone: an OpenPGP keyring (armored or not), or a file of
 * allowed signers as `ssh-keygen` takes it. Neither the user's own keyring nor the repository's settings have a say.
 * @throws SignatureRefused when the commit is not signed, or by nobody who is allowed to
 */
export async function verifyCommit(folder: string, commit: string, keyring: string, env: NodeJS.ProcessEnv): Promise<void> {
  const path = resolve(keyring);
  let content: Buffer;
  try {
    content = readFileSync(path);
  } catch (error) {
    throw new HypersdkError("SourceUnavailable", `cannot read the keyring ${keyring}: ${errnoText(error)}`, { cause: error });
  }
  let home: string;
  try {
    home = mkdtempSync(join(tmpdir(), "hypersdk-keys-"));
  } catch (error) {
    throw new HypersdkError("SourceUnavailable", `cannot make a folder for the keys in ${tmpdir()}: ${errnoText(error)}`, { cause: error });
  }
  try {
    if (isOpenPgp(content)) await importKeys(home, path);
    // of a kind that the file is not for, nothing is known, and nothing passes
    const config = [
      `gpg.ssh.allowedSignersFile=${isOpenPgp(content) ? "/dev/null" : path}`,
      "gpg.ssh.revocationFile=/dev/null",
      "gpg.program=gpg",
      "gpg.ssh.program=ssh-keygen",
      "gpg.x509.program=false",
    ];
    await gitIn(folder, env, { config, env: { GNUPGHOME: home } }).raw(["verify-commit", "--raw", commit]);
  } catch (error) {
    if (error instanceof HypersdkError) throw error;
    throw new HypersdkError("SignatureRefused", `commit ${commit.slice(0, 12)} is not signed by a key of ${keyring}`, {
      cause: error,
      hint: "have it signed by one who may, or add the key to the keyring",
    });
  } finally {
    // gpg may have left an agent behind
    await execute("gpgconf", ["--homedir", home, "--kill", "all"]).catch(() => {});
    rmSync(home, { recursive: true, force: true });
  }
}

function isOpenPgp(content: Buffer): boolean {
  // armored, or the first byte of a packet, which has its top bit set as no text has
  return content.includes("-----BEGIN PGP PUBLIC KEY BLOCK-----") || ((content[0] ?? 0) & 0x80) !== 0;
}

async function importKeys(home: string, path: string): Promise<void> {
  try {
    await execute("gpg", ["--homedir", home, "--batch", "--quiet", "--no-autostart", "--import", path]);
  } catch (error) {
    throw new HypersdkError("SourceUnavailable", `gpg cannot read the keyring ${path}`, { cause: error, hint: "it takes what `gpg --export` writes" });
  }
}
