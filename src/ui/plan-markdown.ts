import type { Plan } from "../plan/plan.ts";
import { renderPlan, summaryLine } from "./plan-view.ts";
import { styleOf } from "./style.ts";

/** What a pull request or a job summary can hold. */
const maxCharacters = 60_000;

export const planMarkdownBegins: string = "### Plan: ";

/** The plan for a pull request: the summary as a heading, the tree in a fenced block that nothing in it can close. */
export function planMarkdown(plan: Plan, timezoneOf: (schedule: string) => string): string {
  const tree = renderPlan(plan, { style: styleOf(false), summary: false, timezoneOf });
  const longestFence = Math.max(2, ...[...tree.matchAll(/`+/g)].map(([run]) => run.length));
  const fence = "`".repeat(longestFence + 1);
  const head = `### ${summaryLine(plan)}\n\n`;
  const room = maxCharacters - head.length - 2 * fence.length - 200;
  const body = tree.length <= room ? tree : `${tree.slice(0, room)}\n… cut: ${tree.length - room} more characters; run \`hypersdk plan\` to see them all\n`;
  return `${head}${fence}text\n${body}${fence}\n`;
}
