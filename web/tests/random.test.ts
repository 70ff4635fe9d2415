import { expect, test } from "vitest";
import { RandomState } from "../src/physics/random";

// numpy.random.RandomState(7): uniform(-1, 2) twice, randn() three times, uniform()
const NUMPY = [
  -0.7710751318781285, 1.3397563767203438, 1.690525703800356, -0.4659373705408328,
  0.0328201636785844, 0.5011204636599379,
];

test("draws NumPy's numbers", () => {
  const random = new RandomState(7);
  const drawn = [random.uniform(-1, 2), random.uniform(-1, 2)];
  for (let i = 0; i < 3; i++) drawn.push(random.normal());
  drawn.push(random.uniform());
  for (const [i, value] of drawn.entries()) expect(value).toBeCloseTo(NUMPY[i] as number, 14);
});

test("goes on past the first 624 numbers", () => {
  const random = new RandomState(7);
  for (let i = 0; i < 1000; i++) random.uniform();
  expect(random.uniform()).toBeCloseTo(0.08378587007198324, 14);
});
