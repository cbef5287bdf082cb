/** Disk formats that are read and written. */
export const imageFormats = ["qcow2", "raw", "vmdk", "vhd", "vhdx", "vdi"] as const;
export type ImageFormat = (typeof imageFormats)[number];

/** What an export can be stored as: each disk as an image, or the VM as one package. */
export const exportFormats: readonly ["qcow2", "raw", "vmdk", "vhd", "vhdx", "vdi", "ova"] = [...imageFormats, "ova"];
export type ExportFormat = (typeof exportFormats)[number];

/** The kinds of each format that are written, the usual one first. */
export const subformats: Readonly<Record<ImageFormat, readonly string[]>> = {
  qcow2: ["v3"],
  raw: ["sparse"],
  vmdk: ["monolithicSparse", "streamOptimized"],
  vhd: ["dynamic", "fixed"],
  vhdx: ["dynamic", "fixed"],
  vdi: ["dynamic"],
};

export type ImageCompression = "none" | "zlib" | "zstd";

/** Which compressions a format has of its own, the usual one first. The disks of an OVA are stream-optimized VMDKs. */
export const compressionsOf: Readonly<Record<ExportFormat, readonly ImageCompression[]>> = {
  qcow2: ["none", "zlib", "zstd"],
  raw: ["none"],
  vmdk: ["none", "zlib"],
  vhd: ["none"],
  vhdx: ["none"],
  vdi: ["none"],
  ova: ["zlib"],
};
