/** One MuJoCo model and its state, stepped in the order in which dm_control steps it. */

import type { MainModule, MjData, MjModel } from "@mujoco/mujoco";
import { PageError } from "../errors";

type Kind = "body" | "geom" | "site" | "joint" | "sensor";

/** A three-vector as MuJoCo stores it. */
export type Vector = [number, number, number];

/** Model and data of MuJoCo's WebAssembly build; free it with `dispose`. */
export class Simulation {
  readonly model: MjModel;
  readonly data: MjData;
  private readonly ids = new Map<string, number>();
  private readonly noActuation: number;
  private readonly rungeKutta: boolean;

  /**
   * @param mujoco The loaded module.
   * @param xml A self-contained model.
   * @throws PageError Where MuJoCo cannot compile it.
   */
  constructor(
    private readonly mujoco: MainModule,
    xml: string,
  ) {
    this.model = compile(mujoco, xml);
    this.data = new mujoco.MjData(this.model);
    this.noActuation = mujoco.mjtDisableBit.mjDSBL_ACTUATION.value;
    this.rungeKutta = this.model.opt.integrator === mujoco.mjtIntegrator.mjINT_RK4.value;
  }

  get qpos(): Float64Array {
    return this.data.qpos;
  }

  get qvel(): Float64Array {
    return this.data.qvel;
  }

  get ctrl(): Float64Array {
    return this.data.ctrl;
  }

  /** Set the default state and compute what follows from it. */
  reset(): void {
    this.mujoco.mj_resetData(this.model, this.data);
    this.settle();
  }

  /** Compute what follows from a state that was just set, with the motors off. */
  settle(): void {
    const { opt } = this.model;
    const before = opt.disableflags;
    opt.disableflags = before | this.noActuation;
    this.mujoco.mj_forward(this.model, this.data);
    opt.disableflags = before;
  }

  /** Advance by physics steps and leave positions, velocities and sensors up to date. */
  step(count: number): void {
    const { mujoco, model, data } = this;
    if (!this.rungeKutta) mujoco.mj_step2(model, data);
    for (let i = this.rungeKutta ? 0 : 1; i < count; i++) mujoco.mj_step(model, data);
    mujoco.mj_step1(model, data);
  }

  /** Return an element's number. */
  id(kind: Kind, name: string): number {
    const key = `${kind}:${name}`;
    let id = this.ids.get(key);
    if (id === undefined) {
      id = this.mujoco.mj_name2id(this.model, this.objectType(kind), name);
      if (id < 0) throw new PageError(`the model has no ${kind} called ${name}`);
      this.ids.set(key, id);
    }
    return id;
  }

  /** Return the position of the frame of a body, geom or site. */
  position(kind: "body" | "geom" | "site", name: string): Vector {
    const all = { body: this.data.xpos, geom: this.data.geom_xpos, site: this.data.site_xpos };
    return triple(all[kind], this.id(kind, name));
  }

  /** Return the position of a body's centre of mass. */
  inertialPosition(body: string): Vector {
    return triple(this.data.xipos, this.id("body", body));
  }

  /** Return a body's rotation matrix, row by row. */
  rotation(body: string): Float64Array {
    const start = 9 * this.id("body", body);
    return this.data.xmat.subarray(start, start + 9);
  }

  /** Return a sensor's reading. */
  sensor(name: string): Float64Array {
    const id = this.id("sensor", name);
    const start = this.model.sensor_adr[id];
    return this.data.sensordata.subarray(start, start + this.model.sensor_dim[id]);
  }

  /** Return where a joint's coordinates begin in `qpos`. */
  coordinate(joint: string): number {
    return this.model.jnt_qposadr[this.id("joint", joint)];
  }

  /** Return where a joint's velocities begin in `qvel`. */
  degree(joint: string): number {
    return this.model.jnt_dofadr[this.id("joint", joint)];
  }

  /** Give model and data back to the heap. */
  dispose(): void {
    this.data.delete();
    this.model.delete();
  }

  private objectType(kind: Kind): number {
    const { mjtObj } = this.mujoco;
    const types = {
      body: mjtObj.mjOBJ_BODY,
      geom: mjtObj.mjOBJ_GEOM,
      site: mjtObj.mjOBJ_SITE,
      joint: mjtObj.mjOBJ_JOINT,
      sensor: mjtObj.mjOBJ_SENSOR,
    };
    return types[kind].value;
  }
}

function compile(mujoco: MainModule, xml: string): MjModel {
  try {
    const model = mujoco.MjModel.from_xml_string(xml);
    if (model) return model;
  } catch (error) {
    throw new PageError("MuJoCo cannot read this task's model", error);
  }
  throw new PageError("MuJoCo cannot read this task's model");
}

function triple(values: Float64Array, id: number): Vector {
  return Array.from(values.subarray(3 * id, 3 * id + 3)) as Vector;
}
