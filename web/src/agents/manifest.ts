/** `agents.json`: which agents the server offers, and in which files. */

import { PageError } from "../errors";

/** How an agent's file acts. */
export type Mode = "policy" | "planner";

/** One exported file of an agent. */
export interface AgentFile {
  mode: Mode;
  precision: string;
  /** Address, relative to the page. */
  file: string;
  bytes: number;
}

/** One agent and the tasks that it has learned, in the order of their ids. */
export interface AgentEntry {
  name: string;
  parameters: number;
  tasks: string[];
  files: AgentFile[];
}

const SCHEMA = 1;

/**
 * Fetch the list of agents.
 *
 * @throws PageError Where it is missing, damaged or of a newer version.
 */
export async function fetchAgents(base: string): Promise<AgentEntry[]> {
  const response = await fetch(new URL("agents.json", base));
  if (!response.ok) throw new PageError(`the list of agents is missing (${response.status})`);
  const content: { schema: number; agents: AgentEntry[] } = await response.json();
  if (content.schema !== SCHEMA) {
    throw new PageError("the list of agents is of another version; reload the page");
  }
  return content.agents;
}
