import { expect, test } from "vitest";
import { Detail } from "../src/view/detail";

function afterFrames(count: number, milliseconds: number): Detail {
  const detail = new Detail();
  for (let i = 0; i < count; i++) detail.note(milliseconds);
  return detail;
}

test("a fast machine keeps all detail", () => {
  const detail = afterFrames(500, 16.7);
  expect([detail.scale, detail.shadows]).toEqual([1, true]);
});

test("a slow machine gives up pixels first and shadows last", () => {
  const seen = [0, 20, 40, 60].map((count) => {
    const { scale, shadows } = afterFrames(count, 80);
    return [scale, shadows];
  });
  expect(seen).toEqual([
    [1, true],
    [0.75, true],
    [0.5, true],
    [0.5, false],
  ]);
});

test("one frame that was held up changes nothing", () => {
  const detail = new Detail();
  for (let i = 0; i < 100; i++) detail.note(i % 10 === 0 ? 400 : 16);
  expect(detail.scale).toBe(1);
});

test("a very slow machine does not wait for many frames", () => {
  const { scale, shadows } = afterFrames(9, 600);
  expect([scale, shadows]).toEqual([0.5, false]);
});

test("a page that was out of sight keeps all detail", () => {
  const detail = afterFrames(30, 60_000);
  expect([detail.scale, detail.shadows]).toEqual([1, true]);
});

test("software starts with the least", () => {
  const { scale, shadows } = new Detail(true);
  expect([scale, shadows]).toEqual([0.5, false]);
});
