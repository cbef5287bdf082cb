import { readFileSync, statSync } from "node:fs";
import { basename } from "node:path";
import { HypersdkError } from "../../model/errors.ts";
import { lazily } from "../../model/lazily.ts";
import { readSlice } from "./read-slice.ts";

const xml = lazily<typeof import("fast-xml-parser")>("fast-xml-parser");

/** What a `.vmx` or `.ovf` says of its VM. */
export interface VmDescriptor {
  readonly file: string;
  readonly name?: string;
  readonly guestType?: string;
  readonly firmware?: "bios" | "efi";
  readonly cpus?: number;
  readonly memoryBytes?: number;
  /** File names, boot disk first. */
  readonly disks: readonly string[];
}

const maxBytes = 4 * 2 ** 20;

/** Reads a descriptor file, or a member of an archive. */
export function readVmDescriptor(path: string, member?: { readonly name: string; readonly offset: number; readonly length: number }): VmDescriptor {
  const file = member?.name ?? basename(path);
  const size = member?.length ?? statSync(path).size;
  if (size > maxBytes) throw new HypersdkError("ImageDamaged", `${file} has ${size} bytes, more than ${maxBytes}`);
  const text = (member ? readSlice(path, member.offset, member.length) : readFileSync(path)).toString("utf8");
  return file.toLowerCase().endsWith(".vmx") ? readVmx(file, text) : readOvf(file, text);
}

/** `key = "value"` lines. Disks are ordered by `bios.hddOrder`, then SCSI, SATA, NVMe, IDE by bus and unit. */
function readVmx(file: string, text: string): VmDescriptor {
  const values = new Map<string, string>();
  for (const line of text.split(/\r?\n/)) {
    const pair = /^\s*([A-Za-z0-9_.:]+)\s*=\s*"([^"]*)"/.exec(line);
    if (pair) values.set((pair[1] as string).toLowerCase(), pair[2] as string);
  }
  const order = (values.get("bios.hddorder") ?? "").split(",").map((slot) => slot.trim().toLowerCase());
  const buses = ["scsi", "sata", "nvme", "ide"];
  const disks = [...values.entries()]
    .flatMap(([key, fileName]) => {
      const slot = /^((scsi|sata|nvme|ide)(\d+):(\d+))\.filename$/.exec(key);
      if (
        !slot ||
        values.get(`${slot[1]}.present`)?.toLowerCase() === "false" ||
        /cdrom|atapi|^(auto detect|emptyBackupString)?$/i.test(values.get(`${slot[1]}.devicetype`) ?? "disk") ||
        /\.(iso|flp)$/i.test(fileName)
      )
        return [];
      const hdd = order.indexOf(slot[1] as string);
      return [{ fileName, rank: [hdd < 0 ? order.length : hdd, buses.indexOf(slot[2] as string), Number(slot[3]), Number(slot[4])] }];
    })
    .sort((a, b) => a.rank.map((value, i) => value - (b.rank[i] ?? 0)).find((difference) => difference !== 0) ?? 0);
  const firmware = values.get("firmware")?.toLowerCase();
  return descriptor(file, {
    name: values.get("displayname"),
    guestType: values.get("guestos"),
    firmware: firmware === "efi" ? "efi" : "bios",
    cpus: Number(values.get("numvcpus") ?? 1),
    memoryBytes: values.has("memsize") ? Number(values.get("memsize")) * 2 ** 20 : undefined,
    disks: disks.map(({ fileName }) => fileName),
  });
}

type Xml = Readonly<Record<string, unknown>>;

