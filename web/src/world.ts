/** Physics and agent of the page, together in a worker so that drawing never waits for them. */

import loadMujoco, { type MainModule } from "@mujoco/mujoco";
import mujocoUrl from "@mujoco/mujoco/mujoco.wasm?url";
import { type Agent, Motors } from "./agents/agent";
import type { AgentEntry, AgentFile } from "./agents/manifest";
import { loadAgent } from "./agents/onnx";
import { PlannerAgent } from "./agents/planner";
import { PageError } from "./errors";
import type { Chunk, SceneDescription } from "./physics/frames";
import { Hand, type Pull } from "./physics/perturb";
import { RandomState } from "./physics/random";
import { joined, Scenery } from "./physics/scene";
import { Simulation, type Vector } from "./physics/simulation";
import { ACTION_REPEAT, EPISODE_STEPS, TASKS, type Task } from "./tasks";
import { beginEpisode } from "./tasks/task";

/** What the visitor may change while an agent acts. */
export interface Influence {
  /** Gravity as a share of the Earth's. */
  gravity: number;
  /** Standard deviation of the noise on actions. */
  noise: number;
  pull?: Pull;
  push?: Vector;
}

/** Who acts: a file of an agent, random motors or none. */
export type Actor = { entry: AgentEntry; file: AgentFile } | "random" | "none";

const FRAME_SECONDS = 0.008;
const PLANNING_SHARE = 0.8; // of an action's time; the rest is for physics and messages

/** One task, one agent, and the episode they are in. */
export class World {
  private mujoco: MainModule | undefined;
  private task: Task | undefined;
  private sim: Simulation | undefined;
  private hand: Hand | undefined;
  private scenery: Scenery | undefined;
  private agent: Agent = new Motors(0);
  private random = new RandomState(0);
  private gravity = 0;
  private step = 0;
  private sum = 0;
  private work: Promise<unknown> = Promise.resolve();

  /** @param base Address of the page, from which files are fetched. */
  constructor(private readonly base: string) {}

  /** Load MuJoCo. */
  async start(): Promise<void> {
    try {
      this.mujoco = await loadMujoco({ locateFile: () => new URL(mujocoUrl, this.base).href });
    } catch (error) {
      throw new PageError("this browser cannot start the physics (WebAssembly)", error);
    }
  }

  /** Change the task; the seed is that of its random starts. */
  open(name: string, seed: number): Promise<SceneDescription> {
    return this.inTurn(async () => {
      const task = TASKS.get(name);
      if (!task) throw new PageError(`there is no task called ${name}`);
      const address = new URL(`models/${task.model}.xml`, this.base);
      const response = await fetch(address);
      if (!response.ok) {
        throw new PageError(`the model of ${name} is missing (${response.status})`);
      }
      const mujoco = this.module();
      const sim = new Simulation(mujoco, await response.text());
      this.hand?.dispose();
      this.sim?.dispose();
      this.task = task;
      this.sim = sim;
      this.hand = new Hand(mujoco, sim);
      this.random = new RandomState(seed);
      this.gravity = sim.model.opt.gravity[2];
      beginEpisode(task, sim, this.random);
      const types = { geom: mujoco.mjtObj.mjOBJ_GEOM, site: mujoco.mjtObj.mjOBJ_SITE };
      this.scenery = new Scenery(sim, (kind, id) =>
        mujoco.mj_id2name(sim.model, types[kind].value, id),
      );
      this.begin();
      const seconds = ACTION_REPEAT * task.substeps * sim.model.opt.timestep;
      const noGravity = mujoco.mjtDisableBit.mjDSBL_GRAVITY.value;
      return this.scenery.describe(name, task.model, seconds, noGravity);
    });
  }

  /** Change who acts. */
  employ(actor: Actor): Promise<void> {
    return this.inTurn(async () => {
      const next =
        typeof actor === "string"
          ? new Motors(actor === "random" ? 1 : 0)
          : await loadAgent(actor.entry, actor.file, this.base);
      await this.agent.dispose();
      this.agent = next;
    });
  }

