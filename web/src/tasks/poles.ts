/** Acrobot, pendulum and cartpole: poles to swing up and to hold. */

import type { Simulation } from "../physics/simulation";
import { smallControl } from "./runners";
import { norm, type Task } from "./task";
import { atLeast, tolerance } from "./tolerance";

const XZ = 2;
const ZZ = 8;
const entry = (sim: Simulation, body: string, at: number): number =>
  sim.rotation(body)[at] as number;

const acrobot: Task = {
  name: "acrobot-swingup",
  model: "acrobot",
  substeps: 1,
  start(sim, random) {
    for (const joint of ["shoulder", "elbow"]) {
      sim.qpos[sim.coordinate(joint)] = random.uniform(-Math.PI, Math.PI);
    }
  },
  observe(sim) {
    const arms = ["upper_arm", "lower_arm"];
    const orientations = [XZ, ZZ].flatMap((at) => arms.map((arm) => entry(sim, arm, at)));
    return [...orientations, ...sim.qvel];
  },
  reward(sim) {
    const target = sim.position("site", "target");
    const tip = sim.position("site", "tip");
    const radius = sim.model.site_size[3 * sim.id("site", "target")];
    const distance = norm(target.map((value, i) => value - (tip[i] as number)));
    return tolerance(distance, 0, radius, { margin: 1 });
  },
};

const UPRIGHT_COSINE = Math.cos((8 * Math.PI) / 180);

function pendulum(name: string, reward: Task["reward"]): Task {
  return {
    name: `pendulum-${name}`,
    model: "pendulum",
    substeps: 1,
    start(sim, random) {
      sim.qpos[0] = random.uniform(-Math.PI, Math.PI);
    },
    observe: (sim) => [entry(sim, "pole", ZZ), entry(sim, "pole", XZ), ...sim.qvel],
    reward,
  };
}

function cartpole(name: string, swingUp: boolean, reward: Task["reward"]): Task {
  return {
    name: `cartpole-${name}`,
    model: "cartpole",
    substeps: 1,
    start(sim, random) {
      const { qpos, qvel } = sim;
      qpos[0] = swingUp ? 0.01 * random.normal() : random.uniform(-0.1, 0.1);
      qpos[1] = swingUp ? Math.PI + 0.01 * random.normal() : random.uniform(-0.034, 0.034);
      for (let i = 0; i < qvel.length; i++) qvel[i] = 0.01 * random.normal();
    },
    observe: (sim) => [
      sim.qpos[0] as number,
      entry(sim, "pole_1", ZZ),
      entry(sim, "pole_1", XZ),
      ...sim.qvel,
    ],
    reward,
  };
}

function balanced(sim: Simulation): number {
  const upright = (entry(sim, "pole_1", ZZ) + 1) / 2;
  const centred = (1 + tolerance(sim.qpos[0] as number, 0, 0, { margin: 2 })) / 2;
  const slow = (1 + tolerance(sim.qvel[1] as number, 0, 0, { margin: 5 })) / 2;
  return upright * smallControl(sim) * slow * centred;
}

function balancedOrNot(sim: Simulation): number {
  const inside = tolerance(sim.qpos[0] as number, -0.25, 0.25);
  return inside * tolerance(entry(sim, "pole_1", ZZ), 0.995, 1);
}

export const POLES: Task[] = [
  acrobot,
  pendulum("swingup", (sim) => tolerance(entry(sim, "pole", ZZ), UPRIGHT_COSINE, 1)),
  pendulum("spin", (sim) => atLeast(Math.abs(sim.qvel[0] as number), 9, 4.5, 0.5)),
  cartpole("balance", false, balanced),
  cartpole("balance-sparse", false, balancedOrNot),
  cartpole("swingup", true, balanced),
  cartpole("swingup-sparse", true, balancedOrNot),
];
