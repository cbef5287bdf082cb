import { createInterface } from "node:readline/promises";
import { HypersdkError } from "../model/errors.ts";

/** Asks; only `yes` is yes. @throws Declined for any other answer or the end of the input, Interrupted for Ctrl-C */
export async function askForYes(question: string, whatElse: string): Promise<void> {
  const prompt = createInterface({ input: process.stdin, output: process.stderr });
  const declined = new HypersdkError("Declined", `declined; ${whatElse}`);
  const ended = new Promise<never>((_, reject) => prompt.once("close", () => reject(declined)));
  try {
    const answer = await Promise.race([prompt.question(`${question} Only "yes" is accepted: `), ended]);
    if (answer.trim() !== "yes") throw declined;
  } catch (error) {
    throw (error as Error).name === "AbortError" ? new HypersdkError("Interrupted", `interrupted; ${whatElse}`) : error;
  } finally {
    ended.catch(() => {});
    prompt.close();
  }
}
