/** What the worker tells the page to draw. */

/** Shapes as MuJoCo numbers them. */
export const SHAPES = [
  "plane",
  "hfield",
  "sphere",
  "capsule",
  "ellipsoid",
  "cylinder",
  "box",
] as const;

/** A shape's kind. */
export type Shape = (typeof SHAPES)[number];

/** One shape to draw, at the place that each frame tells. */
export interface Drawn {
  shape: Shape;
  name: string;
  size: [number, number, number];
  rgba: [number, number, number, number];
  /** Number of the geom in the model if a hand can hold it, else -1. */
  holdable: number;
}

/** What a task looks like and can be told. */
export interface SceneDescription {
  task: string;
  model: string;
  drawn: Drawn[];
  tendon: boolean;
  /** Seconds that one action lasts. */
  stepSeconds: number;
  actions: number;
  /** False where the task is weightless, or lies flat. */
  gravity: boolean;
}

/** Numbers of one shape in a frame: its position and its rotation matrix, row by row. */
export const POSE = 12;

/** Numbers at the end of a frame: the body's centre of mass and the string's two ends. */
export const TAIL = 9;

/** What one action led to. */
export interface Chunk {
  /** Frames one after the other. */
  frames: Float32Array;
  /** Seconds from the chunk's start, of each frame. */
  times: number[];
  /** Seconds that the chunk lasts; 0 for an episode's start. */
  seconds: number;
  observation: number[];
  action: number[];
  reward: number;
  /** Rewards of the episode so far. */
  return: number;
  /** Actions of the episode so far. */
  step: number;
  latencyMs: number;
}
