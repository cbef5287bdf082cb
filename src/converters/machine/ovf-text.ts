/** What an OVF descriptor says of a VM. */
export interface OvfMachine {
  readonly name: string;
  readonly guestType?: string;
  readonly firmware?: "bios" | "efi";
  readonly cpus: number;
  readonly memoryBytes: number;
  /** In boot order. */
  readonly disks: readonly { readonly fileName: string; readonly fileBytes: number; readonly virtualBytes: number }[];
}

/**
 * An OVF 1.1 descriptor (DSP0243 1.1.1): the version that every tool imports (docs/decisions/007). One SCSI controller, the disks on it in
 * boot order.
 */
export function ovfText({ name, guestType, firmware, cpus, memoryBytes, disks }: OvfMachine): string {
  const item = (lines: readonly string[]): string => `      <Item>\n${lines.map((line) => `        ${line}\n`).join("")}      </Item>\n`;
  const rasd = (element: string, value: string | number): string => `<rasd:${element}>${typeof value === "string" ? escaped(value) : value}</rasd:${element}>`;
  return `<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vmw="http://www.vmware.com/schema/ovf" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
  <References>
${disks.map(({ fileName, fileBytes }, i) => `    <File ovf:id="file${i}" ovf:href="${escaped(fileName)}" ovf:size="${fileBytes}"/>\n`).join("")}  </References>
  <DiskSection>
    <Info>Virtual disks</Info>
${disks.map(({ virtualBytes }, i) => `    <Disk ovf:diskId="disk${i}" ovf:fileRef="file${i}" ovf:capacity="${virtualBytes}" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>\n`).join("")}  </DiskSection>
  <VirtualSystem ovf:id="${escaped(name.replace(/[^A-Za-z0-9_.-]/g, "_") || "vm")}">
    <Info>A virtual machine</Info>
    <Name>${escaped(name)}</Name>
    <OperatingSystemSection ovf:id="1"${guestType ? ` vmw:osType="${escaped(guestType)}"` : ""}>
      <Info>The guest operating system</Info>${guestType ? `\n      <Description>${escaped(guestType)}</Description>` : ""}
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Virtual hardware</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemType>vmx-10</vssd:VirtualSystemType>
      </System>
${item([rasd("AllocationUnits", "hertz * 10^6"), rasd("Description", "Number of virtual CPUs"), rasd("ElementName", `${cpus} virtual CPU(s)`), rasd("InstanceID", 1), rasd("ResourceType", 3), rasd("VirtualQuantity", cpus)])}${item(
  [
    rasd("AllocationUnits", "byte * 2^20"),
    rasd("Description", "Memory size"),
    rasd("ElementName", `${Math.ceil(memoryBytes / 2 ** 20)} MiB of memory`),
    rasd("InstanceID", 2),
    rasd("ResourceType", 4),
    rasd("VirtualQuantity", Math.ceil(memoryBytes / 2 ** 20)),
  ],
)}${item([rasd("Address", 0), rasd("Description", "SCSI controller"), rasd("ElementName", "SCSI controller 0"), rasd("InstanceID", 3), rasd("ResourceSubType", "lsilogic"), rasd("ResourceType", 6)])}${disks
  .map((_, i) =>
    item([
      // unit 7 is the controller's own
      rasd("AddressOnParent", i < 7 ? i : i + 1),
      rasd("ElementName", `Hard disk ${i + 1}`),
      rasd("HostResource", `ovf:/disk/disk${i}`),
      rasd("InstanceID", 4 + i),
      rasd("Parent", 3),
      rasd("ResourceType", 17),
    ]),
  )
  .join("")}${firmware ? `      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="${firmware}"/>\n` : ""}    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
`;
}

function escaped(text: string): string {
  // what XML 1.0 cannot hold at all is left out
  return text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "").replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}
