/** What a task is made of, and how an episode of it starts. */

import type { RandomState } from "../physics/random";
import type { Simulation } from "../physics/simulation";

/** One task of MT30 on its model. */
export interface Task {
  /** Name as in MT30, such as `walker-walk`. */
  name: string;
  /** File name of the model, without its ending. */
  model: string;
  /** Physics steps of one control step. */
  substeps: number;
  /** Draw an episode's start: the state, and parts of the model such as a target. */
  start(sim: Simulation, random: RandomState): void;
  /** Return the observation, unpadded, in the order of dm_control. */
  observe(sim: Simulation): number[];
  /** Return the reward of one control step, in [0, 1]. */
  reward(sim: Simulation): number;
}

/** Begin an episode as dm_control's environment does. */
export function beginEpisode(task: Task, sim: Simulation, random: RandomState): void {
  sim.reset();
  task.start(sim, random);
  sim.settle();
}

/**
 * Return a joint's range, or undefined where it has none.
 *
 * The bindings cannot read `jnt_limited`; in the models whose starts ask, a joint without a limit
 * has the range [0, 0].
 */
export function jointRange(sim: Simulation, joint: number): [number, number] | undefined {
  const [low, high] = sim.model.jnt_range.subarray(2 * joint, 2 * joint + 2);
  return low < high ? [low, high] : undefined;
}

const HINGE = 3; // mjJNT_HINGE

/** Draw joints in their ranges, and hinges without one from the whole circle. */
export function randomizeJoints(sim: Simulation, random: RandomState): void {
  const { model, qpos } = sim;
  for (let joint = 0; joint < model.njnt; joint++) {
    const range = jointRange(sim, joint);
    const at = model.jnt_qposadr[joint];
    if (range) qpos[at] = random.uniform(...range);
    else if (model.jnt_type[joint] === HINGE) qpos[at] = random.uniform(-Math.PI, Math.PI);
  }
}

/** Return the length of a vector. */
export function norm(vector: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < vector.length; i++) sum += (vector[i] as number) ** 2;
  return Math.sqrt(sum);
}
