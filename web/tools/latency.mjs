// CPU time of one run of each bundled agent's files, after `make web`: node web/tools/latency.mjs
import { readdirSync, readFileSync } from "node:fs";
import * as ort from "onnxruntime-web/wasm";

const AGENTS = new URL("../public/agents/", import.meta.url);
const RUNS = 40;
const OBSERVATION = 24; // MT30's widest

ort.env.wasm.numThreads = 1; // as in the page

function input({ name, type, shape }) {
  const sizes = shape.map((size) => (typeof size === "number" ? size : 1));
  if (name === "obs") sizes[1] = OBSERVATION;
  const count = sizes.reduce((product, size) => product * size, 1);
  return type === "int64"
    ? new ort.Tensor(
        "int64",
        BigInt64Array.from({ length: count }, (_, i) => BigInt(i)),
        sizes,
      )
    : new ort.Tensor("float32", Float32Array.from({ length: count }, Math.random), sizes);
}

for (const name of readdirSync(AGENTS)) {
  const session = await ort.InferenceSession.create(readFileSync(new URL(name, AGENTS)));
  const feeds = Object.fromEntries(session.inputMetadata.map((one) => [one.name, input(one)]));
  const times = [];
  for (let run = 0; run < RUNS; run++) {
    const began = process.cpuUsage();
    await session.run(feeds);
    const { user, system } = process.cpuUsage(began);
    times.push((user + system) / 1000);
  }
  console.log(`${name}: ${Math.min(...times).toFixed(2)} ms of CPU`);
}
