/** The tasks of MT30 that the page offers: all thirty. */

import { POLES } from "./poles";
import { REACHERS } from "./reachers";
import { RUNNERS } from "./runners";
import type { Task } from "./task";

export type { Task } from "./task";

/** Control steps that one action lasts. */
export const ACTION_REPEAT = 2;

/** Actions of one episode, in every task. */
export const EPISODE_STEPS = 500;

/** Every task by its name. */
export const TASKS: ReadonlyMap<string, Task> = new Map(
  [...RUNNERS, ...POLES, ...REACHERS].map((task) => [task.name, task]),
);
