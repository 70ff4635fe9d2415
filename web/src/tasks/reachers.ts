/** Reacher, finger, cup and fish: bodies with something to reach, turn, catch or swim to. */

import type { Simulation } from "../physics/simulation";
import { norm, randomizeJoints, type Task } from "./task";
import { atLeast, tolerance } from "./tolerance";

function reacher(name: string, model: string, radius: number): Task {
  const toTarget = (sim: Simulation): [number, number] => {
    const target = sim.position("geom", "target");
    const finger = sim.position("geom", "finger");
    return [target[0] - finger[0], target[1] - finger[1]];
  };
  return {
    name: `reacher-${name}`,
    model,
    substeps: 1,
    start(sim, random) {
      const target = 3 * sim.id("geom", "target");
      sim.model.geom_size[target] = radius;
      randomizeJoints(sim, random);
      const angle = random.uniform(0, 2 * Math.PI);
      const distance = random.uniform(0.05, 0.2);
      sim.model.geom_pos[target] = distance * Math.sin(angle);
      sim.model.geom_pos[target + 1] = distance * Math.cos(angle);
    },
    observe: (sim) => [...sim.qpos, ...toTarget(sim), ...sim.qvel],
    reward(sim) {
      const finger: number = sim.model.geom_size[3 * sim.id("geom", "finger")];
      return tolerance(norm(toTarget(sim)), 0, radius + finger);
    },
  };
}

const ATTEMPTS = 1000;

/** Draw until nothing touches and `accepts` agrees. */
function drawFree(sim: Simulation, draw: () => void, accepts = () => true): void {
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    draw();
    sim.settle();
    if (sim.data.ncon === 0 && accepts()) return;
  }
}

function fingerPoint(sim: Simulation, sensor: string): [number, number] {
  const point = sim.sensor(sensor) as unknown as [number, number, number];
  const spinner = sim.sensor("spinner") as unknown as [number, number, number];
  return [point[0] - spinner[0], point[2] - spinner[2]];
}

function fingerState(sim: Simulation): number[] {
  const read = (name: string) => sim.sensor(name)[0] as number;
  return [
    read("proximal"),
    read("distal"),
    ...fingerPoint(sim, "tip"),
    ...["proximal_velocity", "distal_velocity", "hinge_velocity"].map(read),
    ...["touchtop", "touchbottom"].map((name) => Math.log1p(read(name))),
  ];
}

const fingerSpin: Task = {
  name: "finger-spin",
  model: "finger",
  substeps: 2,
  start(sim, random) {
    const { model } = sim;
    for (const site of ["target", "tip"]) model.site_rgba[4 * sim.id("site", site) + 3] = 0;
    model.dof_damping[sim.degree("hinge")] = 0.03;
    drawFree(sim, () => randomizeJoints(sim, random));
  },
  observe: fingerState,
  reward: (sim) => Number((sim.sensor("hinge_velocity")[0] as number) <= -15),
};

function fingerTurn(name: string, radius: number): Task {
  const beyond = (sim: Simulation): number => {
    const target = fingerPoint(sim, "target");
    const tip = fingerPoint(sim, "tip");
    return norm([target[0] - tip[0], target[1] - tip[1]]) - radius;
  };
  return {
    name: `finger-${name}`,
    model: "finger",
    substeps: 2,
    start(sim, random) {
      const { model } = sim;
      const angle = random.uniform(-Math.PI, Math.PI);
      const hinge = 3 * sim.id("joint", "hinge");
      const cap = 3 * sim.id("geom", "cap1");
      const site = 3 * sim.id("site", "target");
      const [a, b, c] = model.geom_size.subarray(cap, cap + 3);
      const reach = a + b + c;
      model.site_pos[site] = sim.data.xanchor[hinge] + reach * Math.sin(angle);
      model.site_pos[site + 2] = sim.data.xanchor[hinge + 2] + reach * Math.cos(angle);
      model.site_size[site] = radius;
      drawFree(sim, () => randomizeJoints(sim, random));
    },
    observe: (sim) => [...fingerState(sim), ...fingerPoint(sim, "target"), beyond(sim)],
    reward: (sim) => Number(beyond(sim) <= 0),
  };
}

function ballToTarget(sim: Simulation): [number, number] {
  const target = sim.position("site", "target");
  const ball = sim.position("body", "ball");
  return [target[0] - ball[0], target[2] - ball[2]];
}

