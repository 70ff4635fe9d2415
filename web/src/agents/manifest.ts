/** `agents.json`: which agents the server offers, and in which files. */

import { PageError } from "../errors";

/** How an agent's file acts. */
export type Mode = "policy" | "planner";

/** What a planner searches with, as in Python's `PlanSizes`. */
export interface Plan {
  rounds: number;
  horizon: number;
  samples: number;
  policy_samples: number;
  min_std: number;
  max_std: number;
  replan_every: number;
  warm_mean: number;
  warm_std: number;
  converged_std: number;
  mean_action: boolean;
  num_q: number;
}

/** One exported file of an agent. */
export interface AgentFile {
  mode: Mode;
  precision: string;
  /** Address, relative to the page. */
  file: string;
  bytes: number;
  /** Of planners alone. */
  plan?: Plan;
}

/** One agent and the tasks that it has learned, in the order of their ids. */
export interface AgentEntry {
  name: string;
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