/** OVF 1.x and 2.0: the hardware items say the order, the disk section the reference, the references the file. */
function readOvf(file: string, text: string): VmDescriptor {
  let envelope: Xml;
  try {
    // no entities are expanded and no external ones are known: a hostile file stays small
    const parser = new (xml().XMLParser)({
      ignoreAttributes: false,
      removeNSPrefix: true,
      attributeNamePrefix: "@",
      processEntities: false,
      parseTagValue: false,
    });
    envelope = ((parser.parse(text) as Xml)["Envelope"] ?? {}) as Xml;
  } catch (error) {
    throw new HypersdkError("ImageDamaged", `${file} is no XML`, { cause: error });
  }
  const files = new Map(listOf(child(envelope, "References"), "File").map((each) => [attribute(each, "id"), attribute(each, "href")]));
  const disks = new Map(listOf(child(envelope, "DiskSection"), "Disk").map((each) => [attribute(each, "diskId"), files.get(attribute(each, "fileRef"))]));
  const system = listOf(envelope, "VirtualSystem")[0] ?? listOf(child(envelope, "VirtualSystemCollection"), "VirtualSystem")[0] ?? {};
  const hardware = child(system, "VirtualHardwareSection");
  const items = [...listOf(hardware, "Item"), ...listOf(hardware, "StorageItem")];
  const number = (type: string): number | undefined => {
    const value = items.find((item) => textOf(item["ResourceType"]) === type)?.["VirtualQuantity"];
    return value === undefined ? undefined : Number(textOf(value));
  };
  const ordered = items
    .filter((item) => textOf(item["ResourceType"]) === "17" && item["HostResource"] !== undefined)
    .sort((a, b) => order(a, items) - order(b, items))
    .flatMap((item) => disks.get(textOf(item["HostResource"]).replace(/^.*\//, "")) ?? []);
  const guest = child(system, "OperatingSystemSection");
  const config = listOf(hardware, "Config").find((each) => attribute(each, "key") === "firmware");
  return descriptor(file, {
    name: textOf(system["Name"]) || attribute(system, "id") || undefined,
    guestType: attribute(guest, "osType") || textOf(guest["Description"]) || undefined,
    firmware: config && attribute(config, "value") === "efi" ? "efi" : "bios",
    cpus: number("3"),
    memoryBytes: memoryOf(items, number("4")),
    disks: ordered.length > 0 ? ordered : [...disks.values()].flatMap((name) => name ?? []),
  });
}

/** The controller's address first, then the disk's on it. */
function order(item: Xml, items: readonly Xml[]): number {
  const parent = items.find((each) => textOf(each["InstanceID"]) === textOf(item["Parent"]));
  return Number(textOf(parent?.["Address"]) || 0) * 1000 + Number(textOf(item["AddressOnParent"]) || 0);
}

function memoryOf(items: readonly Xml[], quantity: number | undefined): number | undefined {
  if (quantity === undefined) return undefined;
  const units = textOf(items.find((item) => textOf(item["ResourceType"]) === "4")?.["AllocationUnits"]);
  const power = /2\^(\d+)/.exec(units)?.[1];
  return quantity * 2 ** (power ? Number(power) : /giga/i.test(units) ? 30 : /kilo/i.test(units) ? 10 : 20);
}

function descriptor(
  file: string,
  fields: {
    name: string | undefined;
    guestType: string | undefined;
    firmware: "bios" | "efi";
    cpus: number | undefined;
    memoryBytes: number | undefined;
    disks: readonly string[];
  },
): VmDescriptor {
  const { name, guestType, firmware, cpus, memoryBytes, disks } = fields;
  const positive = (value: number | undefined): value is number => value !== undefined && Number.isSafeInteger(value) && value > 0;
  return {
    file,
    firmware,
    disks,
    ...(name ? { name } : {}),
    ...(guestType ? { guestType } : {}),
    ...(positive(cpus) ? { cpus } : {}),
    ...(positive(memoryBytes) ? { memoryBytes } : {}),
  };
}

const entities: Readonly<Record<string, string>> = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'" };

/** The five entities of XML itself and characters by number; the parser is told to expand none, so that a hostile file stays small. */
function decoded(text: string): string {
  return text.replace(/&(?:(amp|lt|gt|quot|apos)|#(\d{1,7})|#x([0-9a-fA-F]{1,6}));/g, (whole, name?: string, decimal?: string, hex?: string) => {
    if (name) return entities[name] as string;
    const code = decimal ? Number(decimal) : Number.parseInt(hex as string, 16);
    return code <= 0x10ffff ? String.fromCodePoint(code) : whole;
  });
}

function child(xml: Xml, name: string): Xml {
  return listOf(xml, name)[0] ?? {};
}

function listOf(xml: Xml, name: string): Xml[] {
  const value = xml[name];
  return (Array.isArray(value) ? value : value === undefined ? [] : [value]).filter((each): each is Xml => typeof each === "object" && each !== null);
}

function attribute(xml: Xml, name: string): string {
  return textOf(xml[`@${name}`]);
}

function textOf(value: unknown): string {
  if (typeof value === "string") return decoded(value);
  if (typeof value === "number") return String(value);
  if (typeof value === "object" && value !== null && "#text" in value) return String(value["#text"]);
  return "";
}
