/** Forces of the visitor's hand. */

import type { MainModule, MjvPerturb } from "@mujoco/mujoco";
import type { Simulation, Vector } from "./simulation";

/** A spring from a point of a geom to the pointer. */
export interface Pull {
  geom: number;
  /** The point in the geom's frame. */
  anchor: Vector;
  /** The pointer in the world. */
  target: Vector;
}

const PUSH_ACCELERATION = 12; // m/s² of the whole body
const PULL_STIFFNESS = 200; // 1/s², as MuJoCo scales it by the mass that is felt

/** Applies the visitor's forces before each physics step. */
export class Hand {
  private readonly perturb: MjvPerturb;

  constructor(
    private readonly mujoco: MainModule,
    private readonly sim: Simulation,
  ) {
    this.perturb = new mujoco.MjvPerturb();
    mujoco.mjv_defaultPerturb(this.perturb);
    sim.model.vis.map.stiffness = PULL_STIFFNESS;
  }

  /**
   * Set the forces for the next physics step.
   *
   * @param pull A spring, if the pointer holds a body.
   * @param push A direction in the world of at most length 1, if a key is held.
   */
  apply(pull: Pull | undefined, push: Vector | undefined): void {
    const { model, data } = this.sim;
    data.xfrc_applied.fill(0);
    if (push) {
      const mass: number = model.body_subtreemass[1];
      push.forEach((part, i) => {
        data.xfrc_applied[6 + i] = part * PUSH_ACCELERATION * mass;
      });
    }
    if (!pull) return;
    const { perturb } = this;
    const body: number = model.geom_bodyid[pull.geom];
    perturb.select = body;
    perturb.active = this.mujoco.mjtPertBit.mjPERT_TRANSLATE.value;
    perturb.localmass = 1 / Math.max(model.body_invweight0[2 * body], 1e-9);
    perturb.localpos.set(this.inBody(body, pull));
    perturb.refselpos.set(pull.target);
    this.mujoco.mjv_applyPerturbForce(model, data, perturb);
  }

  private inBody(body: number, { geom, anchor }: Pull): Vector {
    const { data } = this.sim;
    const turned: Float64Array = data.geom_xmat.subarray(9 * geom, 9 * geom + 9);
    const away = [0, 1, 2].map((row) => {
      const inWorld = anchor.reduce(
        (sum, part, i) => sum + (turned[3 * row + i] as number) * part,
        0,
      );
      return inWorld + data.geom_xpos[3 * geom + row] - data.xpos[3 * body + row];
    });
    const frame: Float64Array = data.xmat.subarray(9 * body, 9 * body + 9);
    return [0, 1, 2].map((column) =>
      away.reduce((sum, part, i) => sum + (frame[3 * i + column] as number) * part, 0),
    ) as Vector;
  }

  dispose(): void {
    this.perturb.delete();
  }
}
