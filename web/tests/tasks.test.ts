import { readFileSync } from "node:fs";
import loadMujoco, { type MainModule } from "@mujoco/mujoco";
import { beforeAll, describe, expect, test } from "vitest";
import { RandomState } from "../src/physics/random";
import { Simulation } from "../src/physics/simulation";
import { ACTION_REPEAT, TASKS } from "../src/tasks";
import { beginEpisode, type Task } from "../src/tasks/task";

interface Probe {
  qpos: number[];
  qvel: number[];
  ctrl: number[];
  observation: number[];
  reward: number;
}

interface Recording {
  starts: number[][];
  actions: number[][];
  observations: number[][];
  rewards: number[];
  probes: Probe[];
}

const read = (path: string) => readFileSync(new URL(path, import.meta.url), "utf8");
const fixtures: { seed: number; tasks: Record<string, Recording> } = JSON.parse(
  read("fixtures/tasks.json"),
);

// Recorded by MuJoCo 3.17.0, replayed by the 3.14.0 of the browser build.
const SAME_STATE = 1e-9;
const AFTER_STEPS = 1e-6;

function expectClose(actual: ArrayLike<number>, expected: number[], tolerance: number): void {
  expect(actual.length).toBe(expected.length);
  const errors = expected.map((value, i) => Math.abs(value - (actual[i] as number)));
  expect(Math.max(...errors)).toBeLessThanOrEqual(tolerance);
}

let mujoco: MainModule;

beforeAll(async () => {
  mujoco = await loadMujoco();
});

function load(name: string): { task: Task; sim: Simulation; recording: Recording } {
  const task = TASKS.get(name) as Task;
  const sim = new Simulation(mujoco, read(`../public/models/${task.model}.xml`));
  return { task, sim, recording: fixtures.tasks[name] as Recording };
}

test("the page offers the thirty tasks that Python recorded", () => {
  expect([...TASKS.keys()].sort()).toEqual(Object.keys(fixtures.tasks).sort());
  expect(TASKS.size).toBe(30);
});

describe.each([...TASKS.keys()])("%s", (name) => {
  test("starts where Python's seed starts it", () => {
    const { task, sim, recording } = load(name);
    const random = new RandomState(fixtures.seed);
    for (const start of recording.starts) {
      beginEpisode(task, sim, random);
      expectClose(task.observe(sim), start, AFTER_STEPS);
    }
    sim.dispose();
  });

  test("moves and pays as in Python", () => {
    const { task, sim, recording } = load(name);
    const random = new RandomState(fixtures.seed);
    for (const _ of recording.starts) beginEpisode(task, sim, random);
    recording.actions.forEach((action, step) => {
      let reward = 0;
      for (let i = 0; i < ACTION_REPEAT; i++) {
        sim.ctrl.set(action);
        sim.step(task.substeps);
        reward += task.reward(sim);
      }
      expectClose(task.observe(sim), recording.observations[step] as number[], AFTER_STEPS);
      expect(reward).toBeCloseTo(recording.rewards[step] as number, 6);
    });
    sim.dispose();
  });

  test("sees and pays for any state as in Python", () => {
    const { task, sim, recording } = load(name);
    beginEpisode(task, sim, new RandomState(fixtures.seed));
    for (const probe of recording.probes) {
      sim.reset();
      sim.qpos.set(probe.qpos);
      sim.qvel.set(probe.qvel);
      sim.settle();
      sim.ctrl.set(probe.ctrl);
      expectClose(task.observe(sim), probe.observation, SAME_STATE);
      expect(Math.abs(task.reward(sim) - probe.reward)).toBeLessThanOrEqual(SAME_STATE);
    }
    expect(new Set(recording.probes.map((probe) => probe.reward)).size).toBeGreaterThan(1);
    sim.dispose();
  });
});
