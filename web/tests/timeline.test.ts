import { expect, test } from "vitest";
import type { Chunk } from "../src/physics/frames";
import { Timeline } from "../src/view/timeline";

function chunk(frames: number[], times: number[], seconds: number, step = 0): Chunk {
  const rest = { observation: [], action: [], reward: 0, return: 0, latencyMs: 0 };
  return { frames: Float32Array.from(frames), times, seconds, step, ...rest };
}

const ignore = () => {};

test("draws between two frames in proportion to time", () => {
  const timeline = new Timeline();
  timeline.push(chunk([0], [0], 0));
  timeline.push(chunk([1, 3], [0.1, 0.2], 0.2));
  expect(timeline.advance(0.05, ignore)?.[0]).toBeCloseTo(0.5);
  expect(timeline.advance(0.1, ignore)?.[0]).toBeCloseTo(2);
});

test("waits at the last frame for what is late", () => {
  const timeline = new Timeline();
  timeline.push(chunk([1], [0.1], 0.1));
  expect(timeline.advance(5, ignore)?.[0]).toBe(1);
  expect(timeline.ahead).toBe(0);
  timeline.push(chunk([2], [0.1], 0.1));
  expect(timeline.advance(0.05, ignore)?.[0]).toBeCloseTo(1.5);
});

test("tells of each chunk once, when its time begins", () => {
  const timeline = new Timeline();
  const begun: number[] = [];
  const note = ({ step }: Chunk) => begun.push(step);
  timeline.push(chunk([0], [0], 0, 0));
  for (const step of [1, 2, 3]) timeline.push(chunk([step], [0.1], 0.1, step));
  timeline.advance(0, note);
  timeline.advance(0, note);
  timeline.advance(0.05, note);
  expect(begun).toEqual([0, 1]);
  timeline.advance(0.1, note);
  expect(begun).toEqual([0, 1, 2]);
});

test("jumps to an episode's start instead of gliding there", () => {
  const timeline = new Timeline();
  timeline.push(chunk([1], [0.1], 0.1));
  timeline.push(chunk([9], [0], 0));
  expect(timeline.advance(0.2, ignore)?.[0]).toBe(9);
});

test("forgets what was not played", () => {
  const timeline = new Timeline();
  timeline.push(chunk([1], [0.1], 0.1));
  timeline.clear();
  expect(timeline.advance(1, ignore)).toBeUndefined();
});
