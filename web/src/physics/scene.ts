/** Reads out of a simulation what is to be drawn. */

import { type Chunk, type Drawn, POSE, type SceneDescription, SHAPES, TAIL } from "./frames";
import type { Simulation, Vector } from "./simulation";

// MuJoCo's own viewer draws groups 0 to 2 alone; these sites of group 3 are what a task is about.
const SITES = ["target", "tip"];
const LAST_GROUP = 2;
const FLAT = ["reacher", "reacher_three"];

interface Source {
  kind: "geom" | "site";
  id: number;
}

/** The shapes of one simulation, and their places at this moment. */
export class Scenery {
  readonly drawn: Drawn[] = [];
  private readonly sources: Source[] = [];

  constructor(
    private readonly sim: Simulation,
    private readonly names: (kind: "geom" | "site", id: number) => string,
  ) {
    const { model } = sim;
    for (let id = 0; id < model.ngeom; id++) {
      if (model.geom_group[id] <= LAST_GROUP) this.add({ kind: "geom", id });
    }
    for (let id = 0; id < model.nsite; id++) {
      const shown = SITES.includes(names("site", id)) && model.site_group[id] <= LAST_GROUP + 1;
      if (shown) this.add({ kind: "site", id });
    }
  }

  /** Describe the task's look. */
  describe(
    task: string,
    modelName: string,
    stepSeconds: number,
    noGravity: number,
  ): SceneDescription {
    const { model } = this.sim;
    const weightless = (model.opt.disableflags & noGravity) !== 0;
    return {
      task,
      model: modelName,
      drawn: this.drawn,
      tendon: model.ntendon > 0 && model.nwrap > 0 && modelName === "ball_in_cup",
      stepSeconds,
      actions: model.nu,
      gravity: !weightless && !FLAT.includes(modelName),
    };
  }

  /** Return the places of everything, as `Chunk` holds them. */
  frame(): Float32Array {
    const { data } = this.sim;
    const frame = new Float32Array(this.sources.length * POSE + TAIL);
    const places = {
      geom: [data.geom_xpos, data.geom_xmat],
      site: [data.site_xpos, data.site_xmat],
    };
    this.sources.forEach(({ kind, id }, i) => {
      const [positions, rotations] = places[kind] as [Float64Array, Float64Array];
      frame.set(positions.subarray(3 * id, 3 * id + 3), i * POSE);
      frame.set(rotations.subarray(9 * id, 9 * id + 9), i * POSE + 3);
    });
    const tail = this.sources.length * POSE;
    frame.set(data.subtree_com.subarray(3, 6), tail);
    if (this.sim.model.nwrap > 0) frame.set(data.wrap_xpos.subarray(0, 6), tail + 3);
    return frame;
  }

  private add(source: Source): void {
    const { kind, id } = source;
    const { model } = this.sim;
    const geom = kind === "geom";
    const material = geom ? model.geom_matid[id] : model.site_matid[id];
    const own: Float32Array = geom ? model.geom_rgba : model.site_rgba;
    const coloured = material >= 0 && isDefault(own.subarray(4 * id, 4 * id + 4));
    const rgba = coloured
      ? model.mat_rgba.subarray(4 * material, 4 * material + 4)
      : own.subarray(4 * id, 4 * id + 4);
    const size: Float64Array = geom ? model.geom_size : model.site_size;
    const shape = SHAPES[geom ? model.geom_type[id] : model.site_type[id]];
    if (!shape || rgba[3] === 0) return;
    this.sources.push(source);
    this.drawn.push({
      shape,
      name: this.names(kind, id),
      size: Array.from(size.subarray(3 * id, 3 * id + 3)) as Vector,
      rgba: Array.from(rgba) as Drawn["rgba"],
      holdable: geom && model.geom_bodyid[id] > 0 ? id : -1,
    });
  }
}

function isDefault(rgba: Float32Array): boolean {
  return [0.5, 0.5, 0.5, 1].every((value, i) => rgba[i] === value);
}

/** Join frames into what is sent. */
export function joined(frames: Float32Array[]): Chunk["frames"] {
  const length = frames[0]?.length ?? 0;
  const all = new Float32Array(frames.length * length);
  for (const [i, frame] of frames.entries()) all.set(frame, i * length);
  return all;
}
