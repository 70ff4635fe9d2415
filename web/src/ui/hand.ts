/** The visitor's hand: dragging bodies with a pointer, pushing them with keys. */

import * as THREE from "three";
import type { Pull } from "../physics/perturb";
import type { Vector } from "../physics/simulation";
import type { Hit, Stage } from "../view/stage";
import { part } from "./dom";

const ARROWS: Record<string, Vector> = {
  ArrowLeft: [-1, 0, 0],
  ArrowRight: [1, 0, 0],
  ArrowUp: [0, 0, 1],
  ArrowDown: [0, 0, -1],
};

/** Turns pointer and arrow keys into forces. */
export class HandInput {
  private hit: Hit | undefined;
  private anchor = new THREE.Vector3();
  private readonly plane = new THREE.Plane();
  private readonly target = new THREE.Vector3();
  private readonly held = new Set<string>();

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly stage: Stage,
  ) {
    const keys = part("stage", HTMLDivElement);
    canvas.addEventListener("pointerdown", (event) => this.down(event), { capture: true });
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"] as const) {
      canvas.addEventListener(end, () => this.letGo());
    }
    keys.addEventListener("keydown", (event) => {
      if (!(event.key in ARROWS)) return;
      this.held.add(event.key);
      event.preventDefault();
    });
    keys.addEventListener("keyup", (event) => this.held.delete(event.key));
    keys.addEventListener("blur", () => this.held.clear());
  }

  /** The spring between a body and the pointer, if one is held. */
  get pull(): Pull | undefined {
    if (!this.hit) return undefined;
    return {
      geom: this.hit.geom,
      anchor: this.anchor.toArray() as Vector,
      target: this.target.toArray() as Vector,
    };
  }

  /** The push of the arrow keys, if one is held. */
  get push(): Vector | undefined {
    if (this.held.size === 0) return undefined;
    const sum = [...this.held].map((key) => ARROWS[key] as Vector);
    return [0, 1, 2].map((i) =>
      sum.reduce((all, way) => all + (way[i] as number), 0),
    ) as Vector;
  }

  /** Draw what the hand holds. */
  draw(): void {
    if (!this.hit) {
      this.stage.showPull();
      return;
    }
    const from = this.anchor.clone().applyMatrix4(this.stage.poseOf(this.hit.shape));
    this.stage.showPull(from, this.target);
  }

  /** Let go of the body. */
  letGo(): void {
    this.hit = undefined;
    this.stage.controls.enabled = true;
    this.canvas.classList.remove("holding");
  }

  private down(event: PointerEvent): void {
    const { x, y } = this.within(event);
    this.hit = event.button === 0 ? this.stage.hit(x, y) : undefined;
    if (!this.hit) return;
    // The camera must not turn as well.
    this.stage.controls.enabled = false;
    this.canvas.setPointerCapture(event.pointerId);
    this.canvas.classList.add("holding");
    const { point, shape } = this.hit;
    this.anchor = point.clone().applyMatrix4(this.stage.poseOf(shape).clone().invert());
    const facing = this.stage.camera.getWorldDirection(new THREE.Vector3());
    this.plane.setFromNormalAndCoplanarPoint(facing, point);
    this.target.copy(point);
  }

  private move(event: PointerEvent): void {
    const { x, y } = this.within(event);
    if (this.hit) {
      const at = this.stage.onPlane(x, y, this.plane);
      if (at) this.target.copy(at);
    } else if (event.buttons === 0) {
      this.canvas.classList.toggle("over", this.stage.hit(x, y) !== undefined);
    }
  }

  private within(event: PointerEvent): { x: number; y: number } {
    const box = this.canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }
}
