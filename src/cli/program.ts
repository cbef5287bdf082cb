import { Argument, Command, InvalidArgumentError, Option } from "commander";
import { exportFormats, imageFormats, subformats } from "../model/image-formats.ts";
import { exitCodeHelp } from "./exit-codes.ts";
import type { GlobalOptions, Io } from "./io.ts";

/** Commands whose work can be followed by a program. */
const tellsEvents: readonly string[] = ["apply", "run", "watch"];

/** What is answered from all commands. */
const aboutAll: readonly string[] = ["help", "--help", "-h", "__complete"];

/** Runs one command: gets what the person said and gives the exit code. */
type Run = (args: readonly string[], options: never, io: Io) => Promise<number>;

interface Ran {
  exitCode: number;
}

/**
 * Every command with its examples and, where one is asked for, its options: to make those of all takes as long as the rest of a short command.
 * The code behind each is loaded when it runs.
 * @param words what the person said; without them all commands have their options
 */
export function makeProgram(makeIo: (options: GlobalOptions) => Io, ran: Ran, words?: readonly string[]): Command {
  const program = new Command("hypersdk")
    .description("Keeps VM exports as the YAML in a git repository says: plan, apply, restore.")
    .option("--json", "print one JSON document on stdout")
    .option("--events <file>", "write what happens as JSON lines to a file, or - for stderr")
    .option("--quiet", "print only the answer and errors")
    .option("--no-color", "no colours; NO_COLOR does the same")
    .addOption(new Option("--log-level <level>", "diagnostics on stderr").choices(["debug", "info", "warn", "error"]))
    .option("--version", "print the version")
    .configureHelp({ sortSubcommands: false, showGlobalOptions: true })
    .showHelpAfterError(false)
    .addHelpText("after", `\n${exitCodeHelp}\n\nExamples:\n  hypersdk init && hypersdk plan\n  hypersdk apply --auto-approve=safe`);

  const isAboutAll = words === undefined || words.some((word) => aboutAll.includes(word));
  const isAsked = (command: Command): boolean => isAboutAll || words.includes(command.name());
  const define = (parent: Command, spec: string, description: string, examples: readonly [string, string], run: Run): Command => {
    const command = parent
      .command(spec)
      .description(description)
      .addHelpText("after", `\nExamples:\n  ${examples.join("\n  ")}`);
    command.action(async (...given: unknown[]) => {
      const self = given.at(-1) as Command;
      const args = given.slice(0, -2).flat() as string[];
      const options = self.optsWithGlobals() as GlobalOptions;
      if (options.events !== undefined && !tellsEvents.includes(self.name()))
        self.error(`error: ${self.name()} tells no events: --events is for ${tellsEvents.join(" and ")}`);
      ran.exitCode = await run(args, options as never, makeIo(options));
    });
    return isAsked(command) || isAsked(parent) ? command : unasked;
  };
  const add = (spec: string, description: string, examples: readonly [string, string], run: Run): Command => define(program, spec, description, examples, run);
  const group = (name: string, description: string, examples: readonly [string, string]): Command =>
    program
      .command(name)
      .description(description)
      .addHelpText("after", `\nExamples:\n  ${examples.join("\n  ")}`);

  add("init [dir]", "write a first configuration with comments", ["hypersdk init", "hypersdk init infra --ci github"], async ([dir], options, io) =>
    (await import("./commands/init.ts")).init(dir, options, io),
  ).addOption(new Option("--ci <kind>", "also write a pipeline file").choices(["github", "gitlab"]));
  source(
    add(
      "validate",
      "read and check the files; every finding with its place",
      ["hypersdk validate", "hypersdk validate -f infra/schedules.yaml --json"],
      async (_, options, io) => (await import("./commands/validate.ts")).validate(options, io),
    ),
  );
  source(
    add("fmt", "put the files in canonical order and spacing, comments kept", ["hypersdk fmt", "hypersdk fmt --check"], async (_, options, io) =>
      (await import("./commands/fmt.ts")).fmt(options, io),
    ).option("--check", "write nothing; exit 2 where a file would change"),
  );
  narrowing(
    source(
      add("plan", "show what apply would do, and why", ["hypersdk plan", "hypersdk plan --out plan.json --detailed-exitcode"], async (_, options, io) =>
        (await import("./commands/plan.ts")).plan(options, io),
      ),
    ),
  )
    .option("-o, --out <file>", "save the plan for apply")
    .option("--detailed-exitcode", "exit 2 where there is a difference; due exports alone are none")
    .option("--at <time>", "the plan as of another time, such as 2026-12-01T02:00:00Z")
    .option("--offline", "reach no provider and no destination, as in a pull request")
    .option("--summary", "only the last line")
    .option("--markdown <file>", "also write the plan as Markdown");
  add("show <file>", "print a saved plan", ["hypersdk show plan.json", "hypersdk show plan.json --json"], async ([file], options, io) =>
    (await import("./commands/show.ts")).show(file as string, options, io),
  );
  narrowing(
    source(
      add(
        "apply [planfile]",
        "carry out a plan: changes, expiry, exports",
        ["hypersdk apply", "hypersdk apply --auto-approve=safe"],
        async ([file], options, io) => (await import("./commands/apply.ts")).apply(file, options, io),
      ),
    ),
  )
    .addOption(new Option("--auto-approve [how]", "do not ask; `safe` refuses what removes or weakens protection").choices(["all", "safe"]).preset("all"))
    .option("--parallelism <n>", "exports at once", positive)
    .option("--lock-timeout <duration>", "wait this long for the lock, such as 30s")
    .option("--no-exports", "only the configuration")
    .option("--adopt", "take destinations over that belong to another state");
  source(
    add(
      "run <schedule>",
      "export a schedule's VMs now, whatever its fire time and windows say",
      ["hypersdk run nightly", "hypersdk run nightly --vm /datacenter/vm/prod/db-01"],
      async ([name], options, io) => (await import("./commands/run.ts")).run(name as string, options, io),
    ),
  )
    .option("--vm <pattern>", "only these VMs; may be said again", collect)
    .option("--full", "read everything, whatever has changed")
    .option("--parallelism <n>", "exports at once", positive)
    .option("--adopt", "take destinations over that belong to another state");
  source(
    add(
      "watch",
      "follow a branch or a work tree: apply each revision, export when it is due",
      ["hypersdk watch", "hypersdk watch --repo https://git.example.com/infra.git --branch main --interval 30s --listen 127.0.0.1:9464"],
      async (_, options, io) => (await import("./commands/watch.ts")).watch(options, io),
    ),
  )
    .option("--interval <duration>", "ask a repository elsewhere this often; 30s otherwise")
    .option("--once", "one reading and one pass, then its exports, for a timer outside")
    .option("--listen <address>", "serve /healthz, /readyz and /metrics, such as 127.0.0.1:9464")
    .option("--parallelism <n>", "exports at once", positive)
    .option("--lock-timeout <duration>", "wait this long for another watcher to end, such as 30s")
    .option("--adopt", "take destinations over that belong to another state");
  source(
    add(
      "status",
      "one screen: revision, next runs, last results, overdue VMs, stored bytes",
      ["hypersdk status", "hypersdk status --json"],
      async (_, options, io) => (await import("./commands/status.ts")).status(options, io),
    ),
  );
  source(
    add("get", "tables of what there is", ["hypersdk get schedules", "hypersdk get artifacts --output wide"], async ([kind], options, io) =>
      (await import("./commands/get.ts")).get(kind as string, options, io),
    ),
  )
    .addArgument(new Argument("<kind>", "schedules, policies, protections, runs, artifacts, vms, providers or destinations"))
    .addOption(new Option("--output <form>", "wide has more columns").choices(["wide"]));
  narrowing(
    source(
      add(
        "drift",
        "only where the world differs from what was recorded; changes nothing",
        ["hypersdk drift", "hypersdk drift --json"],
        async (_, options, io) => (await import("./commands/plan.ts")).drift(options, io),
      ),
    ),
  );
  source(
    add("history", "the audit log, newest first", ["hypersdk history", "hypersdk history --limit 200 --json"], async (_, options, io) =>
      (await import("./commands/history.ts")).history(options, io),
    ),
  ).option("--limit <n>", "how many rows", positive);
  const audit = group("audit", "the proof of the audit log", ["hypersdk audit verify", "hypersdk audit verify --json"]);
  source(
    define(
      audit,
      "verify",
      "walk the chain of hashes and find the first broken row",
      ["hypersdk audit verify", "hypersdk audit verify --json"],
      async (_, options, io) => (await import("./commands/history.ts")).auditVerify(options, io),
    ),
  );
  source(
    add(
      "suspend <schedule>",
      "run nothing of a schedule until it is resumed",
      ["hypersdk suspend nightly", "hypersdk suspend nightly --json"],
      async ([name], options, io) => (await import("./commands/state.ts")).setSuspended(name as string, true, options, io),
    ),
  );
  source(
    add("resume <schedule>", "let a suspended schedule run again", ["hypersdk resume nightly", "hypersdk resume nightly --json"], async ([name], options, io) =>
      (await import("./commands/state.ts")).setSuspended(name as string, false, options, io),
    ),
  );
  point(
    source(
      add(
        "restore [point]",
        "write the disks of a restore point into new files, and prove their content",
        ["hypersdk restore --vm /datacenter/vm/web --to web.qcow2", "hypersdk restore exports/nightly/web/20261121T020000Z-1a2b3c4d --to restored/"],
        async ([id], options, io) => (await import("./commands/restore.ts")).restore(id, options, io),
      ),
    ),
  )
    .requiredOption("--to <path>", "a new file, an .ova for the VM, or a folder (ending in /) for all disks")
    .option("--disk <n>", "only this disk, 0 is the boot disk", whole)
    .addOption(new Option("--format <format>", "by the name of the file, where this is silent").choices(exportFormats))
    .option("--overwrite", "replace what is there")
    .option("--salvage", "from a damaged repository: zeros for what is lost, and where; ends with 11 then");
  point(
    source(
      add(
        "mount [point]",
        "serve the disks of a restore point read-only over NBD, to a guest, qemu-nbd, nbdcopy or qemu-img",
        ["hypersdk mount --vm /datacenter/vm/web --socket /run/web.sock", "hypersdk mount 1a2b3c4d --listen 127.0.0.1:10809"],
        async ([id], options, io) => (await import("./commands/mount.ts")).mount(id, options, io),
      ),
    ),
  )
    .option("--socket <path>", "a Unix socket to make; one in the temporary folder otherwise")
    .option("--listen <address>", "a port of this machine instead, such as 127.0.0.1:10809");
  point(
    source(
      add(
        "verify [point]",
        "read restore points back and prove them; all, where none is named",
        ["hypersdk verify", "hypersdk verify 1a2b3c4d --level checksum"],
        async ([id], options, io) => (await import("./commands/verify.ts")).verify(id, options, io),
      ),
    ),
  )
    .addOption(
      new Option("--level <level>", "checksum reads the files back; restore rebuilds the disks (default); boot starts the machine in QEMU").choices([
        "checksum",
        "restore",
        "boot",
      ]),
    )
    .option("--marker <text>", "boot: what the guest says on its serial port once it is up; login: otherwise")
    .option("--timeout <duration>", "boot: how long that may take; 5m otherwise");
  const repository = (command: Command): Command =>
    keyed(source(command)).option("--destination <name>", "its name, or its URL; all repositories of the files otherwise");
  const keys = group("key", "the ways into an encrypted repository", ["hypersdk key list", "hypersdk key add --recipient age1…"]);
  repository(
    define(
      keys,
      "list",
      "the slots that hold the repository's key",
      ["hypersdk key list", "hypersdk key list --destination file:///srv/backups --key-file key"],
      async (_, options, io) => (await import("./commands/key.ts")).keyList(options, io),
    ),
  );
  repository(
    define(
      keys,
      "add",
      "let another passphrase or age identity open it",
      ["hypersdk key add --new-key-file new-key", "hypersdk key add --recipient age1…"],
      async (_, options, io) => (await import("./commands/key.ts")).keyAdd(options, io),
    ),
  )
    .option("--new-key-file <file>", "a passphrase, or an age identity")
    .option("--recipient <age1…>", "the recipient of an age identity that somebody else keeps");
  repository(
    define(
      keys,
      "remove <slot>",
      "take a way in away",
      ["hypersdk key remove 1a2b3c4d", "hypersdk key remove 1a2b3c4d --key-file new-key"],
      async ([id], options, io) => (await import("./commands/key.ts")).keyRemove(id as string, options, io),
    ),
  );
  repository(
    add(
      "check",
      "look whether repositories are sound: every object, and with --read-data every byte",
      ["hypersdk check", "hypersdk check --destination file:///srv/backups --read-data=10%"],
      async (_, options, io) => (await import("./commands/repository.ts")).check(options, io),
    ),
  ).option("--read-data [share]", "read the data too; a share of the packs, such as 10%, or all");
  repository(
    add(
      "compact",
      "free what no restore point uses, beside running exports: condemned now, deleted when it runs again after the grace",
      ["hypersdk compact --dry-run", "hypersdk compact --destination backups --grace 0s"],
      async (_, options, io) => (await import("./commands/repository.ts")).compact(options, io),
    ),
  )
    .option("--grace <duration>", "how long what is condemned stays, for restores under way; 1h otherwise")
    .option("--max-unused <share>", "rewrite packs of which more is unused; 20% otherwise")
    .option("--dry-run", "only show");
  repository(
    add(
      "repair",
      "read everything, drop what is damaged, keep what is sound, name the restore points that lose data",
      ["hypersdk repair", "hypersdk repair --destination backups --auto-approve"],
      async (_, options, io) => (await import("./commands/repository.ts")).repair(options, io),
    ),
  ).option("--auto-approve", "do not ask");
  source(
    add(
      "hold <point>",
      "keep a restore point, whatever retention says",
      ['hypersdk hold 1a2b3c4d --reason "before the migration"', "hypersdk hold 1a2b3c4d --reason audit --json"],
      async ([id], options, io) => (await import("./commands/hold.ts")).hold(id as string, options, io),
    ),
  ).requiredOption("--reason <text>", "why, for whoever wonders later");
  source(
    add(
      "unhold <point>",
      "let retention decide about a held restore point again",
      ["hypersdk unhold 1a2b3c4d", "hypersdk unhold 1a2b3c4d --json"],
      async ([id], options, io) => (await import("./commands/hold.ts")).unhold(id as string, options, io),
    ),
  );
  keyed(
    source(
      add(
        "copy <from> <to>",
        "store restore points at another destination too: one, or all good ones of a destination that are not there yet",
        ["hypersdk copy 1a2b3c4d cellar", "hypersdk copy backups file:///mnt/usb --vm /datacenter/vm/web"],
        async ([from, to], options, io) => (await import("./commands/copy.ts")).copy(from as string, to as string, options, io),
      ),
    ),
  )
    .option("--vm <path>", "of a destination: only this VM's")
    .option("--schedule <name>", "of a destination: only this schedule's")
    .option("--adopt", "begin anew where what was copied there is gone, or take over what belongs to another state")
    .option("--unencrypted", "store in the open what is encrypted where it is")
    .addOption(new Option("--layout <layout>", "where nothing was ever stored: image or repository (default)").choices(["image", "repository"]))
    .addOption(new Option("--format <format>", "of images; as they were otherwise").choices(exportFormats));
  source(
    add(
      "expire",
      "remove restore points that retention let go, after their time of grace",
      ["hypersdk expire --dry-run", "hypersdk expire --schedule old --auto-approve"],
      async (_, options, io) => (await import("./commands/expire.ts")).expire(options, io),
    ),
  )
    .option("--schedule <name>", "everything that a schedule kept which is no longer in the files")
    .option("--dry-run", "only show")
    .option("--auto-approve", "do not ask");
  const backing = (): Option =>
    new Option("--allow-backing <folder>", "a folder outside the image's own that may hold its parents (repeatable)").argParser(
      (folder: string, before: string[] | undefined) => [...(before ?? []), folder],
    );
  add(
    "convert <paths...>",
    "convert disk images: IN OUT, IN… FOLDER, or IN… VM.ova; IN may be an .ova, .ovf or .vmx",
    ["hypersdk convert disk.vmdk disk.qcow2 --compress zstd", "hypersdk convert web.ova converted/ --to vhdx"],
    async (paths, options, io) => (await import("./commands/convert.ts")).convert(paths, options, io),
  )
    .addOption(new Option("--from <format>", "what IN is, where its content may lie").choices(imageFormats))
    .addOption(new Option("--to <format>", "what to write; by the name of OUT otherwise").choices(imageFormats))
    .addOption(new Option("--compress [algorithm]", "compress inside the image: qcow2 either way, vmdk with zlib").choices(["zlib", "zstd"]).preset("zlib"))
    .addOption(
      new Option("--subformat <kind>", "vmdk: monolithicSparse, streamOptimized; vhd and vhdx: dynamic, fixed").choices([
        ...new Set(Object.values(subformats).flat()),
      ]),
    )
    .option("--preallocate", "write holes as zeros (raw, fixed vhd and vhdx)")
    .addOption(backing())
    .option("--max-virtual-size <size>", "refuse larger disks, such as 2TiB; none over 64TiB is read")
    .option("--parallelism <n>", "images at once; 2 otherwise", positive)
    .option("--force-share", "read images that another process has locked, such as a running VM's: what is read may be half-written")
    .option("--overwrite", "replace OUT");
  const image = group("image", "look at disk images", ["hypersdk image info disk.vmdk", "hypersdk image compare disk.vmdk disk.qcow2"]);
  const from = (): Option => new Option("--from <format>", "what it is, where its content may lie").choices(imageFormats);
  define(
    image,
    "info <file>",
    "what an image is, or a VM (.ova, .ovf, .vmx)",
    ["hypersdk image info disk.vmdk", "hypersdk image info web.ova --json"],
    async ([file], options, io) => (await import("./commands/image.ts")).info(file as string, options, io),
  )
    .addOption(from())
    .addOption(backing());
  define(
    image,
    "check <file>",
    "whether an image is sound: tables, refcounts, streams",
    ["hypersdk image check disk.qcow2", "hypersdk image check disk.vmdk --json"],
    async ([file], options, io) => (await import("./commands/image.ts")).check(file as string, options, io),
  )
    .addOption(from())
    .addOption(backing());
  define(
    image,
    "map <file>",
    "where an image has data",
    ["hypersdk image map disk.qcow2", "hypersdk image map disk.vmdk --json"],
    async ([file], options, io) => (await import("./commands/image.ts")).map(file as string, options, io),
  )
    .addOption(from())
    .addOption(backing());
  define(
    image,
    "compare <left> <right>",
    "whether two images hold the same disk",
    ["hypersdk image compare disk.vmdk disk.qcow2", "hypersdk image compare a.raw b.qcow2 --from raw --json"],
    async ([left, right], options, io) => (await import("./commands/image.ts")).compare(left as string, right as string, options, io),
  )
    .addOption(new Option("--from <format>", "what LEFT is, where its content may lie").choices(imageFormats))
    .addOption(new Option("--right-from <format>", "what RIGHT is, where its content may lie").choices(imageFormats))
    .option("--strict", "disks of different sizes differ, also when the rest is zeros")
    .addOption(backing());
  const schedule = group("schedule", "look at a schedule's times", ["hypersdk schedule preview nightly", "hypersdk schedule preview nightly --count 30"]);
  source(
    define(
      schedule,
      "preview <name>",
      "the next fire times: when each may start, after what, and why then",
      ["hypersdk schedule preview nightly", "hypersdk schedule preview nightly --from 2026-03-28T00:00:00Z --count 5"],
      async ([name], options, io) => (await import("./commands/schedule.ts")).preview(name as string, options, io),
    ),
  )
    .option("--from <time>", "from this time on; now otherwise")
    .option("--count <n>", "how many; 10 otherwise", positive);
  source(
    add(
      "simulate",
      "what the files would do over a span of time, without doing it",
      ["hypersdk simulate --from 2026-12-01 --to 2026-12-08", "hypersdk simulate --to 2027-01-01 --provider-speed 200MiB/s --json"],
      async (_, options, io) => (await import("./commands/simulate.ts")).simulate(options, io),
    ),
  )
    .option("--from <time>", "now otherwise; from then on, as the state is now")
    .option("--to <time>", "a week later otherwise")
    .option("--provider-speed <speed>", "200MiB/s, or lab=200MiB/s for one provider; otherwise the last run of each VM, or 100MiB/s", collect)
    .option("--schedule <name>", "tell of these alone; all are simulated, as they share what there is", collect)
    .option("--all", "the whole timeline, not only its first 200 runs");
  const state = group("state", "look at the state file and care for it", ["hypersdk state list", "hypersdk state backup state-copy.db"]);
  source(
    define(state, "list", "the addresses that are recorded", ["hypersdk state list", "hypersdk state list --json"], async (_, options, io) =>
      (await import("./commands/state.ts")).list(options, io),
    ),
  );
  source(
    define(
      state,
      "show <address>",
      "what is recorded of one",
      ["hypersdk state show schedule.nightly", "hypersdk state show destination.backups --json"],
      async ([address], options, io) => (await import("./commands/state.ts")).show(address as string, options, io),
    ),
  );
  source(
    define(
      state,
      "backup <file>",
      "a consistent copy, while others go on",
      ["hypersdk state backup state-copy.db", "hypersdk state backup /srv/state-$(date +%F).db"],
      async ([file], options, io) => (await import("./commands/state.ts")).backup(file as string, options, io),
    ),
  );
  source(
    define(
      state,
      "forget <pattern>",
      "drop missing VMs from the protections; their restore points stay",
      ["hypersdk state forget /datacenter/vm/old-01", "hypersdk state forget '/datacenter/vm/lab/*'"],
      async ([pattern], options, io) => (await import("./commands/state.ts")).forget(pattern as string, options, io),
    ),
  );
  source(
    define(
      state,
      "rebuild",
      "find every restore point at a destination again, when the state file is lost",
      ["hypersdk state rebuild --from backups", "hypersdk state rebuild --from file:///srv/backups"],
      async (_, options, io) => (await import("./commands/rebuild.ts")).rebuild(options, io),
    ),
  )
    .option(...keyFile)
    .requiredOption("--from <destination>", "its name in the files, or its URL");
  const lock = group("lock", "who works on the state", ["hypersdk lock show", "hypersdk lock show --json"]);
  source(
    define(
      lock,
      "show",
      "the locks that are held, and whether their holders live",
      ["hypersdk lock show", "hypersdk lock show --json"],
      async (_, options, io) => (await import("./commands/state.ts")).lockShow(options, io),
    ),
  );
  source(
    add(
      "force-unlock <id>",
      "break a lock; the process that held it cannot write any more",
      ["hypersdk lock show", "hypersdk force-unlock 5f0c…"],
      async ([id], options, io) => (await import("./commands/state.ts")).forceUnlock(id as string, options, io),
    ),
  );
  add(
    "completion <shell>",
    "a script for bash, zsh or fish",
    ['eval "$(hypersdk completion bash)"', "hypersdk completion fish > ~/.config/fish/completions/hypersdk.fish"],
    async ([shell], _, io) => {
      io.out((await import("./commands/completion.ts")).completionScript(shell as string));
      return 0;
    },
  );
  add("version", "the version, and what it runs on", ["hypersdk version", "hypersdk version --json"], async (_, __, io) =>
    (await import("./commands/version.ts")).version(io),
  );
  source(
    add("doctor", "look at everything a run needs, and say what is amiss", ["hypersdk doctor", "hypersdk doctor --json"], async (_, options, io) =>
      (await import("./commands/doctor.ts")).doctor(options, io),
    ),
  );
  for (const command of allOf(program))
    command.exitOverride().configureOutput({ writeErr: (text) => void (text.startsWith("Usage:") && process.stderr.write(text)) });
  return program.commands.some(isAsked) ? program : makeProgram(makeIo, ran);
}

