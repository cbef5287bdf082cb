import { execFileSync } from "node:child_process";

/** libvhdi, libvmdk and libqcow through their Python bindings: readers by somebody who read the specifications too. */
const script = `
import hashlib, sys
path, form = sys.argv[1:]
if form == "raw":
    f = open(path, "rb"); f.seek(0, 2); size = f.tell(); f.seek(0)
elif form in ("vhd", "vhdx"):
    import pyvhdi; f = pyvhdi.file(); f.open(path); size = f.get_media_size()
elif form == "vmdk":
    import pyvmdk; f = pyvmdk.handle(); f.open(path); f.open_extent_data_files(); size = f.get_media_size()
else:
    import pyqcow; f = pyqcow.file(); f.open(path); size = f.get_media_size()
h = hashlib.sha256(); left = size
while left > 0:
    piece = f.read(min(left, 1 << 20)); h.update(piece); left -= len(piece)
print(size, h.hexdigest())
`;
const python = "/usr/bin/python3";

let isThere: boolean | undefined;

function bindings(): boolean {
  if (isThere === undefined) {
    try {
      execFileSync(python, ["-c", "import pyvhdi, pyvmdk, pyqcow"], { stdio: "ignore" });
      isThere = true;
    } catch {
      if (process.env["CI"]) throw new Error("the bindings of libvhdi, libvmdk and libqcow must be there in CI");
      process.stderr.write("not compared with libyal, which is not installed\n");
      isThere = false;
    }
  }
  return isThere;
}

/** Size and SHA-256 of a disk as libyal reads it; undefined for what it does not read. */
export function libyalHash(path: string, format: string, compression: string): string | undefined {
  if (!bindings() || format === "vdi" || compression === "zstd") return undefined;
  return execFileSync(python, ["-c", script, path, format], { encoding: "utf8" });
}
