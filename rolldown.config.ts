import { readFileSync } from "node:fs";
import { isAbsolute } from "node:path";
import { defineConfig } from "rolldown";

/** Packages that are ES modules alone, and loaded by every command: to load those from CommonJS takes longer than any other (docs/decisions/014). */
const takenIn = ["commander", "tinyqueue"];

/** The program as CommonJS in few files, readable and with the names that it has in `src`; most packages stay outside. */
export default defineConfig({
  input: "src/cli/main.ts",
  platform: "node",
  external: (id) => !id.startsWith(".") && !isAbsolute(id) && !takenIn.includes(id),
  output: { dir: "dist/cli", format: "cjs", entryFileNames: "[name].cjs", chunkFileNames: "[name].cjs" },
  plugins: [
    {
      name: "licences of what is taken in",
      generateBundle() {
        const source = takenIn.map((name) => `${name}\n\n${readFileSync(`node_modules/${name}/LICENSE`, "utf8")}`).join("\n\n");
        this.emitFile({ type: "asset", fileName: "LICENSES.txt", source });
      },
    },
  ],
});
