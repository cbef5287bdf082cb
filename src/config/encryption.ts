import type { ScheduleSpec } from "../model/desired.ts";
import type { EncryptionRef, SecretRef } from "../model/secret.ts";
import type { Report } from "./report.ts";
import { resolvePath } from "./resolve-path.ts";

/** By destination: all schedules that write to one seal it in the same way. */
export function encryptionsOf(schedules: readonly ScheduleSpec[], folders: ReadonlyMap<string, string>, report: Report): Map<string, EncryptionRef> {
  const first = new Map<string, { readonly schedule: ScheduleSpec; readonly encryption: EncryptionRef | undefined }>();
  const encryptions = new Map<string, EncryptionRef>();
  for (const schedule of schedules) {
    const { destination, origin } = schedule;
    const encryption = schedule.encryption && refOf(schedule.encryption, folders.get(origin.file) ?? "/");
    const known = first.get(destination);
    if (!known) {
      first.set(destination, { schedule, encryption });
      if (encryption) encryptions.set(destination, encryption);
    } else if (JSON.stringify(known.encryption) !== JSON.stringify(encryption)) {
      const other = known.schedule.origin;
      report.error(
        "HSE027",
        origin,
        encryption ? ["encryption"] : [],
        `"${destination}" is encrypted otherwise by schedule ${known.schedule.name}`,
        "schedules that write to one destination share its encryption; defaults can say it once",
        () => ({ file: other.file, line: report.lineOf(other), label: "the other one stands here" }),
      );
    }
  }
  return encryptions;
}

/** Every key of the files once, with all who are recipients of it anywhere: a copy of what is encrypted is sealed with its key. */
export function otherKeys(encryptions: Iterable<EncryptionRef | undefined>): { readonly otherKeys?: readonly EncryptionRef[] } {
  const keys = new Map<string, EncryptionRef>();
  for (const { key, recipients } of [...encryptions].filter((each) => each !== undefined)) {
    if (!key) continue;
    const which = JSON.stringify(key);
    keys.set(which, { key, recipients: [...new Set([...(keys.get(which)?.recipients ?? []), ...recipients])] });
  }
  return keys.size > 0 ? { otherKeys: [...keys.values()] } : {};
}

function refOf({ key, recipients }: NonNullable<ScheduleSpec["encryption"]>, folder: string): EncryptionRef {
  const ref = key === undefined ? undefined : secretRefOf(key, folder);
  return { recipients: [...recipients].sort(), ...(ref ? { key: ref } : {}) };
}

/** What the schema has let through: `${env:NAME}` or `${file:PATH}`, a path being relative to the file. */
function secretRefOf(text: string, folder: string): SecretRef | undefined {
  const [, kind, name = ""] = /^\$\{(env|file):([^}]+)\}$/.exec(text) ?? [];
  if (kind === "env") return { kind, name };
  return kind === "file" ? { kind, path: resolvePath(folder, name) } : undefined;
}
