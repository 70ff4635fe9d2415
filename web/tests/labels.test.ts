import { expect, test } from "vitest";
import { TASKS } from "../src/tasks";
import { ABOUT, DOMAINS, titleOf } from "../src/ui/labels";

test("every task has a line that explains it and a group in the list", () => {
  expect(Object.keys(ABOUT).sort()).toEqual([...TASKS.keys()].sort());
  for (const name of TASKS.keys()) expect(DOMAINS).toHaveProperty(name.split("-")[0] as string);
});

test("a task's title drops its domain", () => {
  expect(titleOf("walker-run-backwards")).toBe("Run backwards");
});