  /** Return the present frame, as an episode's first. */
  look(): Promise<Chunk> {
    return this.inTurn(async () => this.chunk([this.frame()], [0], 0, 0, 0, []));
  }

  /** Start another episode and return its first frame. */
  restart(): Promise<Chunk> {
    return this.inTurn(async () => this.another());
  }

  /** Let the agent act once; after the last action of an episode the next one starts. */
  advance(influence: Influence): Promise<Chunk> {
    return this.inTurn(async () => {
      if (this.step >= EPISODE_STEPS) {
        return this.another();
      }
      return this.once(influence, true);
    });
  }

  /**
   * Return what the agent earns from where it is, without drawing.
   *
   * @param seconds Simulated time.
   */
  earn(seconds: number): Promise<number> {
    return this.inTurn(async () => {
      const { task, sim } = this.opened();
      const duration = ACTION_REPEAT * task.substeps * sim.model.opt.timestep;
      const influence = { gravity: 1, noise: 0 };
      for (let i = 0; i < Math.round(seconds / duration); i++)
        await this.once(influence, false);
      return this.sum;
    });
  }

  private another(): Chunk {
    const { task, sim } = this.opened();
    beginEpisode(task, sim, this.random);
    this.begin();
    return this.chunk([this.frame()], [0], 0, 0, 0, []);
  }

  private async once(influence: Influence, draw: boolean): Promise<Chunk> {
    const { task, sim, hand } = this.opened();
    sim.model.opt.gravity[2] = this.gravity * influence.gravity;
    const { timestep } = sim.model.opt;
    const seconds = ACTION_REPEAT * task.substeps * timestep;
    if (this.agent instanceof PlannerAgent) {
      this.agent.deadlineMs = 1000 * PLANNING_SHARE * seconds;
    }
    const observation = task.observe(sim);
    const began = performance.now();
    const wanted = await this.agent.act(observation, task.name, sim.model.nu);
    const latency = performance.now() - began;
    const action = [...wanted].map((value) => clamp(value + influence.noise * gaussian()));
    const frames: Float32Array[] = [];
    const times: number[] = [];
    let reward = 0;
    for (let control = 0; control < ACTION_REPEAT; control++) {
      sim.ctrl.set(action);
      for (let i = 0; i < task.substeps; i++) {
        hand.apply(influence.pull, influence.push);
        sim.step(1);
        const time = (control * task.substeps + i + 1) * timestep;
        const due =
          time - (times.at(-1) ?? 0) >= FRAME_SECONDS - 1e-9 || time >= seconds - 1e-9;
        if (draw && due) {
          frames.push(this.frame());
          times.push(time);
        }
      }
      reward += task.reward(sim);
    }
    if (!Number.isFinite(sim.qpos[0]))
      throw new PageError("the physics broke; start a new episode");
    this.step += 1;
    this.sum += reward;
    return this.chunk(frames, times, seconds, reward, latency, action);
  }

  private chunk(
    frames: Float32Array[],
    times: number[],
    seconds: number,
    reward: number,
    latencyMs: number,
    action: number[],
  ): Chunk {
    const { task, sim } = this.opened();
    const observation = task.observe(sim);
    const episode = { return: this.sum, step: this.step };
    return {
      frames: joined(frames),
      times,
      seconds,
      observation,
      action,
      reward,
      latencyMs,
      ...episode,
    };
  }

  private begin(): void {
    this.agent.reset();
    this.step = 0;
    this.sum = 0;
  }

  private frame(): Float32Array {
    return this.opened().scenery.frame();
  }

  private module(): MainModule {
    if (!this.mujoco) throw new PageError("the physics has not started");
    return this.mujoco;
  }

  private opened(): { task: Task; sim: Simulation; hand: Hand; scenery: Scenery } {
    const { task, sim, hand, scenery } = this;
    if (!task || !sim || !hand || !scenery) throw new PageError("no task is open");
    return { task, sim, hand, scenery };
  }

  /** Run one request after the other: an action awaits its network, and others must not cut in. */
  private inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.work.then(work);
    this.work = result.catch(() => undefined);
    return result;
  }
}

function clamp(value: number): number {
  return Math.min(1, Math.max(-1, value));
}

function gaussian(): number {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}
