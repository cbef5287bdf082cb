import { type ByteFile, readBytes } from "../byte-file.ts";
import type { CheckFinding } from "../layer.ts";
import type { SparseHeader } from "./sparse-header.ts";

/** What reading the grains would not show: a second set of tables that says something else, and space that no grain has. */
export async function* checkSparse(file: ByteFile, header: SparseHeader): AsyncGenerator<CheckFinding> {
  const { capacityBytes, grainBytes, entriesPerTable, directoryOffset, redundantOffset, overheadBytes } = header;
  const tableBytes = entriesPerTable * 4;
  const tables = Math.ceil(capacityBytes / (grainBytes * entriesPerTable));
  const directory = await readBytes(file, directoryOffset, tables * 4);
  const redundant = redundantOffset > 0 ? await readBytes(file, redundantOffset, tables * 4) : undefined;
  let [grains, tableSpace] = [0, 0];
  const tableAt = async (at: number): Promise<Buffer> => (at === 0 ? Buffer.alloc(tableBytes) : readBytes(file, at, tableBytes));
  for (let i = 0; i < tables; i++) {
    const at = directory.readUInt32LE(i * 4) * 512;
    const table = await tableAt(at);
    for (let entry = 0; entry < tableBytes; entry += 4) if (table.readUInt32LE(entry) > 1) grains++;
    if (at >= overheadBytes) tableSpace += tableBytes;
    if (!redundant) continue;
    const otherAt = redundant.readUInt32LE(i * 4) * 512;
    if (otherAt >= overheadBytes) tableSpace += tableBytes;
    if (!(await tableAt(otherAt)).equals(table)) yield { problem: `the redundant grain table ${i} at ${otherAt} is not the grain table at ${at}` };
  }
  const orphans = Math.floor((file.sizeBytes - overheadBytes - tableSpace - grains * grainBytes) / grainBytes);
  if (orphans > 0) yield { orphans };
}
