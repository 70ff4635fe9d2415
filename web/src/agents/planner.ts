/** MPPI in latent space, as one exported graph that is given its noise. */

import * as ort from "onnxruntime-web/wasm";
import type { Agent } from "./agent";
import { observed, shapeOf } from "./onnx";

const START_STD = 2;
const ITERATIONS = 6;

interface Sizes {
  horizon: number;
  prior: number;
  sampled: number;
  width: number;
}

/** Plans within a deadline: it refines a plan as long as another round fits. */
export class PlannerAgent implements Agent {
  /** Milliseconds that one plan may take. */
  deadlineMs = Infinity;
  private readonly sizes: Sizes;
  private mean: Float32Array;
  private roundMs = 0;

  constructor(
    private readonly session: ort.InferenceSession,
    private readonly tasks: string[],
  ) {
    const [, horizon, sampled, , width] = shapeOf(session, "samples");
    const [, prior] = shapeOf(session, "prior");
    this.sizes = { horizon, prior, sampled, width } as Sizes;
    this.mean = new Float32Array(this.sizes.horizon * this.sizes.width);
  }

  reset(): void {
    this.mean.fill(0);
  }

  async act(observation: number[], task: string, actions: number): Promise<Float32Array> {
    const start = performance.now();
    const { horizon, prior, sampled, width } = this.sizes;
    const shape = [horizon, 1, width];
    // The last plan, one step on: its first action was executed.
    const shifted = new Float32Array(this.mean.length);
    shifted.set(this.mean.subarray(width));
    let mean: ort.Tensor = new ort.Tensor("float32", shifted, shape);
    let std: ort.Tensor = new ort.Tensor(
      "float32",
      new Float32Array(shifted.length).fill(START_STD),
      shape,
    );
    let action = new Float32Array(width);
    const shared = {
      ...observed(this.session, observation, this.tasks.indexOf(task)),
      prior: normal([horizon, prior, 1, width]),
      pick: new ort.Tensor("float32", Float32Array.of(Math.random()), [1]),
    };
    for (let round = 0; round < ITERATIONS; round++) {
      const began = performance.now();
      if (round > 0 && began - start + this.roundMs > this.deadlineMs) break;
      const noise = {
        samples: normal([1, horizon, sampled, 1, width]),
        value: normal([1, prior + sampled, 1, width]),
        heads: new ort.Tensor("int64", BigInt64Array.of(0n, 1n), [1, 2]),
      };
      const plan = await this.session.run({ ...shared, ...noise, mean, std });
      mean = plan.new_mean as ort.Tensor;
      std = plan.new_std as ort.Tensor;
      action = (plan.action as ort.Tensor).data as Float32Array<ArrayBuffer>;
      const took = performance.now() - began;
      this.roundMs = this.roundMs === 0 ? took : 0.8 * this.roundMs + 0.2 * took;
    }
    this.mean = Float32Array.from(mean.data as Float32Array);
    this.mean.set(action);
    return action.slice(0, actions);
  }

  async dispose(): Promise<void> {
    await this.session.release();
  }
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
