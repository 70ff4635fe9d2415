/** MPPI in latent space, as one exported graph that is given its noise. */

import * as ort from "onnxruntime-web/wasm";
import type { Agent } from "./agent";
import type { Plan } from "./manifest";
import { observed, shapeOf } from "./onnx";

/** Actions over the horizon and their standard deviations, each [horizon, width]. */
interface Distribution {
  mean: Float32Array;
  std: Float32Array;
}

/** Plans within a deadline: it refines a plan as long as another round fits. */
export class PlannerAgent implements Agent {
  /** Milliseconds that one plan may take. */
  deadlineMs = Infinity;
  private readonly width: number;
  private last: Distribution;
  private executed: number;
  private roundMs = 0;

  constructor(
    private readonly session: ort.InferenceSession,
    private readonly tasks: string[],
    private readonly plan: Plan,
  ) {
    this.width = Number(shapeOf(session, "samples").at(-1));
    this.last = this.nothing();
    this.executed = plan.horizon;
  }

  reset(): void {
    this.last = this.nothing();
    this.executed = this.plan.horizon;
  }

  async act(observation: number[], task: string, actions: number): Promise<Float32Array> {
    if (this.executed >= this.actionsOfAPlan()) {
      this.last = await this.planned(observation, task, actions);
      this.executed = 0;
    }
    const start = this.executed * this.width;
    this.executed += 1;
    return this.last.mean.slice(start, start + actions);
  }

  async dispose(): Promise<void> {
    await this.session.release();
  }

  /** As many as asked for; more where a single round outlasts them, so that the rate is held. */
  private actionsOfAPlan(): number {
    const { replan_every, horizon } = this.plan;
    return Math.min(horizon, Math.max(replan_every, Math.ceil(this.roundMs / this.deadlineMs)));
  }

  private nothing(): Distribution {
    const size = this.plan.horizon * this.width;
    return { mean: new Float32Array(size), std: new Float32Array(size).fill(Infinity) };
  }

  private async planned(
    observation: number[],
    task: string,
    actions: number,
  ): Promise<Distribution> {
    const began = performance.now();
    const { horizon, samples, policy_samples, rounds, converged_std, mean_action } = this.plan;
    const { width } = this;
    let { mean, std } = this.start();
    let action = mean;
    const shared = {
      ...observed(this.session, observation, this.tasks.indexOf(task)),
      prior: normal([horizon, policy_samples, 1, width]),
      pick: new ort.Tensor("float32", Float32Array.of(Math.random()), [1]),
    };
    for (let round = 0; round < rounds; round++) {
      const roundBegan = performance.now();
      if (round > 0 && roundBegan - began + this.roundMs > this.deadlineMs) break;
      if (round > 0 && average(std, width, actions) < converged_std) break;
      const found = await this.session.run({
        ...shared,
        samples: normal([1, horizon, samples - policy_samples, 1, width]),
        value: normal([1, samples, 1, width]),
        heads: new ort.Tensor("int64", twoOf(this.plan.num_q), [1, 2]),
        mean: new ort.Tensor("float32", mean, [horizon, 1, width]),
        std: new ort.Tensor("float32", std, [horizon, 1, width]),
      });
      mean = numbers(found.new_mean);
      std = numbers(found.new_std);
      action = numbers(found.action);
      const took = performance.now() - roundBegan;
      this.roundMs = this.roundMs === 0 ? took : 0.8 * this.roundMs + 0.2 * took;
    }
    if (!mean_action) mean.set(action);
    return { mean, std };
  }

  /** The distribution to start from: the last plan without the actions executed since. */
  private start(): Distribution {
    const { min_std, max_std, warm_mean, warm_std } = this.plan;
    const { mean, std } = this.nothing();
    const done = this.executed * this.width;
    mean.set(this.last.mean.subarray(done).map((value) => warm_mean * value));
    std.set(this.last.std.subarray(done));
    return {
      mean,
      // Infinite where no plan has been: there, as where plans start cold, it is the largest.
      std: std.map((value) =>
        warm_std ? Math.min(max_std, Math.max(min_std, warm_std * value)) : max_std,
      ),
    };
  }
}

function numbers(tensor: ort.Tensor | undefined): Float32Array {
  return Float32Array.from(tensor?.data as Float32Array);
}

/** Return the mean over all steps and the motors that the task has. */
function average(values: Float32Array, width: number, actions: number): number {
  const own = values.filter((_, i) => i % width < actions);
  return own.reduce((sum, value) => sum + value, 0) / own.length;
}

/** Draw two different members of the ensemble. */
function twoOf(count: number): BigInt64Array {
  const first = Math.floor(Math.random() * count);
  const other = (first + 1 + Math.floor(Math.random() * (count - 1))) % count;
  return BigInt64Array.of(BigInt(first), BigInt(other));
}

function normal(shape: number[]): ort.Tensor {
  const size = shape.reduce((product, length) => product * length, 1);
  const values = new Float32Array(size);
  for (let i = 0; i < size; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - Math.random()));
    const angle = 2 * Math.PI * Math.random();
    values[i] = radius * Math.cos(angle);
    if (i + 1 < size) values[i + 1] = radius * Math.sin(angle);
  }
  return new ort.Tensor("float32", values, shape);
}
