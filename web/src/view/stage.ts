/** Draws frames: meshes, light, shadows, and a camera that goes along. */

import * as THREE from "three";
import { OrbitControls } from "three/examples/jsm/controls/OrbitControls.js";
import { type Drawn, POSE, type SceneDescription } from "../physics/frames";
import { type View, viewOf } from "./cameras";
import type { Detail } from "./detail";
import { Ground } from "./ground";
import { meshOf } from "./shapes";
import type { Theme } from "./theme";

const STRING_RADIUS = 0.003;
const LIFT = 0.07; // of the height, by which the drawing is moved up

/** A place on a body under the pointer. */
export interface Hit {
  /** Which of the drawn shapes. */
  shape: number;
  /** Its geom in the model. */
  geom: number;
  /** The place in the world. */
  point: THREE.Vector3;
}

/** The canvas with everything drawn on it. */
export class Stage {
  readonly camera = new THREE.PerspectiveCamera(40, 1, 0.01, 200);
  readonly controls: OrbitControls;
  private readonly renderer: THREE.WebGLRenderer;
  private readonly scene = new THREE.Scene();
  private readonly ground = new Ground();
  private readonly sun = new THREE.DirectionalLight(0xffffff);
  private readonly sky = new THREE.HemisphereLight(0xffffff, 0x8090a8);
  private readonly bodies = new THREE.Group();
  private readonly string: THREE.Mesh;
  private readonly rope: THREE.Mesh;
  private readonly grip: THREE.Mesh;
  private drawn: Drawn[] = [];
  private poses: THREE.Matrix4[] = [];
  private view: View = viewOf("");
  private readonly followed = new THREE.Vector3();
  private fresh = true;

