/** Agents in ONNX files, run by ONNX Runtime's WebAssembly build. */

import wasmUrl from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";
import * as ort from "onnxruntime-web/wasm";
import { PageError } from "../errors";
import type { Agent } from "./agent";
import type { AgentEntry, AgentFile } from "./manifest";
import { PlannerAgent } from "./planner";

ort.env.wasm.wasmPaths = { wasm: wasmUrl };
ort.env.wasm.numThreads = 1; // the networks are so small that threads cost more than they give
ort.env.logLevel = "error";

/**
 * Load one exported file of an agent.
 *
 * @throws PageError Where the file is missing, damaged or of another form.
 */
export async function loadAgent(
  entry: AgentEntry,
  file: AgentFile,
  base: string,
): Promise<Agent> {
  const response = await fetch(new URL(file.file, base));
  if (!response.ok) {
    throw new PageError(
      `the file of ${entry.name} is missing (${response.status}): ${file.file}`,
    );
  }
  const bytes = new Uint8Array(await response.arrayBuffer());
  let session: ort.InferenceSession;
  try {
    session = await ort.InferenceSession.create(bytes, { graphOptimizationLevel: "all" });
  } catch (error) {
    throw new PageError(`the file of ${entry.name} is damaged (${file.file})`, error);
  }
  for (const needed of file.plan ? ["obs", "samples", "prior"] : ["obs"]) {
    if (!session.inputNames.includes(needed)) {
      throw new PageError(`${file.file} is no ${file.mode}: it has no input ${needed}`);
    }
  }
  return file.plan
    ? new PlannerAgent(session, entry.tasks, file.plan)
    : new PolicyAgent(session, entry.tasks);
}

/** The mean action of a policy network. */
class PolicyAgent implements Agent {
  constructor(
    private readonly session: ort.InferenceSession,
    private readonly tasks: string[],
  ) {}

  reset(): void {}

  async act(observation: number[], task: string, actions: number): Promise<Float32Array> {
    const feeds = observed(this.session, observation, this.tasks.indexOf(task));
    const action = (await this.session.run(feeds)).action as ort.Tensor;
    return (action.data as Float32Array).slice(0, actions);
  }

  async dispose(): Promise<void> {
    await this.session.release();
  }
}

/** Return the lengths of an input's axes; one that is open is a name. */
export function shapeOf(session: ort.InferenceSession, input: string): (number | string)[] {
  const metadata = session.inputMetadata.find((entry) => entry.name === input);
  return metadata?.isTensor ? [...metadata.shape] : [];
}

/** Return the inputs that every exported agent has. */
export function observed(
  session: ort.InferenceSession,
  observation: number[],
  task: number,
): Record<string, ort.Tensor> {
  const [, width] = shapeOf(session, "obs");
  const padded = typeof width === "number" ? width : observation.length;
  const values = new Float32Array(Math.max(padded, observation.length));
  values.set(observation);
  const feeds: Record<string, ort.Tensor> = {
    obs: new ort.Tensor("float32", values, [1, values.length]),
  };
  if (session.inputNames.includes("task")) {
    feeds.task = new ort.Tensor("int64", BigInt64Array.of(BigInt(task)), [1]);
  }
  return feeds;
}
