import { randomBytes } from "node:crypto";

/** Where a descriptor stands inside a sparse file: one sector behind the header, ten KiB. */
export const descriptorSector = 1;
export const descriptorSectors = 20;

/** The descriptor that a sparse file holds. Some readers open the extent by the name in it, so it should be the file's own. */
export function embeddedDescriptor(createType: "streamOptimized" | "monolithicSparse", sizeBytes: number, fileName: string): Buffer {
  const sectors = sizeBytes / 512;
  const cid = randomBytes(4);
  // a child whose parent has this CID has no parent
  if (cid.readUInt32BE(0) === 0xffffffff) cid[0] = 0;
  const text = `# Disk DescriptorFile
version=1
CID=${cid.toString("hex")}
parentCID=ffffffff
createType="${createType}"

# Extent description
RW ${sectors} SPARSE "${fileName.replace(/["\r\n\0]/g, "_")}"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "${Math.min(65_535, Math.max(1, Math.floor(sectors / (255 * 63))))}"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.adapterType = "lsilogic"
`;
  const bytes = Buffer.alloc(descriptorSectors * 512);
  // a name of a few KiB would not fit; it is only a hint
  bytes.write(Buffer.byteLength(text) < bytes.length ? text : text.replace(/SPARSE ".*"/, 'SPARSE "disk.vmdk"'), 0, "utf8");
  return bytes;
}
