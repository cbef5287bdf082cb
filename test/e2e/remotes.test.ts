import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { commit, git, hypersdk, type Ran, temporaryFolder, workTree } from "../support/cli.ts";
import { smallest } from "../support/desired.ts";
import { hasSshd, serveHttps, serveSsh } from "../support/git-servers.ts";

const reads = (schedule: string): object => ({ code: 0, stdout: expect.stringContaining(`schedule.${schedule}`) as string });

/** A bare repository `repo.git` in the folder `root`. */
function repository(): { readonly root: string; readonly bare: string; change(text: string): string } {
  const root = temporaryFolder();
  const clone = workTree(smallest);
  const bare = join(root, "repo.git");
  git(root, "init", "--quiet", "--bare", bare);
  const push = (): string => {
    git(clone, "push", "--quiet", "--force", bare, "HEAD:refs/heads/main");
    return git(clone, "rev-parse", "HEAD").trim();
  };
  push();
  return {
    root,
    bare,
    change(text) {
      writeFileSync(join(clone, "infrastructure.yaml"), text);
      commit(clone);
      return push();
    },
  };
}

describe("a repository over https, from git's own http-backend", () => {
  const right = "correct horse battery";

  /** @returns a plan of it, by somebody whose credential helper knows `password`, and who trusts the server's certificate or not */
  async function served(password: string, isTrusted = true) {
    const repo = repository();
    const server = await serveHttps(repo.root, "ops", right);
    onTestFinished(() => server.close());
    const home = temporaryFolder();
    writeFileSync(join(home, "credentials"), `https://ops:${encodeURIComponent(password)}@${server.url.slice("https://".length)}\n`, { mode: 0o600 });
    writeFileSync(join(home, "gitconfig"), `[credential]\n\thelper = store --file ${join(home, "credentials")}\n`);
    const env = { ...(isTrusted ? { GIT_SSL_CAINFO: server.authority } : {}), GIT_CONFIG_GLOBAL: join(home, "gitconfig"), XDG_STATE_HOME: home };
    const plan = (args: readonly string[]): Promise<Ran> =>
      hypersdk(home, ["plan", "--offline", "--allow-path", "/srv/backups", "--repo", `${server.url}/repo.git`, ...args], env);
    return { ...repo, plan };
  }

  it("is read by branch, by tag and by commit, with the password of git's own helper", async () => {
    const { bare, change, plan } = await served(right);
    expect(await plan(["--branch", "main"])).toMatchObject(reads("nightly"));
    const commitId = change(smallest.replace("nightly", "evening"));
    expect(await plan(["--branch", "main"])).toMatchObject(reads("evening"));
    git(bare, "tag", "v1", commitId);
    change(smallest.replace("nightly", "later"));
    expect(await plan(["--ref", "v1"])).toMatchObject(reads("evening"));
    expect(await plan(["--ref", commitId])).toMatchObject(reads("evening"));
    expect(await plan(["--branch", "gone"])).toMatchObject({ code: 10, stdout: "" });
  });

  it("is refused with a wrong password, which nobody is asked for and which shows up nowhere", async () => {
    const { plan } = await served("not the password");
    const { code, stdout, stderr } = await plan([]);
    expect({ code, stdout }).toEqual({ code: 10, stdout: "" });
    expect(stderr).toMatch(/Authentication failed|could not read Username/);
    expect(stderr).not.toMatch(/not the password|not%20the|ops@/);
  });

  it("gets no password when nobody vouches for its certificate", async () => {
    const { plan } = await served(right, false);
    expect(await plan([])).toMatchObject({ code: 10, stderr: expect.stringMatching(/certificate/i) as string });
  });
});

if (!hasSshd) console.log("no repository is read over ssh here: sshd (Debian: openssh-server) is not installed");

describe.skipIf(!hasSshd)("a repository over ssh, from OpenSSH's server", () => {
  async function served() {
    const repo = repository();
    const server = await serveSsh();
    onTestFinished(() => server.close());
    const home = temporaryFolder();
    const plan = (command: string): Promise<Ran> =>
      hypersdk(home, ["plan", "--offline", "--allow-path", "/srv/backups", "--repo", `${server.url}${repo.bare}`, "--branch", "main"], {
        GIT_SSH_COMMAND: command,
        XDG_STATE_HOME: home,
      });
    return { ...repo, ...server, plan };
  }

  it("is read again after its next commit, with the operator's own GIT_SSH_COMMAND", async () => {
    const { command, change, plan } = await served();
    expect(await plan(command)).toMatchObject(reads("nightly"));
    change(smallest.replace("nightly", "evening"));
    expect(await plan(command)).toMatchObject(reads("evening"));
  });

  it("is refused in one line to a key that the server does not know", async () => {
    const { stranger, plan } = await served();
    const { code, stderr } = await plan(stranger);
    expect(code).toBe(10);
    expect(stderr).toMatch(/Permission denied/);
  });
});