function inCup(sim: Simulation): boolean {
  const half = 3 * sim.id("site", "target");
  const ball: number = sim.model.geom_size[3 * sim.id("geom", "ball")];
  const [x, z] = ballToTarget(sim);
  const { site_size } = sim.model;
  return Math.abs(x) < site_size[half] - ball && Math.abs(z) < site_size[half + 2] - ball;
}

function cup(name: string, spin: boolean, reward: Task["reward"]): Task {
  return {
    name: `cup-${name}`,
    model: "ball_in_cup",
    substeps: 10,
    start(sim, random) {
      // Nine spinning episodes in ten start with the ball inside.
      const anywhere = !spin || random.uniform() < 0.1;
      const draw = () => {
        sim.qpos[sim.coordinate("ball_x")] = random.uniform(-0.2, 0.2);
        sim.qpos[sim.coordinate("ball_z")] = random.uniform(0.2, 0.5);
      };
      drawFree(sim, draw, () => anywhere || inCup(sim));
    },
    observe: (sim) => [...sim.qpos, ...sim.qvel],
    reward,
  };
}

function cupSpin(sim: Simulation): number {
  if (inCup(sim)) return 0;
  const velocity = ["ball_x", "ball_z"].map((joint) => sim.qvel[sim.degree(joint)] as number);
  const far = atLeast(norm(ballToTarget(sim)), 0.5, 0.25, 0.5);
  return (far + 2 * atLeast(norm(velocity), 6, 3, 0.5)) / 3;
}

const FINS = [
  "tail1",
  "tail_twist",
  "tail2",
  "finright_roll",
  "finright_pitch",
  "finleft_roll",
  "finleft_pitch",
];

/** Return the way from the mouth to the target, in the mouth's frame. */
function mouthToTarget(sim: Simulation): number[] {
  const target = sim.position("geom", "target");
  const mouth = sim.position("geom", "mouth");
  const start = 9 * sim.id("geom", "mouth");
  const axes = sim.data.geom_xmat as Float64Array;
  const way = target.map((value, i) => value - (mouth[i] as number));
  return [0, 1, 2].map((column) =>
    way.reduce(
      (sum, value, row) => sum + value * (axes[start + 3 * row + column] as number),
      0,
    ),
  );
}

const fish: Task = {
  name: "fish-swim",
  model: "fish",
  substeps: 10,
  start(sim, random) {
    const quaternion = [0, 1, 2, 3].map(() => random.normal());
    const length = norm(quaternion);
    const root = sim.coordinate("root") + 3;
    quaternion.forEach((value, i) => {
      sim.qpos[root + i] = value / length;
    });
    for (const fin of FINS) sim.qpos[sim.coordinate(fin)] = random.uniform(-0.2, 0.2);
    const target = 3 * sim.id("geom", "target");
    sim.model.geom_pos[target] = random.uniform(-0.4, 0.4);
    sim.model.geom_pos[target + 1] = random.uniform(-0.4, 0.4);
    sim.model.geom_pos[target + 2] = random.uniform(0.1, 0.3);
  },
  observe: (sim) => [
    ...FINS.map((fin) => sim.qpos[sim.coordinate(fin)] as number),
    sim.rotation("torso")[8] as number,
    ...mouthToTarget(sim),
    ...sim.qvel,
  ],
  reward(sim) {
    const size: Float64Array = sim.model.geom_size;
    const radii = ["mouth", "target"].reduce(
      (sum, geom) => sum + (size[3 * sim.id("geom", geom)] as number),
      0,
    );
    const there = tolerance(norm(mouthToTarget(sim)), 0, radii, { margin: 2 * radii });
    return (7 * there + ((sim.rotation("torso")[8] as number) + 1) / 2) / 8;
  },
};

export const REACHERS: Task[] = [
  reacher("easy", "reacher", 0.05),
  reacher("hard", "reacher", 0.015),
  reacher("three-easy", "reacher_three", 0.05),
  reacher("three-hard", "reacher_three", 0.015),
  cup("catch", false, (sim) => Number(inCup(sim))),
  cup("spin", true, cupSpin),
  fingerSpin,
  fingerTurn("turn-easy", 0.07),
  fingerTurn("turn-hard", 0.03),
  fish,
];