  /**
   * @param canvas Where to draw; throws where the browser has no WebGL.
   * @param plain Draw without smooth edges and gloss, for a processor that has to do it alone.
   */
  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly plain: boolean,
  ) {
    this.renderer = new THREE.WebGLRenderer({ canvas, antialias: !plain, alpha: true });
    this.renderer.shadowMap.enabled = true;
    this.renderer.shadowMap.type = THREE.PCFShadowMap;
    this.renderer.toneMapping = THREE.NoToneMapping;
    this.camera.up.set(0, 0, 1);
    this.controls = new OrbitControls(this.camera, canvas);
    this.controls.enableDamping = true;
    this.controls.enablePan = false;
    this.controls.maxPolarAngle = Math.PI * 0.495;
    this.sun.castShadow = true;
    this.sun.shadow.mapSize.set(1024, 1024);
    this.sun.shadow.radius = 4;
    this.string = cylinder(0xb0b8c8);
    this.rope = cylinder(0x2fbf9b);
    this.grip = new THREE.Mesh(
      new THREE.SphereGeometry(1, 24, 16),
      new THREE.MeshBasicMaterial({ color: 0x2fbf9b, depthTest: false, transparent: true }),
    );
    this.rope.visible = this.grip.visible = this.string.visible = false;
    const parts = [this.ground.group, this.sun, this.sun.target, this.sky, this.bodies];
    this.scene.add(...parts, this.string, this.rope, this.grip);
  }

  /** Take on a theme's colours. */
  paint(theme: Theme): void {
    this.sun.intensity = theme.sun;
    this.sky.intensity = theme.fill;
    this.ground.paint(theme);
  }

  /** Show another task. */
  show(description: SceneDescription): void {
    for (const child of [...this.bodies.children]) {
      const mesh = child as THREE.Mesh;
      mesh.geometry.dispose();
      (mesh.material as THREE.Material).dispose();
      this.bodies.remove(mesh);
    }
    this.drawn = description.drawn;
    this.poses = this.drawn.map(() => new THREE.Matrix4());
    for (const shape of this.drawn) {
      const mesh = meshOf(shape, this.plain);
      mesh.matrixAutoUpdate = false;
      mesh.visible = !isGround(shape);
      this.bodies.add(mesh);
    }
    this.string.visible = description.tendon;
    this.view = viewOf(description.model);
    const size = this.view.distance;
    this.ground.scale(size > 2 ? 1 : 0.2, 3.2 * size);
    const reach = 0.75 * size;
    Object.assign(this.sun.shadow.camera, {
      left: -reach,
      right: reach,
      top: reach,
      bottom: -reach,
      near: 0.1,
      far: 6 * size,
    });
    this.sun.shadow.camera.updateProjectionMatrix();
    // In proportion to a shadow's pixel, or surfaces throw stripes on themselves.
    this.sun.shadow.normalBias = (4 * reach) / this.sun.shadow.mapSize.x;
    this.sun.shadow.bias = -0.002;
    this.controls.minDistance = 0.3 * size;
    this.controls.maxDistance = 3 * size;
    this.fresh = true;
  }

  /** Put everything where a frame says. */
  place(frame: Float32Array): void {
    this.drawn.forEach((shape, i) => {
      const mesh = this.bodies.children[i] as THREE.Mesh;
      const [x, y, z, ...m] = frame.subarray(i * POSE, (i + 1) * POSE) as unknown as Pose;
      const pose = this.poses[i] as THREE.Matrix4;
      pose.set(m[0], m[1], m[2], x, m[3], m[4], m[5], y, m[6], m[7], m[8], z, 0, 0, 0, 1);
      mesh.matrix.copy(pose).scale(mesh.scale);
      mesh.matrixWorldNeedsUpdate = true;
      if (isGround(shape)) this.ground.group.position.z = z;
    });
    const tail = frame.subarray(this.drawn.length * POSE);
    this.follow(tail);
    if (this.string.visible) {
      const [a, b] = [3, 6].map((at) => new THREE.Vector3().fromArray(tail, at));
      stretch(this.string, a as THREE.Vector3, b as THREE.Vector3, STRING_RADIUS);
    }
  }

  /** Draw the pull of the visitor's hand, or none. */
  showPull(from?: THREE.Vector3, to?: THREE.Vector3): void {
    this.rope.visible = this.grip.visible = Boolean(from && to);
    if (!from || !to) return;
    const size = 0.004 * this.view.distance;
    stretch(this.rope, from, to, size);
    this.grip.position.copy(to);
    this.grip.scale.setScalar(2.5 * size);
  }

  /** Return the place of a body under a point of the canvas, in CSS pixels. */
  hit(x: number, y: number): Hit | undefined {
    const found = this.ray(x, y).intersectObjects(this.bodies.children, false);
    for (const { object, point } of found) {
      const shape = this.bodies.children.indexOf(object);
      const geom = (this.drawn[shape] as Drawn).holdable;
      if (geom >= 0) return { shape, geom, point };
    }
    return undefined;
  }

  /** Return where the line of sight through a point of the canvas meets a plane. */
  onPlane(x: number, y: number, plane: THREE.Plane): THREE.Vector3 | undefined {
    return this.ray(x, y).ray.intersectPlane(plane, new THREE.Vector3()) ?? undefined;
  }

  /** Return the present pose of a drawn shape. */
  poseOf(shape: number): THREE.Matrix4 {
    return this.poses[shape] as THREE.Matrix4;
  }

  /**
   * Draw.
   *
   * @param detail How finely.
   */
  render(detail: Detail): void {
    this.fit(detail.scale);
    this.sun.castShadow = this.ground.shadows = detail.shadows;
    this.controls.update();
    this.renderer.render(this.scene, this.camera);
  }

  /** Go back to the task's first view. */
  resetView(): void {
    this.fresh = true;
  }

  private follow(tail: Float32Array): void {
    const { view } = this;
    const x = view.follow ? (tail[0] as number) : 0;
    const target = new THREE.Vector3(x, 0, 0).add(new THREE.Vector3(...view.target));
    if (this.fresh) {
      const [azimuth, elevation] = [view.azimuth, view.elevation].map(THREE.MathUtils.degToRad);
      const back = new THREE.Vector3(
        Math.sin(azimuth as number) * Math.cos(elevation as number),
        -Math.cos(azimuth as number) * Math.cos(elevation as number),
        Math.sin(elevation as number),
      );
      this.controls.target.copy(target);
      const narrow = Math.max(1, 1.15 / this.camera.aspect);
      this.camera.position.copy(target).addScaledVector(back, view.distance * narrow);
      this.fresh = false;
    } else {
      const moved = target.clone().sub(this.followed);
      this.controls.target.add(moved);
      this.camera.position.add(moved);
    }
    this.followed.copy(target);
    this.ground.centre(target);
    this.sun.target.position.copy(target);
    this.sun.position
      .copy(target)
      .add(new THREE.Vector3(-0.5, -0.9, 1.8).multiplyScalar(view.distance));
  }

  private ray(x: number, y: number): THREE.Raycaster {
    const { width, height } = this.canvas.getBoundingClientRect();
    const caster = new THREE.Raycaster();
    const at = new THREE.Vector2((2 * x) / width - 1, 1 - (2 * y) / height);
    caster.setFromCamera(at, this.camera);
    return caster;
  }

  private fit(scale: number): void {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const ratio = scale * Math.min(window.devicePixelRatio, 2);
    const fits =
      this.canvas.width === Math.floor(width * ratio) &&
      this.canvas.height === Math.floor(height * ratio);
    if (fits || !width || !height) return;
    this.renderer.setPixelRatio(ratio);
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    // The numbers lie over the lower part of the drawing.
    this.camera.setViewOffset(width, height, 0, LIFT * height, width, height);
  }
}

type Pose = [number, number, number, ...Nine];
type Nine = [number, number, number, number, number, number, number, number, number];

function isGround({ shape, name }: Drawn): boolean {
  return shape === "plane" && (name === "floor" || name === "ground");
}

function cylinder(color: number): THREE.Mesh {
  const mesh = new THREE.Mesh(
    new THREE.CylinderGeometry(1, 1, 1, 12),
    new THREE.MeshStandardMaterial({ color, roughness: 0.6 }),
  );
  mesh.castShadow = true;
  return mesh;
}

/** Lay a cylinder of unit size between two points. */
function stretch(
  mesh: THREE.Mesh,
  from: THREE.Vector3,
  to: THREE.Vector3,
  radius: number,
): void {
  const way = to.clone().sub(from);
  const length = Math.max(way.length(), 1e-6);
  mesh.position.copy(from).addScaledVector(way, 0.5);
  mesh.quaternion.setFromUnitVectors(new THREE.Vector3(0, 1, 0), way.divideScalar(length));
  mesh.scale.set(radius, length, radius);
}