/** Stands for a command that nobody asked for: takes options, and has none. */
const unasked: Command = {
  option: () => unasked,
  requiredOption: () => unasked,
  addOption: () => unasked,
  addArgument: () => unasked,
} satisfies Partial<Record<keyof Command, () => Command>> as Partial<Command> as Command;

function* allOf(command: Command): Generator<Command> {
  yield command;
  for (const each of command.commands) yield* allOf(each);
}

/** Where the desired state is. */
function source(command: Command): Command {
  return command
    .option("-f, --file <path...>", "files or folders, instead of the git work tree")
    .option("--repo <url>", "a repository elsewhere: https, ssh or file")
    .option("--branch <name>", "its branch")
    .option("--ref <ref>", "its tag or commit")
    .option("--path <dir>", "the folder in the repository")
    .option("--allow-env <name>", "with --repo: a variable that ${env:…} may name; may be said again", collect)
    .option("--allow-path <dir>", "with --repo: a folder outside the checkout that it may use; may be said again", collect)
    .option("--state <file>", "the state file; HYPERSDK_STATE")
    .option("--verify-signatures <file>", "take only commits that a key of this file has signed: OpenPGP keys, or SSH's allowed signers");
}

function narrowing(command: Command): Command {
  return command
    .option("--target <what>", "only this: a VM pattern or an address such as schedule.nightly; may be said again", collect)
    .option("--exclude <what>", "all but this; may be said again", collect);
}

const keyFile = ["--key-file <file>", "the key of an encrypted repository, where the files do not name it"] as const;

function keyed(command: Command): Command {
  return command.option(...keyFile);
}

function point(command: Command): Command {
  return keyed(command)
    .option("--vm <path>", "the newest good restore point of this VM")
    .option("--at <time>", "the newest at or before this time")
    .option("--schedule <name>", "of this schedule");
}

/** For an option that may be said again: one that takes a list would swallow the arguments behind it. */
function collect(value: string, before: readonly string[] = []): string[] {
  return [...before, value];
}

function positive(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1 || value > 100_000) throw new InvalidArgumentError("it must be a whole number from 1.");
  return value;
}

function whole(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value > 100_000) throw new InvalidArgumentError("it must be a whole number from 0.");
  return value;
}
