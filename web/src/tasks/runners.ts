/** Walker, cheetah and hopper: planar bodies that run, and stand, and jump. */

import type { Simulation } from "../physics/simulation";
import { jointRange, randomizeJoints, type Task } from "./task";
import { above, atLeast, tolerance } from "./tolerance";

const height = (sim: Simulation, body: string): number => sim.position("body", body)[2];
const speed = (sim: Simulation): number => sim.sensor("torso_subtreelinvel")[0] as number;

function standing(sim: Simulation): number {
  const upright = (1 + (sim.rotation("torso")[8] as number)) / 2;
  return (3 * above(height(sim, "torso"), 1.2) + upright) / 4;
}

function walker(name: string, reward: Task["reward"]): Task {
  return {
    name: `walker-${name}`,
    model: "walker",
    substeps: 10,
    start: randomizeJoints,
    observe(sim) {
      const matrices = sim.data.xmat as Float64Array;
      const bodies = Array.from({ length: sim.model.nbody - 1 }, (_, i) => 9 * (i + 1));
      const orientations = bodies.flatMap((at) => [matrices[at], matrices[at + 2]] as number[]);
      return [...orientations, height(sim, "torso"), ...sim.qvel];
    },
    reward,
  };
}

function walking(velocity: number): Task["reward"] {
  const target = Math.abs(velocity);
  return (sim) => {
    const move = atLeast(Math.sign(velocity) * speed(sim), target, target / 2, 0.5);
    return (standing(sim) * (5 * move + 1)) / 6;
  };
}

const SETTLING_STEPS = 200;

function cheetah(name: string, reward: Task["reward"]): Task {
  return {
    name: `cheetah-${name}`,
    model: "cheetah",
    substeps: 1,
    start(sim, random) {
      for (let joint = 0; joint < sim.model.njnt; joint++) {
        const range = jointRange(sim, joint);
        if (range) sim.qpos[joint] = random.uniform(...range);
      }
      sim.step(SETTLING_STEPS);
      sim.data.time = 0;
    },
    observe: (sim) => [...sim.qpos.subarray(1), ...sim.qvel],
    reward,
  };
}

/** Running forward with one foot and the torso up. */
function onOneFoot(raised: string): Task["reward"] {
  return (sim) => {
    const foot = above(height(sim, raised), 1.2);
    const up = (3 * foot + 2 * above(height(sim, "torso"), 1.2)) / 5;
    return (up * (5 * atLeast(speed(sim), 6, 6, 0) + 1)) / 6;
  };
}

function jumping(sim: Simulation): number {
  const still = tolerance(speed(sim), -0.5, 0.5, {
    margin: 0.5,
    atMargin: 0,
    falloff: "linear",
  });
  const torso = height(sim, "torso");
  const foot = (name: string) => above((torso + height(sim, name)) / 2, 1.2);
  return (5 * (foot("bfoot") + foot("ffoot")) + 2 * still) / 12;
}

function hopper(name: string, reward: Task["reward"]): Task {
  return {
    name: `hopper-${name}`,
    model: "hopper",
    substeps: 4,
    start: randomizeJoints,
    observe(sim) {
      const touch = ["touch_toe", "touch_heel"].map((s) =>
        Math.log1p(sim.sensor(s)[0] as number),
      );
      return [...sim.qpos.subarray(1), ...sim.qvel, ...touch];
    },
    reward: (sim) => {
      const tall = sim.inertialPosition("torso")[2] - sim.inertialPosition("foot")[2];
      return tolerance(tall, 0.6, 2) * reward(sim);
    },
  };
}

/** Return how small the motors' forces are, averaged; 1 for none. */
export function smallControl(sim: Simulation): number {
  const each = [...sim.ctrl].map((force) =>
    tolerance(force, 0, 0, { margin: 1, atMargin: 0, falloff: "quadratic" }),
  );
  return (each.reduce((sum, value) => sum + value, 0) / each.length + 4) / 5;
}

export const RUNNERS: Task[] = [
  walker("stand", standing),
  walker("walk", walking(1)),
  walker("run", walking(8)),
  walker("walk-backwards", walking(-1)),
  walker("run-backwards", walking(-8)),
  cheetah("run", (sim) => atLeast(speed(sim), 10, 10, 0)),
  cheetah("run-backwards", (sim) => atLeast(-speed(sim), 8, 8, 0)),
  cheetah("run-front", onOneFoot("bfoot")),
  cheetah("run-back", onOneFoot("ffoot")),
  cheetah("jump", jumping),
  hopper("stand", smallControl),
  hopper("hop", (sim) => atLeast(speed(sim), 2, 1, 0.5)),
  hopper("hop-backwards", (sim) => atLeast(-speed(sim), 1, 0.5, 0.5)),
];
